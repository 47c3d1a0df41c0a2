"""Where a worker is in the job, and how fast, as far as it tells. Needs no torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from snugtune.progress import Observer, PlanInfo, QuoteInfo, ResumedInfo, StepInfo


@dataclass(frozen=True)
class Place:
    """Where a worker was: the phase, the rows of it that were done, of how many, and the step told last."""

    phase: str | None = None
    done: int = 0
    total: int = 0
    step: int = 0

    def is_near(self, other: Place) -> bool:
        """The same, but for how late a device tells of its errors and how micro-batches are cut."""
        near_rows = abs(self.done - other.done) <= max(self.total, other.total) / 20
        return self.phase == other.phase and abs(self.step - other.step) <= 1 and near_rows


class Course(Observer):
    """What is known of the run from what its workers tell: where this one is, and what all of them said."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.steps: int | None = None
        self.begin()

    def begin(self) -> None:
        """A new worker."""
        self.place = Place()
        self.plan: PlanInfo | None = None
        self.quote: QuoteInfo | None = None
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None

    def phase(self, name: str, total: int | None = None) -> None:
        """Noted."""
        self.place = Place(name, 0, total or 0, self.place.step)

    def advance(self, done: int) -> None:
        """Noted."""
        self.place = replace(self.place, done=self.place.done + done)

    def on_plan(self, info: PlanInfo) -> None:
        """Noted."""
        self.plan = info

    def on_quote(self, info: QuoteInfo) -> None:
        """Noted."""
        self.quote = info

    def on_resumed(self, info: ResumedInfo) -> None:
        """Noted."""
        self.place, self.steps = replace(self.place, step=info.step), info.steps

    def on_step(self, info: StepInfo) -> None:
        """Noted."""
        self.place, self.steps = replace(self.place, step=info.step), info.steps
        self._last = (info.step, self._clock())
        self._first = self._first or self._last

    def left_s(self) -> float | None:
        """Of training, at this worker's own pace; None before its second step and after its last."""
        if self._first is None or self._last is None or self.steps is None:
            return None
        taken, took_s = self._last[0] - self._first[0], self._last[1] - self._first[1]
        left = self.steps - self._last[0]
        return took_s / taken * left if taken > 0 and left > 0 else None
