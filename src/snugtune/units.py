"""Units: bytes to GiB, seconds to words. Names elsewhere carry the unit (``peak_gib``, ``train_s``)."""

from __future__ import annotations

GIB = 2**30


def gib(n_bytes: float) -> float:
    """Bytes as GiB (2**30 bytes)."""
    return n_bytes / GIB


def duration(seconds: float) -> str:
    """Seconds as a short text: ``8.2 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
