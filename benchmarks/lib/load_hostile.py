"""Clients that a server must bear: slow, broken, too large, without a key, or gone before the answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

HOST = "127.0.0.1"

CLOSED, HANGS = "closed", "still open"
"""What became of a connection without an answer."""

REFUSED_BODY = frozenset({"400", CLOSED})
ANSWERED = frozenset({"200", "429"})


@dataclass(frozen=True)
class Target:
    """A server: its port, its key, its limits, and a text to ask."""

    port: int
    key: str
    read_timeout_s: float
    payload_limit: int
    text: str

    @property
    def patience_s(self) -> float:
        """After this a connection that does nothing must have been closed."""
        return self.read_timeout_s + 20


@dataclass(frozen=True)
class Seen:
    """What a hostile client met with, and whether that is what it should meet with."""

    kind: str
    outcome: str
    good: bool


Attack = Callable[[Target, random.Random], Awaitable[Seen]]


def request(
    body: bytes, key: str | None, *, path: str = "/predict", head: str = "", length: int | None = None,
    kind: str = "application/json", method: str = "POST",
) -> bytes:  # fmt: skip
    """An HTTP/1.1 request as bytes; ``head`` holds more header lines, each with its line end."""
    bearer = f"Authorization: Bearer {key}\r\n" if key else ""
    size = "" if length == -1 else f"Content-Length: {len(body) if length is None else length}\r\n"
    text = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{bearer}Content-Type: {kind}\r\n{size}{head}\r\n"
    return text.encode("latin-1") + body


def answers(received: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each complete or broken-off answer in ``received``."""
    found = []
    while received.startswith(b"HTTP/1."):
        head, _, rest = received.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length":
                length = int(value)
        found.append((int(head.split()[1]), rest[:length]))
        received = rest[length:]
    return found


async def exchange(
    target: Target, sent: bytes, *, wait_s: float, half_close: bool = False, hang_up: bool = True
) -> tuple[bytes, str]:
    """Send, then read until the server closes, or nothing comes for a second after an answer.

    Returns what came and how it ended; with ``hang_up`` False only the server's end of it counts.
    """
    reader, writer = await asyncio.open_connection(HOST, target.port)
    received = b""
    loop = asyncio.get_running_loop()
    ends = loop.time() + wait_s
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(sent)
            await asyncio.wait_for(writer.drain(), wait_s)
            if half_close:
                writer.write_eof()
        while True:
            left = ends - loop.time()
            if left <= 0:
                return received, HANGS
            quiet_s = min(left, 1.0) if hang_up and answers(received) else left
            try:
                part = await asyncio.wait_for(reader.read(65_536), quiet_s)
            except asyncio.TimeoutError:
                return received, HANGS
            except ConnectionError:
                return received, CLOSED
            if not part:
                return received, CLOSED
            received += part
    finally:
        writer.close()


def outcome_of(received: bytes, end: str) -> str:
    """The statuses that came, or how the connection ended without one."""
    return " ".join(str(status) for status, _ in answers(received)) or end


# --- bodies and heads that are wrong ---------------------------------------------------------------


