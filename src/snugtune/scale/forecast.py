"""How long a trial will take, and whether there is room for it in what the search may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from snugtune.cost.budget import Allowance
from snugtune.methods import METHODS, MethodName


@dataclass(frozen=True)
class Taken:
    """What a trial took: seconds in training on so many ``epochs``, and ``around`` it."""

    method: MethodName
    around_s: float
    train_s: float
    epochs: float


@dataclass(frozen=True)
class Forecast:
    """Seconds of trials to come, by those that were and, before there is one, by the quote of a fit.

    ``epoch_s`` is that of an epoch per pass of the frozen model that training takes: methods differ in these
    (``methods.py``). ``around_s`` is everything else of a trial, ``finish_s`` what the winner takes at the
    end.
    """

    epoch_s: float
    around_s: float
    finish_s: float

    def trial_s(self, method: MethodName, epochs: float) -> float:
        """A trial of so many epochs; layers that are left out make it shorter."""
        return self.around_s + epochs * self.epoch_s * METHODS[method].passes


def forecast(taken: Sequence[Taken], quoted: dict[str, Any], method: MethodName) -> Forecast:
    """By what was ``taken``, or the quote (``epoch_s``, ``around_s``, ``after_s``) of a fit by ``method``."""
    around_s, epoch_s = quoted["around_s"], quoted["epoch_s"] / METHODS[method].passes
    told = [one for one in taken if one.epochs > 0]
    if told:
        around_s = median(one.around_s for one in told)
        epoch_s = median(one.train_s / one.epochs / METHODS[one.method].passes for one in told)
    return Forecast(epoch_s, around_s, quoted["after_s"])


@dataclass(frozen=True)
class Room:
    """What is left of the ``allowance`` (None: of no end) after ``spent_s``, for trials and the finish."""

    allowance: Allowance | None
    spent_s: float
    forecast: Forecast

    @property
    def left_s(self) -> float:
        """Seconds left for trials."""
        if self.allowance is None:
            return float("inf")
        return self.allowance.seconds - self.spent_s - self.forecast.finish_s

    def fits(self, method: MethodName, epochs: float) -> bool:
        """Whether such a trial would end in time."""
        return self.forecast.trial_s(method, epochs) <= self.left_s
