"""The weights that scored best on validation, and when to stop waiting for better ones."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from snugtune.memory.guard import Guard
from snugtune.model.adapter import load_trainable_state, trainable_state


class BestKeeper:
    """Keeps the weights that scored best; ties go to the lower log loss.

    Patience counts looks without a gain over the best *trained* score: training often falls below a good
    probe start first and passes it later.
    """

    def __init__(self, model: nn.Module, patience: int | None, guard: Guard) -> None:
        self.model, self.patience, self.guard = model, patience, guard
        self.score, self.log_loss, self.step = -math.inf, math.inf, 0
        self.trained_score, self.since = -math.inf, 0
        self.state: dict[str, Tensor] | None = None

    def offer(self, score: float, log_loss: float, step: int) -> bool:
        """Enter a look at validation; whether it is the best so far, whose weights are kept."""
        better = (score, -log_loss) > (self.score, -self.log_loss)
        if better:
            self.score, self.log_loss, self.step = score, log_loss, step
            self.guard.again(self._copy, during="keeping the best weights")
        if step > 0:
            self.since = 0 if score > self.trained_score else self.since + 1
            self.trained_score = max(score, self.trained_score)
        return better

    def _copy(self) -> None:
        self.state = trainable_state(self.model)

    @property
    def exhausted(self) -> bool:
        """Whether so many looks as patience allows brought nothing."""
        return self.patience is not None and self.since >= self.patience

    def scalars(self) -> dict[str, Any]:
        """All but the weights, for a committed state."""
        names = ("score", "log_loss", "step", "trained_score", "since")
        return {name: getattr(self, name) for name in names}

    def load(self, scalars: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Go on from what ``scalars`` returned and the best weights then (none: empty)."""
        for name, value in scalars.items():
            setattr(self, name, value)
        self.state = weights or None

    def restore(self) -> None:
        """Put the best weights into the model."""
        if self.state is not None:
            load_trainable_state(self.model, self.state)
