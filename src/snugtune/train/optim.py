"""Optimiser and learning-rate schedule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import get_scheduler

from snugtune.config import FitConfig
from snugtune.methods import METHODS

HEAD_LEARNING_RATE = 5e-4
"""Of a head that starts from a probe (see ``decisions/0006-learning-rates.md``)."""

UNPROBED_FACTOR = 2.0
"""By which adapters and heads are faster where the head starts at random: LoRA and head at 1e-3. With 1e-4
three epochs of 3,000 short texts in 77 classes reached 28 % accuracy, with rates of this size above 90 %."""


def learning_rates(config: FitConfig) -> tuple[float, float]:
    """The adapter's (or backbone's) and the head's learning rate."""
    factor = 1.0 if config.probe_start else UNPROBED_FACTOR
    own = METHODS[config.method].learning_rate * (1.0 if config.method == "full" else factor)
    return config.learning_rate or own, config.head_learning_rate or factor * HEAD_LEARNING_RATE


def make_optimizer(model: nn.Module, config: FitConfig, head_names: tuple[str, ...]) -> torch.optim.AdamW:
    """AdamW with one group for adapter or backbone and one for the head.

    With ``loraplus_lr_ratio``, LoRA's B have a group of their own whose rate is so many times A's (Hayou et
    al. 2024, arXiv:2402.12354, section 4).

    It is the fused one: a single kernel for all parameters of a group, without temporaries, and one that
    reads neither step number nor loss scale back from a GPU.
    """
    body: list[nn.Parameter] = []
    faster: list[nn.Parameter] = []
    head: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts = name.split(".")
            is_faster = config.loraplus_lr_ratio is not None and "lora_B" in parts
            of_body = faster if is_faster else body
            (head if any(part in head_names for part in parts) else of_body).append(parameter)
    body_rate, head_rate = learning_rates(config)
    groups = [
        {"params": body, "lr": body_rate},
        {"params": faster, "lr": body_rate * (config.loraplus_lr_ratio or 1.0)},
        {"params": head, "lr": head_rate},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: FitConfig, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up over ``warmup_ratio`` of the steps, then the chosen decay."""
    warmup = round(config.warmup_ratio * steps)
    name = "constant_with_warmup" if config.lr_scheduler_type == "constant" else config.lr_scheduler_type
    scheduler: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=steps
    )
    return scheduler


def allocate_state(optimizer: torch.optim.AdamW) -> None:
    """Give AdamW its two moments (zeros) and step counts now, not in the first step.

    What can fail for want of memory then fails before training, and a step can be undone: there is a state
    to go back to. The entries are those of ``torch.optim.AdamW`` (PyTorch 2.13, ``torch/optim/adam.py``).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                # All at once, so that no entry is left half made.
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def scale_rates(
    scheduler: torch.optim.lr_scheduler.LRScheduler, base_rates: Sequence[float], factor: float
) -> None:
    """From now on every group's rate is ``factor`` times what the schedule would make of ``base_rates``."""
    assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
    scheduler.base_lrs = [factor * rate for rate in base_rates]
    shares = [share(scheduler.last_epoch) for share in scheduler.lr_lambdas]
    rates = [base * share for base, share in zip(scheduler.base_lrs, shares, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
