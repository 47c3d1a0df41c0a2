"""From a plain model to what is trained: LoRA through PEFT, the head alone, or everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from snugtune.config import FitConfig
from snugtune.errors import UserInputError
from snugtune.model.head import find_head
from snugtune.model.quantization import full_matrix

TARGET_MODULES = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("query_proj", "value_proj"),
    ("q_lin", "v_lin"),
    ("q", "v"),
    ("Wqkv",),
    ("qkv_proj",),
    ("query_key_value",),
    ("c_attn",),
)
"""Names of the query and value projections (Hu et al. 2021, arXiv:2106.09685, section 4.2), or of the one
matrix that holds them, in the architectures for which PEFT has no default."""


def default_targets(model: PreTrainedModel) -> tuple[str, ...] | None:
    """What LoRA adapts if the user names nothing; None leaves the choice to PEFT."""
    if model.config.model_type in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        return None
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    return next((targets for targets in TARGET_MODULES if present.issuperset(targets)), None)


DECOMPOSING_INITS = ("pissa", "olora")
"""Values of ``init_lora_weights`` that start from the largest part of each weight matrix."""


def lora_config(
    config: FitConfig, modules_to_save: tuple[str, ...], default: tuple[str, ...] | None = None
) -> LoraConfig:
    """PEFT's LoRA settings, each under its own name.

    PiSSA and OLoRA get the doubled rank, and the alpha that keeps the scaling, of ``start_from_factors``.
    """
    targets = config.target_modules or default
    doubled = config.init_lora_weights in DECOMPOSING_INITS
    # The scaling is alpha / r, with rsLoRA alpha / sqrt(r).
    alpha = config.lora_alpha * ((2**0.5 if config.use_rslora else 2) if doubled else 1)
    return LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=2 * config.r if doubled else config.r,
        lora_alpha=alpha,
        target_modules=list(targets) if isinstance(targets, tuple) else targets,
        lora_dropout=config.lora_dropout,
        bias=config.bias,
        modules_to_save=list(modules_to_save),
        use_dora=config.use_dora,
        use_rslora=config.use_rslora,
        init_lora_weights=True if doubled else config.init_lora_weights,
        layers_to_transform=None if config.layers_to_transform is None else list(config.layers_to_transform),
    )


def wrap(model: PreTrainedModel, config: FitConfig) -> nn.Module:
    """Make trainable what ``config.method`` says, in float32, and nothing else.

    Raises:
        UserInputError: PEFT finds no module of a name in ``target_modules``, a layer of
            ``layers_to_transform`` does not exist, or the LoRA settings do not go together.
    """
    head = find_head(model, config.modules_to_save)
    wrapped: nn.Module = model
    if config.method == "full":
        wrapped.float().requires_grad_(True)
        return wrapped
    if config.method == "head":
        _train_only(model, lambda name: any(part in head.modules_to_save for part in name.split(".")))
    else:
        wrapped = _with_lora(model, config, head.modules_to_save)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if config.init_lora_weights in DECOMPOSING_INITS:
        start_from_factors(wrapped, config.r, config.init_lora_weights)
    _compute_heads_in_float32(wrapped, head.modules_to_save)
    return wrapped


def _with_lora(model: PreTrainedModel, config: FitConfig, modules_to_save: tuple[str, ...]) -> nn.Module:
    try:
        peft_config = lora_config(config, modules_to_save, default_targets(model))
        # GPT-2's layers keep their weights as (in, out); told so, PEFT need not find out and warn.
        peft_config.fan_in_fan_out = any(_is_conv1d(module) for module in model.modules())
        wrapped: nn.Module = get_peft_model(model, peft_config, revision=config.revision)
    except ValueError as error:
        raise UserInputError(f"LoRA cannot be attached to this model: {_one_line(error)}") from error
    layers = {name: module for name, module in wrapped.named_modules() if isinstance(module, LoraLayer)}
    names = list(layers)
    if not config.use_dora:
        for layer in layers.values():
            _leave_input_to_autocast(layer)
    _check_targets(config.target_modules, names)
    _check_layers(config.layers_to_transform, names, model.config.get_text_config().num_hidden_layers)
    return wrapped


def _leave_input_to_autocast(layer: LoraLayer) -> None:
    """Keep PEFT from casting a half-precision input to the adapter's float32: autocast would cast it back.

    The numbers stay the same bit for bit (with LoRA dropout, to rounding); two copies of the input fall away,
    one of which is held for the backward pass. DoRA's norms do depend on the cast.
    """
    cast = layer._cast_input_dtype

    def unless_autocast(x: Any, dtype: torch.dtype) -> Any:
        leave = x is not None and torch.is_autocast_enabled(x.device.type)
        return x if leave else cast(x, dtype)

    layer._cast_input_dtype = unless_autocast


def _is_conv1d(module: nn.Module) -> bool:
    # Transformers notes on a 4-bit layer of what it was made.
    return isinstance(module, Conv1D) or getattr(module, "source_cls", None) is Conv1D


def _check_targets(targets: tuple[str, ...] | str | None, adapted: list[str]) -> None:
    """PEFT is silent about a name that fits nothing if another one fits."""
    if isinstance(targets, tuple):
        for target in targets:
            if not any(name.endswith(f".{target}") for name in adapted):
                raise UserInputError(
                    f"target_modules names {target}, but LoRA finds no such layer in this model; "
                    f"the others fit {', '.join(sorted({name.rpartition('.')[2] for name in adapted}))}."
                )


def _check_layers(layers: tuple[int, ...] | None, adapted: list[str], count: int) -> None:
    numbers = {int(part) for name in adapted for part in name.split(".") if part.isdigit()}
    if lost := sorted(set(layers or ()) - numbers):
        raise UserInputError(
            f"layers_to_transform names layer {lost[0]}, but LoRA fits no layer of that number in this "
            f"model of {count} layers; count them from 0."
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def start_from_factors(model: nn.Module, r: int, init_lora_weights: str | bool) -> None:
    """Start rank-2r LoRA layers as PiSSA or OLoRA of rank ``r``, the weights W themselves untouched.

    Both train A (r, in) and B (out, r) from factors A0, B0 of W, on the remainder W - s B0 A0 (s is LoRA's
    scaling). Here the remainder is written as LoRA too: A = [A; A0] and B = [B, -B0], whose second halves
    get no gradient. It is the form to which PEFT converts such adapters (``subtract_mutated_init``), from the
    first step on: what is saved is plain LoRA on the published weights, exact in every number format.

    PiSSA: B0 A0 = the r largest singular components of W / s, split evenly (Meng et al. 2024,
    arXiv:2404.02948, section 3). OLoRA: B0 and A0 are the first r columns of Q and rows of R in W = QR
    (Bueyuekakyuez 2024, arXiv:2406.01775, section 3).

    Raises:
        UserInputError: ``r`` is larger than a weight matrix has rows or columns.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or "default" not in layer.lora_A:
            continue
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        weight = full_matrix(layer.get_base_layer())
        if min(a.shape[1], b.shape[0]) < r:
            raise UserInputError(
                f"init_lora_weights={init_lora_weights} needs r of at most {min(a.shape[1], b.shape[0])}, "
                f"the size of {name.removeprefix('base_model.model.')}, not {r}; lower it."
            )
        a.register_hook(_first_rows(r))
        b.register_hook(_first_columns(r))
        # Meta tensors have no values to decompose.
        if weight.device.type != "meta":
            matrix = weight.detach().float()
            a0, b0 = _factors(
                matrix.T if layer.fan_in_fan_out else matrix, r, layer.scaling["default"], init_lora_weights
            )
            with torch.no_grad():
                a.copy_(torch.cat([a0, a0]))
                b.copy_(torch.cat([b0, -b0], dim=1))


