"""What a long job tells whoever watches it. The library never prints: the command line draws these."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StepInfo:
    """The state of training after one optimiser step.

    ``peak_gib`` is its peak memory so far if measured, ``memory`` all that a line of ``memory.jsonl`` says.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    elapsed_s: float
    remaining_s: float
    peak_gib: float | None = None
    memory: dict[str, float] | None = None


@dataclass(frozen=True)
class ValidationInfo:
    """One look at the validation part."""

    step: int
    epoch: float
    score: float
    log_loss: float
    best: bool


@dataclass(frozen=True)
class ResumedInfo:
    """Where training stands after a process that ended early, or after it went back some steps.

    ``metrics`` and ``memory`` are all lines noted until then: what was told of later steps no longer holds.
    """

    step: int
    steps: int
    elapsed_s: float
    metrics: list[dict[str, Any]]
    memory: list[dict[str, Any]]


@dataclass(frozen=True)
class PlanInfo:
    """How much memory training is planned to take at most, and how much there is, on the device it is for."""

    peak_gib: float
    capacity_gib: float
    fits: bool


@dataclass(frozen=True)
class QuoteInfo:
    """What a run will take from here on, before it trains.

    ``time_s`` of all, ``train_s`` of training, ``epoch_s`` of one epoch with its look at validation,
    ``after_s`` of what follows on training. ``price`` is that of an hour, with its source, and
    ``units_per_hour`` compute units; None where not known.
    """

    time_s: float
    train_s: float
    epoch_s: float
    after_s: float
    price: dict[str, Any] | None = None
    units_per_hour: float | None = None


@dataclass(frozen=True)
class TrainedInfo:
    """How training ended, after ``step`` of ``steps``; its best weights are committed, nothing is judged."""

    step: int
    steps: int
    train_s: float
    interrupted: bool = False
    stopped_early: bool = False
    over_budget: bool = False
    diverged: bool = False


class Observer:
    """Listens to a job; every method may be left as it is."""

    def say(self, sentence: str) -> None:
        """A fact worth a line: what was counted, chosen or warned of."""

    def phase(self, name: str, total: int | None = None) -> None:
        """A new phase begins, of ``total`` units if known."""

    def advance(self, done: int) -> None:
        """``done`` units of the phase are finished."""

    def on_step(self, info: StepInfo) -> None:
        """After each optimiser step."""

    def on_validation(self, info: ValidationInfo) -> None:
        """After each look at the validation part."""

    def on_resumed(self, info: ResumedInfo) -> None:
        """Before training goes on from where it was."""

    def on_plan(self, info: PlanInfo) -> None:
        """Before training, and before the model is on its device."""

    def on_quote(self, info: QuoteInfo) -> None:
        """Before training, if what it will take is known."""

    def on_trained(self, info: TrainedInfo) -> None:
        """After training, before anything is judged or saved."""

    def at_work(self, is_at_work: bool) -> None:
        """The device is asked for a piece of work, or has done it; called at each micro-batch, so be fast."""


class Together(Observer):
    """Passes everything on to several observers, in their order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def say(self, sentence: str) -> None:
        """Passed on."""
        for observer in self._observers:
            observer.say(sentence)

    def phase(self, name: str, total: int | None = None) -> None:
        """Passed on."""
        for observer in self._observers:
            observer.phase(name, total)

    def advance(self, done: int) -> None:
        """Passed on."""
        for observer in self._observers:
            observer.advance(done)

    def on_step(self, info: StepInfo) -> None:
        """Passed on."""
        for observer in self._observers:
            observer.on_step(info)

    def on_validation(self, info: ValidationInfo) -> None:
        """Passed on."""
        for observer in self._observers:
            observer.on_validation(info)

    def on_resumed(self, info: ResumedInfo) -> None:
        """Passed on."""
        for observer in self._observers:
            observer.on_resumed(info)

    def on_plan(self, info: PlanInfo) -> None:
        """Passed on."""
        for observer in self._observers:
            observer.on_plan(info)

    def on_quote(self, info: QuoteInfo) -> None:
        """Passed on."""
        for observer in self._observers:
            observer.on_quote(info)

    def on_trained(self, info: TrainedInfo) -> None:
        """Passed on."""
        for observer in self._observers:
            observer.on_trained(info)

    def at_work(self, is_at_work: bool) -> None:
        """Passed on."""
        for observer in self._observers:
            observer.at_work(is_at_work)


class PhaseClock(Observer):
    """Passes everything on to an observer and keeps the time that each phase takes."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._seconds: dict[str, float] = {}
        self._phase: str | None = None
        self._started = self._since = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """Seconds by phase so far, and ``total``."""
        self._close()
        return {**self._seconds, "total": self.elapsed_s}

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def phase(self, name: str, total: int | None = None) -> None:
        """Close the phase before and open ``name``."""
        self._close()
        self._phase = name
        self._observer.phase(name, total)

    def say(self, sentence: str) -> None:
        """Passed on."""
        self._observer.say(sentence)

    def advance(self, done: int) -> None:
        """Passed on."""
        self._observer.advance(done)

    def on_step(self, info: StepInfo) -> None:
        """Passed on."""
        self._observer.on_step(info)

    def on_validation(self, info: ValidationInfo) -> None:
        """Passed on."""
        self._observer.on_validation(info)

    def on_resumed(self, info: ResumedInfo) -> None:
        """Passed on."""
        self._observer.on_resumed(info)

    def on_plan(self, info: PlanInfo) -> None:
        """Passed on."""
        self._observer.on_plan(info)

    def on_quote(self, info: QuoteInfo) -> None:
        """Passed on."""
        self._observer.on_quote(info)

    def on_trained(self, info: TrainedInfo) -> None:
        """Passed on."""
        self._observer.on_trained(info)

    def at_work(self, is_at_work: bool) -> None:
        """Passed on."""
        self._observer.at_work(is_at_work)

    def _close(self) -> None:
        now = time.perf_counter()
        if self._phase is not None:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._since = now
