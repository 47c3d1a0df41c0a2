"""One optimiser step: its examples, however they are cut, give one loss, one gradient, one update.

The functions here never ask where they run. On the meta device they compute no numbers and still allocate
every tensor a real step would, which is how memory is predicted; nothing in them may read a value back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.utils import clip_grad_norm_

from snugtune.train.forward import Inputs, classify

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes: ``inputs``, (B, L) each or packed, and the ``target``.

    That is class ids (B,) or, where a text may have several labels, (B, K) in float32: 1 for each of them.
    ``weight`` (B,) is what each row's loss counts; None where that is one for all. ``logit_shift`` (K,) is
    added to the logits before the loss is taken; None for nothing.
    """

    inputs: Inputs
    target: Tensor
    weight: Tensor | None = None
    logit_shift: Tensor | None = None


def accumulate_gradients(
    model: nn.Module,
    micro_batches: Iterable[MicroBatch],
    step_examples: int,
    *,
    autocast: Autocast,
    backward: Callable[[Tensor], None],
    label_smoothing: float = 0.0,
) -> Tensor:
    """The mean loss (a scalar tensor) over a step of ``step_examples``, each part sent ``backward``.

    A micro-batch contributes its sum divided by the step's own count, so the cut changes neither loss nor
    gradient.
    """
    parameters = trained_parameters(model)
    losses = [
        add_gradients(
            model, batch, step_examples, autocast=autocast, backward=backward,
            label_smoothing=label_smoothing, parameters=parameters,
        )
        for batch in micro_batches
    ]  # fmt: skip
    return torch.stack(losses).sum()


def add_gradients(
    model: nn.Module,
    batch: MicroBatch,
    step_examples: int,
    *,
    autocast: Autocast,
    backward: Callable[[Tensor], None],
    label_smoothing: float = 0.0,
    parameters: list[nn.Parameter] | None = None,
) -> Tensor:
    """Add what one micro-batch contributes to the step's gradients; returns its part of the loss, a scalar.

    All of it or nothing: after an error the gradients are those of the micro-batches before. ``parameters``
    are those that are trained; to find them takes a walk through the model.
    """
    parameters = trained_parameters(model) if parameters is None else parameters
    with gradients_apart(parameters):
        with autocast():
            logits = classify(model, batch.inputs)
        loss = _loss_of(logits.float(), batch, label_smoothing) / step_examples
        # Before the gradients are added: what could still fail after that would have to take them back.
        part = loss.detach()
        backward(loss)
    return part


def _loss_of(logits: Tensor, batch: MicroBatch, label_smoothing: float) -> Tensor:
    """The weighted sum of the rows' losses, from logits (B, K)."""
    if batch.logit_shift is not None:
        logits = logits + batch.logit_shift
    return summed_loss(logits, batch.target, batch.weight, label_smoothing)


def summed_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """The sum over rows, each by its ``weight`` (B,), of what ``logits`` (B, K) lose against ``target``.

    Of class ids (B,) it is the cross-entropy. Of label sets (B, K) it is the binary cross-entropy, averaged
    over the labels of a text as in Transformers' ``multi_label_classification``; smoothing draws each target
    towards a half.
    """
    reduction = "sum" if weight is None else "none"
    if target.dim() == 1:
        lost = cross_entropy(logits, target, reduction=reduction, label_smoothing=label_smoothing)
        return lost if weight is None else (lost * weight).sum()
    smooth = target * (1 - label_smoothing) + label_smoothing / 2 if label_smoothing else target
    lost = binary_cross_entropy_with_logits(logits, smooth, reduction=reduction) / logits.shape[1]
    return lost if weight is None else (lost * weight[:, None]).sum()


@contextmanager
def gradients_apart(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Gradients made inside are added to the earlier ones at the end; after an error they are dropped.

    A backward pass that breaks off leaves some gradients complete and others not; kept apart, none of it
    reaches those of the micro-batches before.
    """
    earlier = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
        _add_in_place(earlier, [parameter.grad for parameter in parameters])
    except BaseException:
        for parameter, gradient in zip(parameters, earlier, strict=True):
            parameter.grad = gradient
        raise
    for parameter, gradient in zip(parameters, earlier, strict=True):
        if gradient is not None:
            parameter.grad = gradient


def _add_in_place(earlier: list[Tensor | None], new: list[Tensor | None]) -> None:
    # One operator that allocates nothing: it takes place as a whole or not at all.
    pairs = [(a, b) for a, b in zip(earlier, new, strict=True) if a is not None and b is not None]
    if pairs:
        torch._foreach_add_([a for a, _ in pairs], [b for _, b in pairs])


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes; its frozen word embedding may lie on the host."""
    return trained_parameters(model)[0].device


def drop_gradients(parameters: list[nn.Parameter]) -> None:
    """Begin a step without gradients; no operator runs for that, so nothing can fail."""
    for parameter in parameters:
        parameter.grad = None


def clip_gradients(parameters: list[nn.Parameter], max_grad_norm: float) -> Tensor:
    """Scale the gradients to a norm of at most ``max_grad_norm``; returns the norm before, a scalar."""
    return clip_grad_norm_(parameters, max_grad_norm)
