"""The most a run may take, and when training must end so that the rest still fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from snugtune.cost.rates import Rates
from snugtune.errors import UserInputError
from snugtune.units import duration


@dataclass(frozen=True)
class Allowance:
    """The tightest of the user's limits, as seconds of the whole run, and in words."""

    seconds: float
    told: str


def allowance(
    rates: Rates, *, max_time_s: float | None, max_cost_usd: float | None, max_units: float | None
) -> Allowance | None:
    """How long a run may take by the limits that are set; None without any.

    Raises:
        UserInputError: a limit is in a currency of which no rate is known here.
    """
    found = []
    if max_time_s is not None:
        found.append(Allowance(max_time_s, duration(max_time_s)))
    if max_cost_usd is not None:
        per_hour = rates.price.usd_per_hour if rates.price else None
        if per_hour is None:
            raise UserInputError(
                "max_cost_usd needs a price, and none is known for this machine; give --price (USD per hour)."
            )
        if per_hour > 0:
            told = f"{max_cost_usd:.2f} USD at {per_hour:.2f} USD an hour"
            found.append(Allowance(3600 * max_cost_usd / per_hour, told))
    if max_units is not None:
        per_hour = rates.units_per_hour
        if per_hour is None:
            raise UserInputError(
                "max_units needs a GPU: units are counted by its type or its memory; give --max-time instead."
            )
        told = f"{max_units:g} compute units at {per_hour:.2f} an hour"
        found.append(Allowance(3600 * max_units / per_hour, told))
    return min(found, key=lambda one: one.seconds, default=None)


class Budget:
    """Says when training must end for the run to stay within its allowance.

    Kept free are: one more step (the longest so far), one look at validation, and what follows on training.

    Args:
        allowance: of the whole run.
        elapsed: seconds that the run has taken so far, with whatever came before training.
        after_s: expected seconds of what follows on training, apart from the scoring of held-out rows.
        looks_after: that scoring, in looks at validation: 2.0 takes as long as two of them.
        whole_look_s: expected seconds of such a look; those while training may be shorter.
    """

    def __init__(
        self,
        allowance: Allowance,
        *,
        elapsed: Callable[[], float],
        after_s: float,
        looks_after: float,
        whole_look_s: float = 0.0,
    ) -> None:
        self.allowance = allowance
        self.after_s, self.looks_after, self.whole_look_s = after_s, looks_after, whole_look_s
        self._elapsed = elapsed
        self._longest_step_s, self._look_s = 0.0, 0.0
        self._since: float | None = None

    @property
    def reserve_s(self) -> float:
        """Seconds kept for what is left to do should training end now."""
        scoring_s = max(self._look_s, self.whole_look_s) * self.looks_after
        return self._look_s + scoring_s + self.after_s

    def looked(self, seconds: float) -> None:
        """A look at validation took so long."""
        self._look_s = max(self._look_s, seconds)
        self._since = None

    def exhausted(self) -> str | None:
        """Asked after each step: why training must end now, None if there is time for another step."""
        now = self._elapsed()
        if self._since is not None:
            self._longest_step_s = max(self._longest_step_s, now - self._since)
        self._since = now
        if now + self._longest_step_s + self.reserve_s < self.allowance.seconds:
            return None
        return (
            f"The budget of {self.allowance.told} is used up ({duration(now)} so far, about "
            f"{duration(self.reserve_s)} left for evaluating and saving), so training ends here; "
            "the best weights so far are kept."
        )
