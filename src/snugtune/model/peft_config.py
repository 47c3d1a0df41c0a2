"""PEFT's configuration of each method, from the settings of the same names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from peft import (
    AdaLoraConfig,
    BOFTConfig,
    EvaConfig,
    IA3Config,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    VeraConfig,
)
from peft.utils.constants import (
    DUMMY_TARGET_MODULES,
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
)
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from snugtune.config import FitConfig
from snugtune.methods import MethodName

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

IA3_MODULES = (
    (("key", "value", "output.dense"), ("output.dense",)),
    (("k_lin", "v_lin", "lin2"), ("lin2",)),
    (("k_proj", "v_proj", "down_proj"), ("down_proj",)),
    (("Wqkv", "mlp.Wo"), ("mlp.Wo",)),
    (("k", "v", "o"), ("o",)),
    (("key", "value", "ffn_output"), ("ffn_output",)),
)
"""What IA3 scales where PEFT has no default: keys, values and what enters the last feed-forward matrix (Liu
et al. 2022, arXiv:2205.05638, section 3.3), and which of them are scaled at their input."""

LARGEST_OFT_BLOCK = 32
"""PEFT's default block size, taken where the weights' inputs are multiples of it."""

ADALORA_STEPS = 1 << 30
"""Stands for the number of steps until training tells it; see ``train/ranks.py``."""

DECOMPOSING_INITS = ("pissa", "olora")
"""Values of ``init_lora_weights`` that start from the largest part of each weight matrix."""


def default_targets(model: PreTrainedModel) -> tuple[str, ...] | None:
    """What LoRA adapts if the user names nothing; None leaves the choice to PEFT."""
    if model.config.model_type in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        return None
    return next((targets for targets in TARGET_MODULES if _has(model, targets)), None)


def _has(model: nn.Module, targets: Sequence[str]) -> bool:
    names = [f".{name}" for name, _ in model.named_modules()]
    return all(any(name.endswith(f".{target}") for name in names) for target in targets)


def peft_config(model: PreTrainedModel, config: FitConfig, modules_to_save: tuple[str, ...]) -> PeftConfig:
    """The configuration of ``config.method`` for ``model``, which trains ``modules_to_save`` in full.

    Raises:
        KeyError: the method does not go through PEFT.
        ValueError: PEFT takes the settings for contradictory.
    """
    made = _MAKERS[config.method](model, config)
    made.task_type = TaskType.SEQ_CLS
    made.modules_to_save = list(modules_to_save)
    if hasattr(made, "fan_in_fan_out"):
        # GPT-2's layers keep their weights as (in, out); told so, PEFT need not find out and warn.
        made.fan_in_fan_out = any(is_conv1d(module) for module in model.modules())
    return made


def lora_config(
    config: FitConfig, modules_to_save: tuple[str, ...] = (), default: tuple[str, ...] | None = None
) -> LoraConfig:
    """PEFT's LoRA settings, each under its own name.

    PiSSA and OLoRA get the doubled rank, and the alpha that keeps the scaling, of ``start_from_factors``.
    """
    targets = config.target_modules or default
    doubled = config.init_lora_weights in DECOMPOSING_INITS
    # The scaling is alpha / r, with rsLoRA alpha / sqrt(r).
    alpha = config.lora_alpha * ((2**0.5 if config.use_rslora else 2) if doubled else 1)
    eva = {"eva_config": EvaConfig(rho=config.eva_rho)} if config.init_lora_weights == "eva" else {}
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
        layers_to_transform=_layers(config),
        **eva,
    )


def _lora(model: PreTrainedModel, config: FitConfig) -> PeftConfig:
    return lora_config(config, default=default_targets(model))


def _adalora(model: PreTrainedModel, config: FitConfig) -> PeftConfig:
    return AdaLoraConfig(
        init_r=config.init_r,
        target_r=config.target_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        beta1=config.beta1,
        beta2=config.beta2,
        orth_reg_weight=config.orth_reg_weight,
        total_step=ADALORA_STEPS,
        target_modules=_targets(model, config),
        layers_to_transform=_layers(config),
    )


def _vera(model: PreTrainedModel, config: FitConfig) -> PeftConfig:
    return VeraConfig(
        r=config.r,
        d_initial=config.d_initial,
        projection_prng_key=config.projection_prng_key,
        # Else whoever loads the folder would have to draw the same numbers.
        save_projection=True,
        target_modules=_targets(model, config),
        layers_to_transform=_layers(config),
    )


def _oft(model: PreTrainedModel, config: FitConfig) -> PeftConfig:
    return OFTConfig(
        r=0,
        oft_block_size=config.oft_block_size or _oft_block_size(model),
        use_cayley_neumann=config.use_cayley_neumann,
        target_modules=_targets(model, config),
        layers_to_transform=_layers(config),
    )


def _oft_block_size(model: PreTrainedModel) -> int:
    """The largest block up to PEFT's own of which every linear layer's input is a multiple."""
    inputs = [module.in_features for module in model.modules() if isinstance(module, nn.Linear)]
    return math.gcd(LARGEST_OFT_BLOCK, *inputs)


def _boft(model: PreTrainedModel, config: FitConfig) -> PeftConfig:
    return BOFTConfig(
        boft_block_size=config.boft_block_size,
        # PEFT falls back to one factor where its CUDA kernel is missing: more would load as something else.
        boft_n_butterfly_factor=1,
        target_modules=_targets(model, config),
        layers_to_transform=_layers(config),
    )


def _ia3(model: PreTrainedModel, config: FitConfig) -> PeftConfig:
    targets, feedforward = _ia3_modules(model)
    if config.target_modules:
        targets = config.target_modules
        named = targets if isinstance(targets, tuple) else ()
        feedforward = tuple(name for name in feedforward if name in named)
    return IA3Config(
        target_modules=list(targets) if isinstance(targets, tuple) else targets,
        feedforward_modules=list(config.feedforward_modules or feedforward),
    )


def _ia3_modules(model: PreTrainedModel) -> tuple[tuple[str, ...] | str | None, tuple[str, ...]]:
    kind = model.config.model_type
    if kind in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        return (
            tuple(TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[kind]),
            tuple(TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind]),
        )
    return next((both for both in IA3_MODULES if _has(model, both[0])), (None, ()))


def _bitfit(_model: PreTrainedModel, _config: FitConfig) -> PeftConfig:
    # A LoRA of no matrix at all: what PEFT trains, saves, loads and merges of it are the biases.
    return LoraConfig(target_modules=DUMMY_TARGET_MODULES, bias="all")


def _prefix(model: PreTrainedModel, config: FitConfig) -> PeftConfig:
    return PrefixTuningConfig(
        prefix_projection=config.prefix_projection,
        encoder_hidden_size=config.encoder_hidden_size,
        **_virtual(model, config),
    )


def _prompt(model: PreTrainedModel, config: FitConfig) -> PeftConfig:
    # On the meta device there is nothing to sample from, and nothing to read.
    is_shape = next(model.parameters()).device.type == "meta"
    named = config.prompt_tuning_init == "TEXT" and not is_shape
    return PromptTuningConfig(
        prompt_tuning_init="RANDOM" if is_shape else config.prompt_tuning_init,
        prompt_tuning_init_text=config.prompt_tuning_init_text if named else None,
        tokenizer_name_or_path=model.config._name_or_path if named else None,
        **_virtual(model, config),
    )


def _p_tuning(model: PreTrainedModel, config: FitConfig) -> PeftConfig:
    return PromptEncoderConfig(
        encoder_reparameterization_type=config.encoder_reparameterization_type,
        encoder_hidden_size=config.encoder_hidden_size,
        encoder_num_layers=config.encoder_num_layers,
        **_virtual(model, config),
    )


def _virtual(model: PreTrainedModel, config: FitConfig) -> dict[str, Any]:
    """What PEFT must know of the model, which it would ask DistilBERT and others for by names they lack.

    Keys and values that heads share are its own business.
    """
    shape = model.config.get_text_config()
    embedded = model.get_input_embeddings().weight.shape[1]
    return {
        "num_virtual_tokens": config.num_virtual_tokens,
        "token_dim": shape.hidden_size if config.method == "prefix" else embedded,
        "num_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
    }


def _targets(model: PreTrainedModel, config: FitConfig) -> list[str] | str | None:
    """What the user names, or else what LoRA adapts: PEFT's other methods know fewer architectures."""
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
    targets = config.target_modules or default_targets(model) or known
    return targets if targets is None or isinstance(targets, str) else list(targets)


def _layers(config: FitConfig) -> list[int] | None:
    return None if config.layers_to_transform is None else list(config.layers_to_transform)


def is_conv1d(module: nn.Module) -> bool:
    """Whether ``module`` is GPT-2's kind of linear layer, held in 4 bits or not."""
    # Transformers notes on a 4-bit layer of what it was made.
    return isinstance(module, Conv1D) or getattr(module, "source_cls", None) is Conv1D


_MAKERS: Final[dict[MethodName, Callable[[PreTrainedModel, FitConfig], PeftConfig]]] = {
    "lora": _lora,
    "adalora": _adalora,
    "vera": _vera,
    "oft": _oft,
    "boft": _boft,
    "ia3": _ia3,
    "bitfit": _bitfit,
    "prefix": _prefix,
    "prompt": _prompt,
    "p-tuning": _p_tuning,
}
