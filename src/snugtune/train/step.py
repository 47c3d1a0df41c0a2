"""One optimiser step: its examples, however they are cut, give one loss, one gradient, one update.

The functions here never ask where they run. On the meta device they compute no numbers and still allocate
every tensor a real step would, which is how memory is predicted; nothing in them may read a value back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes: the model's ``inputs``, (B, L) each, and class ids ``target`` (B,)."""

    inputs: dict[str, Tensor]
    target: Tensor


def accumulate_gradients(
    model: nn.Module,
    micro_batches: Iterable[MicroBatch],
    step_examples: int,
    *,
    autocast: Autocast,
    backward: Callable[[Tensor], None],
    label_smoothing: float = 0.0,
) -> Tensor:
    """The mean cross-entropy (a scalar tensor) over a step of ``step_examples``, each part sent ``backward``.

    A micro-batch contributes its sum divided by the step's own count, so the cut changes neither loss nor
    gradient.
    """
    losses = []
    for batch in micro_batches:
        with autocast():
            logits = model(**batch.inputs).logits
        summed = cross_entropy(logits.float(), batch.target, reduction="sum", label_smoothing=label_smoothing)
        loss = summed / step_examples
        backward(loss)
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def clip_gradients(model: nn.Module, max_grad_norm: float) -> Tensor:
    """Scale the gradients to a norm of at most ``max_grad_norm``; returns the norm before, a scalar."""
    return clip_grad_norm_([p for p in model.parameters() if p.requires_grad], max_grad_norm)
