"""AdaLoRA's ranks: which directions of each matrix are kept as training goes on.

Zhang et al. 2023, arXiv:2303.10512: each matrix begins with ``init_r`` directions. How much the loss depends
on each is watched (section 3.2), and from step ``tinit`` on the least important ones of all matrices are set
to zero, on a cubic schedule (section 3.3), until ``tfinal`` steps before the end an average of ``target_r``
is left. A penalty keeps the directions orthogonal (section 3.1). The allocation is PEFT's; here it is put
into a training step that can be undone, and into the states that are committed.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor, nn

from snugtune.config import FitConfig
from snugtune.memory.guard import Guard

INITIAL_SHARE, FINAL_SHARE = 0.1, 0.5
"""Shares of the steps before ranks are cut and after the last cut, of the size of those in the paper's runs
on GLUE (its appendix of settings)."""

ALLOCATIONS = 100
"""Times that ranks are allocated in a run: each reads a threshold back from the device."""

_WATCHED = ("ipt", "exp_avg_ipt", "exp_avg_unc")
_PATTERN = "rank_pattern"


class Ranks:
    """The ranks of one training of ``steps`` optimiser steps."""

    def __init__(self, tuner: AdaLoraModel, config: FitConfig, steps: int) -> None:
        self._tuner, self._config = tuner, tuner.peft_config["default"]
        self._config.total_step = steps
        self._config.tinit = _or(config.tinit, round(INITIAL_SHARE * steps))
        self._config.tfinal = _or(config.tfinal, round(FINAL_SHARE * steps))
        self._config.deltaT = config.deltaT or max(1, steps // ALLOCATIONS)

    def allocate(self, step: int, guard: Guard) -> None:
        """After the update of ``step`` (from 1), while its gradients are there; all of it or nothing."""
        # At the last cut, PEFT looks at what it has seen in steps before.
        if max(1, self._config.tinit) >= self._config.total_step - self._config.tfinal:
            return  # too few steps: every direction is kept
        watched = self._tuner.rankallocator
        before = {name: dict(getattr(watched, name)) for name in _WATCHED}

        def update() -> None:
            for name, tensors in before.items():
                setattr(watched, name, dict(tensors))
            self._leave_out_overflow()
            self._tuner.update_and_allocate(step)

        guard.again(update, during="AdaLoRA's allocation of ranks")

    def _leave_out_overflow(self) -> None:
        """Gradients that are not finite, of a step that a scaler of float16 skips, say nothing of importance.

        PEFT's running means would keep them for ever. Nothing is read back from the device to see it.
        """
        for name, parameter in self._tuner.model.named_parameters():
            if "lora_" in name and parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)

    def state(self) -> dict[str, Tensor]:
        """What ``load`` needs, by names of its own."""
        found = {
            f"adalora.{name}.{key}": tensor.detach().to("cpu", copy=True)
            for name in _WATCHED
            for key, tensor in getattr(self._tuner.rankallocator, name).items()
        }
        pattern: dict[str, list[bool]] = self._config.rank_pattern or {}
        return found | {f"adalora.{_PATTERN}.{key}": torch.tensor(kept) for key, kept in pattern.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state`` returned, among other tensors."""
        devices = {name: p.device for name, p in self._tuner.model.named_parameters()}
        for name in _WATCHED:
            found = _named(state, name)
            setattr(self._tuner.rankallocator, name, {key: t.to(devices[key]) for key, t in found.items()})
        pattern = _named(state, _PATTERN)
        self._config.rank_pattern = {key: kept.tolist() for key, kept in pattern.items()} or None


def ranks_of(model: nn.Module, config: FitConfig, steps: int) -> Ranks | None:
    """The ranks of a model with AdaLoRA; None for every other."""
    tuner = _tuner(model)
    return None if tuner is None else Ranks(tuner, config, steps)


def add_penalty_gradients(model: nn.Module) -> None:
    """Add AdaLoRA's penalty to a step's gradients, once for the step however it is cut; else nothing.

    It is PEFT's (0.21, ``tuners/adalora/model.py``): ``orth_reg_weight`` times the mean over all A (r, in)
    and B (out, r) of the Frobenius norm of A A^T - 1 and B^T B - 1.
    """
    tuner = _tuner(model)
    if tuner is None:
        return
    matrices = [
        parameter
        for name, parameter in tuner.model.named_parameters()
        if parameter.requires_grad and ("lora_A" in name or "lora_B" in name)
    ]
    weight = tuner.peft_config["default"].orth_reg_weight / len(matrices)
    with torch.no_grad():
        for matrix in matrices:
            if matrix.grad is not None:
                matrix.grad.add_(_penalty_gradient(matrix), alpha=weight)


def _penalty_gradient(matrix: Tensor) -> Tensor:
    """The gradient of |M M^T - 1| for M = A or B^T, whose rows are the directions: 2 (M M^T - 1) M / |.|."""
    wide = matrix.shape[0] <= matrix.shape[1]
    rows = matrix if wide else matrix.T
    apart = rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    gradient: Tensor = 2 * apart @ rows / apart.norm().clamp_min(torch.finfo(rows.dtype).tiny)
    return gradient if wide else gradient.T


def watch_importance(model: nn.Module) -> None:
    """What ``Ranks.allocate`` does in a step without a look at numbers, for the rehearsal on shapes."""
    tuner = _tuner(model)
    if tuner is not None:
        tuner.rankallocator.update_ipt(tuner.model)


def forget_importance(model: nn.Module) -> None:
    """As before the first step, for a rehearsal that is not the first on a model."""
    tuner = _tuner(model)
    if tuner is not None:
        tuner.rankallocator.reset_ipt()


def settle_ranks(model: nn.Module) -> None:
    """Tell PEFT which directions the weights themselves keep: those are saved.

    The best weights may be older than the last allocation. A matrix of which nothing is left keeps one
    direction, of weight zero: PEFT cannot read empty matrices back without a warning.
    """
    tuner = _tuner(model)
    if tuner is None:
        return
    pattern = {}
    for name, parameter in tuner.model.named_parameters():
        if "lora_E" in name:
            kept = (parameter.detach().flatten() != 0).tolist()
            pattern[name] = kept if any(kept) else [True, *kept[1:]]
    tuner.peft_config["default"].rank_pattern = pattern


def _tuner(model: nn.Module) -> AdaLoraModel | None:
    tuner = model.base_model if isinstance(model, PeftModel) else None
    return tuner if isinstance(tuner, AdaLoraModel) else None


def _named(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    start = f"adalora.{name}."
    return {key.removeprefix(start): tensor for key, tensor in state.items() if key.startswith(start)}


def _or(given: Any, default: int) -> int:
    return default if given is None else int(given)
