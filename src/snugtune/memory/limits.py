"""Whether a fit by a plan keeps to the user's limits of time and money, and if not, what would."""

from __future__ import annotations

import math
from dataclasses import dataclass

from snugtune.units import duration


@dataclass(frozen=True)
class Limits:
    """The most a run may take; None for no limit."""

    max_hours: float | None = None
    max_cost_usd: float | None = None

    def __bool__(self) -> bool:
        return self.max_hours is not None or self.max_cost_usd is not None

    def keeps(self, time_s: float | None, cost_usd: float | None) -> bool | None:
        """Whether a run of such time and cost stays within; None if a figure that is needed is not known."""
        found: list[bool | None] = []
        if self.max_hours is not None:
            found.append(None if time_s is None else time_s <= 3600 * self.max_hours)
        if self.max_cost_usd is not None:
            found.append(None if cost_usd is None else cost_usd <= self.max_cost_usd)
        return False if False in found else None if None in found else True

    def __str__(self) -> str:
        parts = []
        if self.max_hours is not None:
            parts.append(duration(3600 * self.max_hours))
        if self.max_cost_usd is not None:
            parts.append(f"{self.max_cost_usd:.2f} USD")
        return " and ".join(parts)


@dataclass(frozen=True)
class Way:
    """One thing that would keep to the limits: ``change``, and its ``price`` in words (empty: none). Time and
    cost are those of a whole fit.
    """

    change: str
    price: str
    time_s: float
    cost_usd: float | None


@dataclass(frozen=True)
class Verdict:
    """The limits, whether the plan keeps to them (None: not known), why not, and ``ways`` that would."""

    max_hours: float | None
    max_cost_usd: float | None
    kept: bool | None
    why: str
    ways: tuple[Way, ...] = ()


NO_TEXTS = "without a table or --rows"
DOES_NOT_FIT = "because it does not fit"
NO_RATES = "because the card's speed is not known"
NO_PRICE = "without --price: no price is known for it"
"""Why it cannot be told whether limits are kept."""


def judge(
    limits: Limits, time_s: float | None, cost_usd: float | None, *, train_s: float | None, untold: str
) -> Verdict:
    """The verdict on a fit of such time and cost, ``train_s`` of it training; ``untold`` says why no time is
    known, where none is.
    """
    kept = limits.keeps(time_s, cost_usd)
    return Verdict(
        limits.max_hours, limits.max_cost_usd, kept, _why(limits, kept, time_s, cost_usd, train_s, untold)
    )


def fewer_epochs(
    limits: Limits, epochs: float, train_s: float, beside_s: float, per_hour_usd: float | None
) -> Way | None:
    """Whole epochs that stay within the limits, everything ``beside_s`` training as before; None if not even
    one does.
    """
    for possible in range(math.ceil(epochs) - 1, 0, -1):
        time_s = beside_s + train_s * possible / epochs
        cost = None if per_hour_usd is None else time_s / 3600 * per_hour_usd
        if limits.keeps(time_s, cost):
            price = "the model sees the texts fewer times and learns less"
            return Way(f"{possible} of the {epochs:g} epochs", price, time_s, cost)
    return None


def _why(
    limits: Limits, kept: bool | None, time_s: float | None, cost_usd: float | None, train_s: float | None,
    untold: str,
) -> str:  # fmt: skip
    if time_s is None or kept is None:
        return f"Whether it keeps to {limits} cannot be told {untold if time_s is None else NO_PRICE}."
    told = f"{duration(time_s)}, {duration(train_s or 0.0)} of it training"
    told += "" if cost_usd is None else f", {cost_usd:.2f} USD"
    return f"It keeps to {limits}: {told}." if kept else f"It does not keep to {limits}: it takes {told}."
