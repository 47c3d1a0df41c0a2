"""From a plain model to what is trained: LoRA through PEFT, the head alone, or everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from snugtune.config import FitConfig
from snugtune.errors import UserInputError
from snugtune.model.head import find_head

TARGET_MODULES = {
    "albert": ("query", "value"),
    "distilbert": ("q_lin", "v_lin"),
    "modernbert": ("Wqkv",),
    "mpnet": ("q", "v"),
}
"""Query and value projections (Hu et al. 2021, arXiv:2106.09685, section 4.2) of the model types for which
PEFT has no default; ModernBERT keeps query, key and value in one matrix."""


def lora_config(config: FitConfig, modules_to_save: tuple[str, ...], model_type: str) -> LoraConfig:
    """PEFT's LoRA settings, each under its own name."""
    targets = config.target_modules or TARGET_MODULES.get(model_type)
    return LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=config.r,
        lora_alpha=config.lora_alpha,
        target_modules=list(targets) if isinstance(targets, tuple) else targets,
        lora_dropout=config.lora_dropout,
        bias=config.bias,
        modules_to_save=list(modules_to_save),
        use_dora=config.use_dora,
        use_rslora=config.use_rslora,
        init_lora_weights=config.init_lora_weights,
        layers_to_transform=list(config.layers_to_transform) if config.layers_to_transform else None,
    )


def wrap(model: PreTrainedModel, config: FitConfig) -> nn.Module:
    """Make trainable what ``config.method`` says, in float32, and nothing else.

    Raises:
        UserInputError: PEFT finds no module of the names in ``target_modules``.
    """
    head = find_head(model, config.modules_to_save)
    wrapped: nn.Module = model
    if config.method == "full":
        wrapped.float().requires_grad_(True)
        return wrapped
    if config.method == "head":
        _train_only(model, lambda name: any(part in head.modules_to_save for part in name.split(".")))
    else:
        try:
            wrapped = get_peft_model(
                model, lora_config(config, head.modules_to_save, model.config.model_type)
            )
        except ValueError as error:
            raise UserInputError(f"LoRA cannot be attached to this model: {error}") from error
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    _compute_heads_in_float32(wrapped, head.modules_to_save)
    return wrapped


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy on the host of every trained tensor, by name."""
    return {n: p.detach().to("cpu", copy=True) for n, p in model.named_parameters() if p.requires_grad}


def load_trainable_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Write back what ``trainable_state`` copied."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in state:
                parameter.copy_(state[name])


def is_peft(model: nn.Module) -> bool:
    """Whether the model carries a PEFT adapter."""
    return isinstance(model, PeftModel)


def _train_only(model: nn.Module, chosen: Callable[[str], bool]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen(name))


def _compute_heads_in_float32(model: nn.Module, names: tuple[str, ...]) -> None:
    for name, module in model.named_modules():
        trained = next(iter(module.parameters(recurse=True)), None)
        is_head = name.split(".")[-1] in (*names, "default") and any(
            part in names for part in name.split(".")
        )
        if (
            is_head
            and trained is not None
            and trained.requires_grad
            and not hasattr(module, "modules_to_save")
        ):
            module.forward = _in_float32(module.forward)


def _in_float32(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Run ``forward`` outside autocast on float32 inputs: logits keep all their digits."""

    def run(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(hidden.device.type, enabled=False):
            return forward(hidden.float(), *args, **kwargs)

    return run
