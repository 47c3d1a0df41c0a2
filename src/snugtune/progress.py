"""What a long job tells whoever watches it. The library never prints: the command line draws these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepInfo:
    """The state of training after one optimiser step."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    elapsed_s: float
    remaining_s: float


@dataclass(frozen=True)
class ValidationInfo:
    """One look at the validation part."""

    step: int
    epoch: float
    score: float
    log_loss: float
    best: bool


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