def _first_rows(r: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def keep(gradient: torch.Tensor) -> torch.Tensor:
        return torch.cat([gradient[:r], torch.zeros_like(gradient[r:])])

    return keep


def _first_columns(r: int) -> Callable[[torch.Tensor], torch.Tensor]:
    keep = _first_rows(r)
    return lambda gradient: keep(gradient.T).T


def _factors(
    matrix: torch.Tensor, r: int, scaling: float, init_lora_weights: str | bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """A0 (r, in) and B0 (out, r) of ``matrix`` (out, in)."""
    if init_lora_weights == "olora":
        q, upper = torch.linalg.qr(matrix)
        return upper[:r], q[:, :r]
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = (s[:r] / scaling).sqrt()
    return root[:, None] * vh[:r], u[:, :r] * root


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy on the host of every trained tensor, by name."""
    return {n: p.detach().to("cpu", copy=True) for n, p in model.named_parameters() if p.requires_grad}


def load_trainable_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Write back what ``trainable_state`` copied."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in state:
                parameter.copy_(state[name])


def on_trained(model: nn.Module, plain: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of the plain model under the names that they have, as far as they are trained, in ``model``.

    PEFT keeps the trained copy of a module ``X`` as ``base_model.model.X.modules_to_save.default``.
    """
    names = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    pairs = (
        (name, name.removeprefix("base_model.model.").replace(".modules_to_save.default", ""))
        for name in names
    )
    return {name: plain[plain_name] for name, plain_name in pairs if plain_name in plain}


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
