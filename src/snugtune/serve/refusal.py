"""A request, or a text of one, that gets no answer: status, kind and sentence, as they go out."""

from __future__ import annotations

from typing import Literal

from snugtune.errors import SnugtuneError

Kind = Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty", "Unauthorized"]
"""``error_type`` as text-embeddings-inference writes it (``router/src/lib.rs``); the last is ours: it answers
a wrong key without a body."""


class Refusal(SnugtuneError):  # noqa: N818  # it is an answer
    """Answered with ``status`` and ``{"error": sentence, "error_type": kind}``.

    The sentence never holds anything of a text. ``retry_after_s`` goes out as a header; with ``close`` the
    connection ends, because the rest of the body is not read.
    """

    def __init__(
        self,
        status: int,
        kind: Kind,
        sentence: str,
        *,
        retry_after_s: int | None = None,
        close: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(sentence)
        self.status, self.kind, self.sentence = status, kind, sentence
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(retry_after_s)
        if close:
            self.headers["connection"] = "close"

    @property
    def body(self) -> dict[str, str]:
        """As it goes out."""
        return {"error": self.sentence, "error_type": self.kind}


def overloaded(sentence: str, retry_after_s: int, *, close: bool = False) -> Refusal:
    """429: come back later."""
    return Refusal(429, "Overloaded", sentence, retry_after_s=retry_after_s, close=close)


def failed(sentence: str) -> Refusal:
    """424: taken on, and not computed."""
    return Refusal(424, "Backend", sentence)


def too_large(sentence: str, *, close: bool = False) -> Refusal:
    """413: beyond a limit."""
    return Refusal(413, "Validation", sentence, close=close)


def invalid(sentence: str, status: int = 422) -> Refusal:
    """422 (or ``status``): not a request of this kind."""
    return Refusal(status, "Validation", sentence)


def draining() -> Refusal:
    """503: the server is about to end."""
    return Refusal(503, "Unhealthy", "This server is shutting down.", retry_after_s=1, close=True)
