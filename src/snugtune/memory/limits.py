"""Whether a plan keeps to the user's limits of time and money, and if not, what would."""

from __future__ import annotations

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

    def share(self, time_s: float, cost_usd: float | None) -> float:
        """The share of the run that stays within: 0.5 for a run that takes twice what it may."""
        shares = []
        if self.max_hours is not None and time_s > 0:
            shares.append(3600 * self.max_hours / time_s)
        if self.max_cost_usd is not None and cost_usd:
            shares.append(self.max_cost_usd / cost_usd)
        return min(shares, default=1.0)

    def __str__(self) -> str:
        parts = []
        if self.max_hours is not None:
            parts.append(duration(3600 * self.max_hours))
        if self.max_cost_usd is not None:
            parts.append(f"{self.max_cost_usd:.2f} USD")
        return " and ".join(parts)


@dataclass(frozen=True)
class Way:
    """One thing that would keep to the limits: ``change``, and its ``price`` in words (empty: none)."""

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


def judge(limits: Limits, time_s: float | None, cost_usd: float | None) -> Verdict:
    """The verdict on a plan of such time and cost."""
    kept = limits.keeps(time_s, cost_usd)
    return Verdict(limits.max_hours, limits.max_cost_usd, kept, _why(limits, kept, time_s, cost_usd))


def fewer_epochs(limits: Limits, epochs: float, time_s: float, cost_usd: float | None) -> Way | None:
    """Whole epochs that stay within the limits; None if not even one does."""
    share = limits.share(time_s, cost_usd)
    possible = int(epochs * share)
    if possible < 1 or possible >= epochs:
        return None
    left = possible / epochs
    return Way(
        f"{possible} of the {epochs:g} epochs", "the model sees the texts fewer times and learns less",
        time_s * left, None if cost_usd is None else cost_usd * left,
    )  # fmt: skip


def _why(limits: Limits, kept: bool | None, time_s: float | None, cost_usd: float | None) -> str:
    if kept is None:
        missing = (
            "without a table or --rows" if time_s is None else "without --price: no price is known for it"
        )
        return f"Whether it keeps to {limits} cannot be told {missing}."
    told = f"{duration(time_s or 0.0)}" + ("" if cost_usd is None else f", {cost_usd:.2f} USD")
    return f"It keeps to {limits}: {told}." if kept else f"It does not keep to {limits}: it takes {told}."
