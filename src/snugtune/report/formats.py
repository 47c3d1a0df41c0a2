"""How numbers and the user's own words are written on the page; a missing value is a dash."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from snugtune.units import duration

NOT_KNOWN = "\N{EN DASH}"
NARROW = "\N{NO-BREAK SPACE}"

SHOWN_CHARACTERS = 90
"""Of a label in a table or list; the whole of it, up to a limit, is shown where a pointer rests on it."""

_TOLD_CHARACTERS = 400
_MONEY_DIGITS = 7  # after the point; less money than that is told as such


def percent(share: Any, digits: int = 1) -> str:
    """A share as ``71.2 %``."""
    return NOT_KNOWN if not _is_number(share) else f"{100 * share:.{digits}f}{NARROW}%"


def points(share: Any) -> str:
    """A difference of shares in percentage points, with its sign."""
    return NOT_KNOWN if not _is_number(share) else f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def number(value: Any, digits: int = 0) -> str:
    """A number with thousands set apart."""
    return NOT_KNOWN if not _is_number(value) else f"{value:,.{digits}f}"


def count(value: Any, one: str, several: str | None = None) -> str:
    """A number of things: ``1 text``, ``2 texts``."""
    return f"{number(value)}{NARROW}{one if value == 1 else several or one + 's'}"


def figure(value: Any) -> str:
    """A number to four significant digits, whatever its size."""
    if not _is_number(value):
        return NOT_KNOWN
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def money(usd: Any) -> str:
    """US dollars: cents, and below one cent as many digits as are needed."""
    if not _is_number(usd):
        return NOT_KNOWN
    if usd >= 0.01 or usd == 0:
        return f"{usd:,.2f}{NARROW}USD"
    digits = 1 - math.floor(math.log10(usd))
    return f"{usd:.{digits}f}{NARROW}USD" if digits <= _MONEY_DIGITS else f"under 0.000001{NARROW}USD"


def between(low: Any, high: Any) -> str:
    """A range of whole numbers: ``6``, ``6 to 9``, ``6 and more``."""
    if not _is_number(high):
        return f"{number(low)} and more"
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def time(seconds: Any) -> str:
    """Seconds as a short text."""
    return NOT_KNOWN if not _is_number(seconds) else duration(seconds).replace(" ", NARROW)


def interval(ends: Any, digits: int = 1) -> str:
    """An interval of shares as ``90.1 to 93.4 %``."""
    if not isinstance(ends, Sequence) or len(ends) != 2 or not all(map(_is_number, ends)):
        return NOT_KNOWN
    return f"{100 * ends[0]:.{digits}f} to {100 * ends[1]:.{digits}f}{NARROW}%"


def probability(p: Any) -> str:
    """A p-value as ``p = 0.03`` or ``p < 0.001``."""
    if not _is_number(p):
        return NOT_KNOWN
    return (f"p < {0.001}" if p < 0.001 else f"p = {p:.2g}").replace(" ", NARROW)


def words(value: Any, most: int = SHOWN_CHARACTERS) -> Markup:
    """A label or text of the user's: escaped, cut, and kept from turning the line around (right to left)."""
    if value is None:
        return Markup(NOT_KNOWN)
    text = " ".join(str(value).split()) or "(empty)"
    if len(text) <= most:
        return Markup("<bdi>{}</bdi>").format(text)
    told = text if len(text) <= _TOLD_CHARACTERS else text[: _TOLD_CHARACTERS - 1] + "…"
    return Markup('<bdi title="{}">{}…</bdi>').format(told, text[: most - 1].rstrip())


def setting(value: Any) -> Markup:
    """A value of the configuration as a person would write it."""
    if value is None:
        return Markup("not set")
    if isinstance(value, bool):
        return Markup("yes" if value else "no")
    if isinstance(value, list | tuple):
        return Markup(", ").join(words(item) for item in value)
    return words(value)


def span(share_low: Any, share_high: Any, share: Any) -> Markup:
    """A tiny picture of a value in 0..1 with its interval, for a table's cell."""
    if not _is_number(share):
        return Markup("")
    known = _is_number(share_low) and _is_number(share_high)
    low, high = (share_low, share_high) if known else (share, share)
    return Markup(
        '<svg class="span" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="rail" d="M0 4H100"/><path class="reach" d="M{100 * low:.0f} 4H{100 * high:.0f}"/>'
        f'<path class="here" d="M{100 * share:.0f} 0V8"/></svg>'
    )


def share_bar(share: Any, kind: str = "fill") -> Markup:
    """A tiny bar filled to a share in 0..1, for a table's cell."""
    if not _is_number(share):
        return Markup("")
    width = 100 * min(1.0, max(0.0, share))
    return Markup(
        '<svg class="span" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="rail" width="100" height="8"/><rect class="{escape(kind)}" width="{width:.1f}" '
        'height="8"/></svg>'
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