def _broken(target: Target) -> dict[str, tuple[bytes, frozenset[str]]]:
    """Bytes by name, and what may come of them."""
    key, text = target.key, json.dumps(target.text).encode()
    good = b'{"inputs": ' + text + b"}"
    smuggled = request(b"", key, path="/metrics", method="GET")
    plain = f"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n".encode()
    plain += b"Content-Type: application/json\r\n"
    malformed, refused = frozenset({"422"}), frozenset({"400", "422"})
    return {
        "no JSON": (request(b'{"inputs": ', key), frozenset({"400"})),
        "no body": (request(b"", key), refused),
        "JSON of another kind": (request(b"[3, null]", key), malformed),
        "wrong types": (request(b'{"inputs": {"a": 1}}', key), malformed),
        "no UTF-8": (request(b'{"inputs": "\xff\xfe\xc3"}', key), frozenset({"400"})),
        # It is found out by the tokenizer, behind the queue.
        "half a surrogate pair": (request(b'{"inputs": "\\ud800"}', key), refused | {"429"}),
        "nested 40,000 deep": (request(b'{"inputs": ' + b"[" * 40_000 + b"]" * 40_000 + b"}", key), refused),
        "no number": (request(b'{"inputs": "a", "threshold": NaN}', key, path="/v1/classify"), refused),
        "a number of 5,000 digits": (request(b'{"inputs": ' + b"9" * 5_000 + b"}", key), refused),
        "1,000 texts": (request(json.dumps({"inputs": [["a"]] * 1_000}).encode(), key), frozenset({"413"})),
        "another type of content": (request(good, key, kind="text/plain"), frozenset({"415"})),
        "too long, as announced": (request(b"{", key, length=target.payload_limit + 1), frozenset({"413"})),
        "too long, in chunks": (_chunks(target), frozenset({"413", CLOSED})),
        "a length of letters": (request(good, key, length=-1, head="Content-Length: ten\r\n"), REFUSED_BODY),
        "a length below zero": (request(good, key, length=-1, head="Content-Length: -5\r\n"), REFUSED_BODY),
        "two lengths": (request(good, key, head="Content-Length: 5\r\n"), REFUSED_BODY),
        "length and chunks": (
            request(b"0\r\n\r\n" + smuggled, key, head="Transfer-Encoding: chunked\r\n"), REFUSED_BODY
        ),
        "chunks by another name": (
            request(b"0\r\n\r\n" + smuggled, key, head="Transfer-Encoding: xchunked\r\n"),
            REFUSED_BODY | {"422"},
        ),
        "chunks of nonsense": (
            plain + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", REFUSED_BODY
        ),
        "a space before the colon": (
            plain + b"Content-Length : 5\r\n\r\n" + good, REFUSED_BODY
        ),
        "a header that goes on": (
            plain + b"X: a\r\n b: c\r\nContent-Length: 2\r\n\r\n{}", REFUSED_BODY | {"422"},
        ),
        "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), REFUSED_BODY),
        "a zero in the address": (
            b"GET /\x00health HTTP/1.1\r\nHost: x\r\n\r\n", REFUSED_BODY | {"404", "401"},
        ),
        "headers of 100 kB": (plain + b"X: " + b"a" * 100_000 + b"\r\n\r\n", REFUSED_BODY),
        "two requests at once": (
            request(b"", None, path="/health", method="GET") * 2, frozenset({"200 200"})
        ),
    }  # fmt: skip


