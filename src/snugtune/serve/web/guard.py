"""Who may ask: every request to the app passes here first, Gradio's and our own alike.

Without a password the app answers on the loopback address only, and only to that name: a page elsewhere in
the same browser could otherwise reach it through a name of its own that it points to 127.0.0.1 (DNS
rebinding). With one, a signed cookie is asked for. Requests that change something must come from the
app's own pages (their ``Origin``), and our own take no more than `MOST_BYTES`.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "snugtune"
SESSION_S = 12 * 3600
"""How long a login holds."""

MOST_BYTES = 1 << 20
"""Of a request to a page of our own; uploads go to Gradio, which has a limit of its own."""

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN_TO_ALL = frozenset({"/login", "/static/app.css"})
OWN_PAGES = ("/login", "/review", "/report", "/static")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Lock:
    """A password and the cookies that prove that it was given; the key dies with the process."""

    password: str
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def opens(self, given: str) -> bool:
        """Whether it is the password, in a time that does not tell how much of it is right."""
        return hmac.compare_digest(_digest(given), _digest(self.password))

    def token(self, *, now: float | None = None) -> str:
        """The value of a cookie that holds for `SESSION_S` seconds."""
        until = str(int((time.time() if now is None else now) + SESSION_S))
        return f"{until}.{self._signature(until)}"

    def accepts(self, token: str) -> bool:
        """Whether the cookie is one of ours and still holds."""
        until, _, signature = token.partition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(until).encode()):
            return False
        return until.isdecimal() and int(until) > time.time()

    def _signature(self, until: str) -> str:
        return hmac.new(self.key, until.encode(), hashlib.sha256).hexdigest()


class Guard:
    """The middleware. ``hosts``: names the app answers to, None for any. ``framed_by``: who may embed it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        lock: Lock | None = None,
        hosts: Collection[str] | None = LOOPBACK,
        framed_by: str = "'none'",
    ) -> None:
        self._app, self._lock, self._hosts, self._framed_by = app, lock, hosts, framed_by

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with the headers that every answer gets."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope, Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, self._with_headers(send))
        elif scope["type"] == "http":
            await refusal(scope, receive, self._with_headers(send))
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        if self._hosts is not None and _name(headers.get("host", "")) not in self._hosts:
            return _told(400, "This app answers to localhost only; open the address it was started with.")
        method, path = scope.get("method", "GET"), scope["path"]
        if method not in SAFE_METHODS:
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != headers.get("host"):
                return _told(403, "This request did not come from a page of this app.")
            if path.startswith(OWN_PAGES) and not _is_short(headers):
                return _told(413, f"A request may have {MOST_BYTES:,} bytes and must say how many it has.")
        if self._lock is None or path in OPEN_TO_ALL or self._lock.accepts(_cookie(headers)):
            return None
        if method == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse(f"/login?next={quote(path)}", status_code=303)
        return _told(401, "Log in first.")

    def _with_headers(self, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
                headers["X-Robots-Tag"] = "noindex"
                headers.append("Content-Security-Policy", f"frame-ancestors {self._framed_by}")
            await send(message)

        return sending


def _is_short(headers: Headers) -> bool:
    length = headers.get("content-length", "")
    return length.isdecimal() and int(length) <= MOST_BYTES


def _name(host: str) -> str:
    """The host without its port."""
    return urlsplit(f"//{host}").hostname or ""


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _told(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status_code=status)


def own_page_policy(**more: Any) -> str:
    """The policy of our own pages: their script and style come from here, and nothing else from anywhere."""
    sources = {
        "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "connect-src": "'self'",
        "img-src": "data:", "base-uri": "'none'", "form-action": "'self'", **more,
    }  # fmt: skip
    return "; ".join(f"{name} {source}" for name, source in sources.items())
