"""Connections that cost nothing for long: clients who send or take too slowly are let go."""

from __future__ import annotations

import asyncio
from asyncio.events import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from snugtune.serve.gate import CROWDED
from snugtune.serve.settings import Limits

MAX_HEADER_BYTES = 65_536
"""Address and headers together; uvicorn's parser by itself takes any number."""


def protocol_for(limits: Limits) -> type[asyncio.Protocol]:
    """The HTTP/1.1 of uvicorn with ``limits`` of time and size where it has none."""

    class Protocol(_Impatient):
        patience_s = limits.read_timeout_s
        max_connections = limits.max_connections

    return Protocol


class _Impatient(HttpToolsProtocol):
    """Clocks until headers are complete and until an answer is taken; uvicorn has one between requests."""

    patience_s: float
    max_connections: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._for_headers: TimerHandle | None = None
        self._for_writing: TimerHandle | None = None
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle:
            self._expect_headers()
            self._header_bytes += len(data)
        super().data_received(data)
        if idle and self._for_headers is not None and self._header_bytes > MAX_HEADER_BYTES:
            self._stop_clocks()
            self.send_400_response("The headers are too large.")

    def on_headers_complete(self) -> None:
        # They may have come in one piece with the end of them, before anybody could count.
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEADER_BYTES:
            raise ValueError("The headers are too large.")  # 400, and the connection is closed
        if self._for_headers is not None:
            self._for_headers.cancel()
            self._for_headers = None
        self._header_bytes = 0
        # uvicorn's own limit answers 503 without a word of when to come back, the check of health, too.
        self.scope[CROWDED] = len(self.connections) > self.max_connections  # type: ignore[literal-required]
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        if self.cycle.more_body:
            # Answered before its body had arrived: the rest would be read for nothing.
            self.transport.close()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._for_writing is None:
            self._for_writing = self.loop.call_later(self.patience_s, self._abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._for_writing is not None:
            self._for_writing.cancel()
            self._for_writing = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clocks()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        if self._for_headers is None:
            self._for_headers = self.loop.call_later(self.patience_s, self._abort)

    def _stop_clocks(self) -> None:
        for clock in (self._for_headers, self._for_writing):
            if clock is not None:
                clock.cancel()
        self._for_headers = self._for_writing = None

    def _abort(self) -> None:
        self._stop_clocks()
        self.transport.abort()
