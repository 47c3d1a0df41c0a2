"""Servers in processes of their own, and clients that ask again as soon as they are answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .common import REPOSITORY

HOST = "127.0.0.1"
START_S = 120.0


@dataclass(frozen=True)
class Reply:
    """An HTTP answer: status, headers in lower case, body."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Turn:
    """All texts answered once: seconds for all, and of each request; statuses that were not 200."""

    seconds: float
    latencies_s: list[float]
    labels: list[str | None]
    errors: dict[int, int] = field(default_factory=dict)

    @property
    def requests_per_s(self) -> float:
        return len(self.latencies_s) / self.seconds

    def quantile_ms(self, share: float) -> float:
        """The latency that ``share`` of the requests did not exceed, ms."""
        return 1000 * quantile(self.latencies_s, share)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that at least ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, int(-(-share * len(ordered) // 1)) - 1))]


class Client:
    """One connection, kept alive; HTTP/1.1 with as little work as can be, for it runs on the same machine."""

    def __init__(self, port: int, key: str | None = None) -> None:
        self._port = port
        self._key = f"Authorization: Bearer {key}\r\n" if key else ""
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, path: str, content: Any = None, *, method: str = "POST") -> Reply:
        """Send JSON (or bytes as they are), return the answer.

        Raises:
            OSError: no connection, or it broke.
        """
        body = (
            content
            if isinstance(content, bytes)
            else b""
            if content is None
            else json.dumps(content).encode()
        )
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{self._key}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(HOST, self._port)
        assert self._reader is not None
        try:
            self._writer.write(head.encode() + body)
            await self._writer.drain()
            return await self._read(self._reader)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            self.close()
            raise

    async def _read(self, reader: asyncio.StreamReader) -> Reply:
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Reply(int(status.split()[1]), headers, body)

    def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def closed_loop(port: int, texts: Sequence[str], clients: int, paths: Sequence[str] = ("/predict",)) -> Turn:
    """``clients`` clients share ``texts``; each takes the next one as soon as it is answered.

    Text i goes to ``paths[i % len(paths)]``.
    """
    return asyncio.run(_closed_loop(port, texts, clients, paths))


async def _closed_loop(port: int, texts: Sequence[str], clients: int, paths: Sequence[str]) -> Turn:
    labels: list[str | None] = [None] * len(texts)
    turn = Turn(0.0, [], labels)
    waiting = iter(enumerate(texts))

    async def work() -> None:
        client = Client(port)
        for i, text in waiting:
            began = time.perf_counter()
            reply = await client.ask(paths[i % len(paths)], {"inputs": text})
            turn.latencies_s.append(time.perf_counter() - began)
            if reply.status == 200:
                labels[i] = json.loads(reply.body)[0]["label"]
            else:
                turn.errors[reply.status] = turn.errors.get(reply.status, 0) + 1
        client.close()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(clients)))
    turn.seconds = time.perf_counter() - began
    return turn


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


def our_command(run: Path, port: int, threads: int, *more: str) -> list[str]:
    """`snugtune serve` as a user starts it."""
    return [
        sys.executable, "-m", "snugtune", "serve", str(run), "--port", str(port),
        "--threads", str(threads), *more,
    ]  # fmt: skip


def their_command(name: str, run: Path, port: int, threads: int, *more: str) -> list[str]:
    """One of ``lib.serve_contestants``."""
    return [
        sys.executable, "-m", "lib.serve_contestants", name, str(run), str(port),
        "--threads", str(threads), *more,
    ]  # fmt: skip


@contextlib.contextmanager
def running(command: Sequence[str], port: int, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A server until the end of the block; yields its process id once it answers.

    Raises:
        RuntimeError: it does not answer in time, or ends; the message has its last lines.
    """
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})}
    env["PYTHONPATH"] = os.pathsep.join(
        [str(REPOSITORY / "benchmarks"), *filter(None, [env.get("PYTHONPATH")])]
    )
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        try:
            _wait_until_it_answers(process, port, log)
            yield process.pid
        finally:
            _end(process)


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Any) -> None:
    ends = time.monotonic() + START_S
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reply = asyncio.run(asyncio.wait_for(Client(port).ask("/predict", {"inputs": "ready?"}), 30))
            if reply.status in (200, 401):
                return
        time.sleep(0.2)
    log.seek(0)
    last = log.read()[-2000:].decode(errors="replace")
    raise RuntimeError(f"{' '.join(process.args)} did not answer:\n{last}")  # type: ignore[arg-type]


def _end(process: subprocess.Popen[bytes]) -> None:
    """The server and whatever it has started: all are in the session that was made for it."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def summary(turns: Sequence[Turn], expected: Sequence[str | None]) -> dict[str, Any]:
    """Spreads over turns; p99 over all their requests together, too, for one turn has few beyond it."""
    from .common import spread

    every = [latency for turn in turns for latency in turn.latencies_s]
    pairs = [pair for turn in turns for pair in zip(turn.labels, expected, strict=True)]
    return {
        "requests_per_s": spread([turn.requests_per_s for turn in turns]),
        "p50_ms": spread([turn.quantile_ms(0.5) for turn in turns]),
        "p99_ms": spread([turn.quantile_ms(0.99) for turn in turns]),
        "p99_ms_of_all": 1000 * quantile(every, 0.99),
        "errors": sum(sum(turn.errors.values()) for turn in turns),
        "same_label_as_ours": statistics.fmean(a == b for a, b in pairs),
    }
