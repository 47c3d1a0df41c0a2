"""Units: bytes to GiB, seconds to words. Names elsewhere carry the unit (``peak_gib``, ``train_s``)."""

from __future__ import annotations

import re

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


_UNIT_SECONDS = {"h": 3600.0, "min": 60.0, "m": 60.0, "s": 1.0}


def parse_duration(text: str) -> float:
    """Seconds from text such as ``90min``, ``1.5 h``, ``1h30min`` or ``45s``.

    Raises:
        ValueError: it is no time span, or has no unit.
    """
    number = r"\s*(\d+(?:\.\d+)?)\s*(h|min|m|s)\s*"
    parts = re.findall(number, text.lower())
    if not parts or not re.fullmatch(f"(?:{number})+", text.lower()):
        raise ValueError("a time span needs its unit, as in 90min, 1.5h or 1h30min")
    return sum(float(value) * _UNIT_SECONDS[unit] for value, unit in parts)
