"""What every request passes first: its key, its size, and how long it takes to arrive.

A request without the key is answered before a byte of its body is read. A body is read here, to its end or a
limit, so nothing behind the gate waits for a slow client.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import traceback
from collections.abc import Callable, Iterable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from snugtune.serve.metrics import Metrics
from snugtune.serve.refusal import Refusal, draining, overloaded, too_large
from snugtune.serve.settings import Limits

log = logging.getLogger("snugtune.serve")

OPEN = frozenset({"/health", "/ping"})
"""What may be asked without the key."""

CROWDED = "snugtune.crowded"
"""In a request's scope: whether more connections are open than may be."""

_METHODS = frozenset({"GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"})

Headers = Iterable[tuple[bytes, bytes]]


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        metrics: Metrics,
        key: bytes | None,
        is_draining: Callable[[], bool],
    ) -> None:
        self._app, self._limits, self._metrics, self._key = app, limits, metrics, key
        self._is_draining = is_draining
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let through, or answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Watched(send)
        body = b""
        try:
            self._check_key(scope)
            self._check_crowd(scope)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                self._check_head(scope)
                body = await self._read(receive)
            await self._app(scope, _replay(body, receive), answer.send)
        except Refusal as refusal:
            await _answer(refusal, scope, answer)
        except Exception as error:
            # Not the error's own message, which may hold something of a text.
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("An unforeseen %s:\n%s", type(error).__name__, where)
            if not answer.status:
                await _answer(
                    Refusal(500, "Backend", "Something went wrong here.", close=True), scope, answer
                )
            else:
                raise
        finally:
            self._buffered -= len(body)
            self._metrics.http.labels(_method(scope), _route(scope), str(answer.status)).inc()

    def _check_key(self, scope: Scope) -> None:
        if self._key is None or scope["path"] in OPEN:
            return
        given = _header(scope["headers"], b"authorization")
        kind, _, key = given.partition(b" ")
        # The comparison takes as long for a wrong key as for the right one.
        if not hmac.compare_digest(key.strip(), self._key) or kind.lower() != b"bearer":
            raise Refusal(
                401, "Unauthorized", "The key is missing or wrong: Authorization: Bearer KEY.",
                close=True, headers={"www-authenticate": "Bearer"},
            )  # fmt: skip

    def _check_crowd(self, scope: Scope) -> None:
        if scope.get(CROWDED) and scope["path"] not in OPEN:
            raise overloaded("Too many connections are open", 1, close=True)

    def _check_head(self, scope: Scope) -> None:
        if self._is_draining():
            raise draining()
        headers = scope["headers"]
        length = _header(headers, b"content-length")
        if length.isdigit() and int(length) > self._limits.payload_limit:
            raise self._too_large()
        kind = _header(headers, b"content-type").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Refusal(415, "Validation", "Content-Type must be application/json.", close=True)

    async def _read(self, receive: Receive) -> bytes:
        """The body, counted in ``_buffered`` until the request is over."""
        parts: list[bytes] = []
        size, ends = 0, time.monotonic() + self._limits.read_timeout_s
        try:
            while True:
                message = await asyncio.wait_for(receive(), max(0.0, ends - time.monotonic()))
                if message["type"] == "http.disconnect":
                    raise Refusal(499, "Backend", "The client has gone.", close=True)
                part = message.get("body", b"")
                parts.append(part)
                size += len(part)
                self._buffered += len(part)
                if size > self._limits.payload_limit:
                    raise self._too_large()
                if self._buffered > self._limits.max_buffered_bytes:
                    raise overloaded("Too many requests are being read", 1, close=True)
                if not message.get("more_body", False):
                    return b"".join(parts)
        except asyncio.TimeoutError:
            self._buffered -= size
            raise Refusal(
                408,
                "Validation",
                f"The body did not arrive within {self._limits.read_timeout_s:g} s.",
                close=True,
            ) from None
        except BaseException:
            self._buffered -= size
            raise

    def _too_large(self) -> Refusal:
        return too_large(f"The body must have at most {self._limits.payload_limit} bytes.", close=True)


class _Watched:
    """Passes an answer on and remembers its status; 0 until it has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body at once, then whatever comes: only the end of the connection can."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _answer(refusal: Refusal, scope: Scope, answer: _Watched) -> None:
    async def nothing() -> Message:
        return {"type": "http.disconnect"}

    await JSONResponse(refusal.body, refusal.status, refusal.headers)(scope, nothing, answer.send)


def _header(headers: Headers, name: bytes) -> bytes:
    return next((value for key, value in headers if key == name), b"")


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else "other"


def _route(scope: Scope) -> str:
    """The route's pattern: addresses as they came would make counters without end."""
    return str(getattr(scope.get("route"), "path", "none"))