def _chunks(target: Target) -> bytes:
    head = request(b"", target.key, length=-1, head="Transfer-Encoding: chunked\r\n")
    part = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    return head + part * (target.payload_limit // 65_536 + 2)


def _broken_attack(name: str) -> Attack:
    async def attack(target: Target, _rng: random.Random) -> Seen:
        sent, allowed = _broken(target)[name]
        received, end = await exchange(target, sent, wait_s=target.patience_s)
        outcome = outcome_of(received, end)
        # Nothing that was smuggled in is answered.
        good = outcome in allowed and b"te_request" not in received and outcome != HANGS
        return Seen(name, outcome, good)

    return attack


# --- without the key -------------------------------------------------------------------------------


async def without_key(target: Target, rng: random.Random) -> Seen:
    """No key, or one that is nearly right: 401 and nothing else, whatever is asked."""
    key = target.key
    wrong = rng.choice([None, key[:-1], key + "x", key.upper() + "Z", "a" * 3000, "%00"])
    body = json.dumps({"inputs": target.text}).encode()
    path = rng.choice(["/predict", "/v1/classify", "/models/live/predict", "/", f"/predict?key={key}"])
    asked = request(body, wrong, path=path)
    if rng.random() < 0.4:
        place = rng.choice(
            ["/metrics", "/info", "/models", "/docs", "/openapi.json", "//metrics", "/health/"]
        )
        asked = request(b"", wrong, path=place, method="GET")
    received, end = await exchange(target, asked, wait_s=target.patience_s)
    outcome = outcome_of(received, end)
    return Seen("without the key", outcome, outcome == "401" and b"score" not in received)


# --- slow, or gone ---------------------------------------------------------------------------------


async def _drip(target: Target, first: bytes, drop: bytes) -> str:
    """Send ``drop`` again and again until the server has had enough."""
    reader, writer = await asyncio.open_connection(HOST, target.port)
    reading = asyncio.ensure_future(reader.read(65_536))
    loop = asyncio.get_running_loop()
    ends = loop.time() + target.patience_s
    try:
        writer.write(first)
        while loop.time() < ends and not reading.done():
            await asyncio.wait({reading}, timeout=0.3)
            with contextlib.suppress(ConnectionError):
                writer.write(drop)
                await writer.drain()
        if not reading.done():
            return HANGS
        try:
            return outcome_of(reading.result(), CLOSED)
        except ConnectionError:
            return CLOSED
    finally:
        reading.cancel()
        writer.close()


async def slow_headers(target: Target, _rng: random.Random) -> Seen:
    """Headers byte by byte: the connection is closed when the time for them is up."""
    outcome = await _drip(target, b"POST /predict HTTP/1.1\r\nX: ", b"a")
    return Seen("headers byte by byte", outcome, outcome in REFUSED_BODY)


async def slow_body(target: Target, _rng: random.Random) -> Seen:
    """A body byte by byte: 408."""
    outcome = await _drip(target, request(b"", target.key, length=100_000), b" ")
    return Seen("a body byte by byte", outcome, outcome in ("408", CLOSED))


async def says_nothing(target: Target, _rng: random.Random) -> Seen:
    """A connection and nothing more."""
    received, end = await exchange(target, b"", wait_s=target.patience_s)
    return Seen("a connection and nothing more", outcome_of(received, end), end == CLOSED and not received)


async def does_not_read(target: Target, _rng: random.Random) -> Seen:
    """Asks for megabytes and takes none: let go when the time for it is up."""
    loop = asyncio.get_running_loop()
    with socket.socket() as bare:
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        bare.setblocking(False)  # the standard library's
        await loop.sock_connect(bare, (HOST, target.port))
        asked = request(b"", target.key, path="/openapi.json", method="GET") * 400
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(loop.sock_sendall(bare, asked), 5)
        await asyncio.sleep(target.read_timeout_s + 8)
        total, ends = 0, loop.time() + 20
        while loop.time() < ends:
            try:
                part = await asyncio.wait_for(loop.sock_recv(bare, 1 << 20), 5)
            except asyncio.TimeoutError:
                return Seen("asks and does not read", HANGS, good=False)
            except OSError:
                return Seen("asks and does not read", CLOSED, good=True)
            if not part:
                return Seen("asks and does not read", CLOSED, good=True)
            total += len(part)
        return Seen("asks and does not read", HANGS, good=False)


async def half_closed(target: Target, _rng: random.Random) -> Seen:
    """Says that it will send nothing more, and wants its answer."""
    asked = request(json.dumps({"inputs": target.text}).encode(), target.key)
    received, end = await exchange(target, asked, wait_s=60, half_close=True)
    outcome = outcome_of(received, end)
    return Seen("half closed", outcome, outcome in ANSWERED | {CLOSED})


async def hangs_up(target: Target, rng: random.Random) -> Seen:
    """Gone, with a reset, before the answer or before the body was sent."""
    _, writer = await asyncio.open_connection(HOST, target.port)
    body = json.dumps({"inputs": [[target.text]] * 8}).encode()
    asked = request(body, target.key)
    writer.write(asked if rng.random() < 0.6 else asked[: rng.randrange(1, len(asked))])
    with contextlib.suppress(ConnectionError):
        await writer.drain()
    await asyncio.sleep(rng.random() * 0.5)
    bare = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return Seen("gone before the answer", CLOSED, good=True)


def attacks(target: Target) -> list[Attack]:
    """All of them; those that tie a connection up for seconds are one of each."""
    slow = [slow_headers, slow_body, says_nothing, does_not_read, half_closed, hangs_up]
    return [*slow, *[without_key] * 6, *map(_broken_attack, _broken(target))]
