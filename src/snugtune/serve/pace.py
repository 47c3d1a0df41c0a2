"""How fast a model works at present, to tell how long the next text would wait."""

from __future__ import annotations

import math

MEMORY_S = 5.0
"""Busy seconds after which a batch counts 1/e: soon enough to see that another program has come."""


class Pace:
    """Tokens a second while there was work, newest batches first.

    Tokens and seconds are summed apart and forgotten alike, so that a large batch counts by the time it
    took and many small ones do not hide it.

    Args:
        tokens_per_s: what is known before the first batch.
    """

    def __init__(self, tokens_per_s: float | None) -> None:
        self._tokens = tokens_per_s or 0.0
        self._seconds = 1.0 if tokens_per_s else 0.0

    def add(self, tokens: int, busy_s: float) -> None:
        """Another batch, with the seconds since the last one if it had waited for that."""
        keep = math.exp(-busy_s / MEMORY_S)
        self._tokens = keep * self._tokens + tokens
        self._seconds = keep * self._seconds + busy_s

    def seconds(self, tokens: int) -> float:
        """For so many tokens; 0 where nothing is known."""
        return tokens * self._seconds / self._tokens if self._tokens else 0.0
