"""4-bit frozen weights: NF4 with double quantisation, through bitsandbytes.

Dettmers et al. 2023 (arXiv:2305.14314), section 3: each 64 weights share a scale and are rounded to 16 levels
that are equally frequent under a normal distribution; the scales are rounded to 8 bits in turn. Embeddings,
norms, pooler and head stay as they are: they are small or trained, and rounding them costs most.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from snugtune.errors import UserInputError
from snugtune.files import write_json

BLOCK = 64
"""Weights that share a scale."""

FILE = "quantization.json"
"""In a saved folder: the arguments of ``BitsAndBytesConfig`` that give the base model it was trained on."""


def nf4_config(
    config: PretrainedConfig, dtype: torch.dtype, modules_to_save: Sequence[str] | None
) -> BitsAndBytesConfig:
    """What ``from_pretrained`` must be told to quantise the model of ``config`` and compute in ``dtype``.

    Raises:
        UserInputError: bitsandbytes is not installed, or the model has no layer that it can quantise.
    """
    require_bitsandbytes()
    with torch.device("meta"):
        shape = AutoModelForSequenceClassification.from_config(config)
    chosen = {name for name, _ in quantizable(shape, modules_to_save or ())}
    if not chosen:
        raise UserInputError(
            f"This model of type {config.model_type} has no linear layers that can be held in 4 bits (their "
            f"inputs must be multiples of {BLOCK}); leave load_in_4bit out."
        )
    # Transformers reads the names as regular expressions that match from the start, or as endings.
    linear = [name for name, module in shape.named_modules() if _is_linear(module)]
    kept = [f"^{re.escape(name)}" for name in linear if name not in chosen]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )


def require_bitsandbytes() -> None:
    """Import bitsandbytes.

    Raises:
        UserInputError: it is not installed or cannot be loaded on this machine.
    """
    if find_spec("bitsandbytes") is None:
        raise UserInputError("4-bit weights need bitsandbytes; run: pip install 'snugtune[quantized]'.")
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserInputError(
            f"bitsandbytes cannot be loaded ({reason}); run: pip install -U 'snugtune[quantized]'."
        ) from error


def quantizable(model: nn.Module, modules_to_save: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers that are held in 4 bits, with their names.

    They are those inside the repeated layers whose rows are whole blocks, less what ``modules_to_save``
    trains in full and what the architecture keeps in float32. ``model`` is plain, or PEFT's with its own
    layers around the plain ones.
    """
    kept = (*modules_to_save, *(getattr(model, "_keep_in_fp32_modules", None) or ()), "original_module")
    repeated = {id(m) for part in model.modules() if isinstance(part, nn.ModuleList) for m in part.modules()}
    for name, module in model.named_modules():
        if id(module) in repeated and _in_whole_blocks(module) and not any(_within(name, k) for k in kept):
            yield name, module


def _is_linear(module: nn.Module) -> bool:
    # Not the subclasses: bitsandbytes leaves them alone.
    return type(module) is nn.Linear or isinstance(module, Conv1D)


def _in_whole_blocks(module: nn.Module) -> bool:
    """Whether ``module`` is a linear layer and no block of its weights spans two outputs.

    Where one does, bitsandbytes' kernel for processors with AVX-512 takes the scale of another block (0.50.2:
    the largest error of a 48 x 96 matrix is as large as its largest weight). Published models' sizes are
    multiples of 64.
    """
    if not _is_linear(module):
        return False
    # Conv1D keeps its weights as (in, out).
    n_in = module.weight.shape[0 if isinstance(module, Conv1D) else -1]  # type: ignore[index]
    return int(n_in) % BLOCK == 0


def _within(name: str, module: str) -> bool:
    """Whether ``name`` is ``module``, or inside it, wherever in the model that is."""
    return f".{module}." in f".{name}."


def compute_as_trained(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking weights of 4-bit layers on CPUs that multiply in bfloat16.

    It does so in the first forward pass without gradients, for inference alone: the repacked layers compute
    in bfloat16 whatever they are told, and have no backward pass (bitsandbytes 0.50.2, ``nn/modules.py``,
    ``Linear4bit.forward``).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def unpacked(model: Any, dtype: torch.dtype) -> Any:
    """A 4-bit model with its weights unpacked to ``dtype``: the same numbers, for any program to read."""
    model = model.dequantize(dtype)
    # Saving would try to undo how the packed weights were read (Transformers 5.23, core_model_loading.py).
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is not None:
        model._weight_conversions = [one for one in conversions if _can_be_undone(one)]
    return model


def _can_be_undone(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True


def full_matrix(layer: nn.Module) -> Tensor:
    """The weight matrix of a linear layer as it is multiplied with: unpacked, where it is in 4 bits."""
    matrix: Tensor = dequantize_module_weight(layer)
    return matrix


def count_weights(parameter: Tensor) -> int:
    """How many numbers ``parameter`` stands for; two to a byte, where they are in 4 bits."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else prod(state.shape)


def write_quantization(used: BitsAndBytesConfig, folder: Path) -> None:
    """Keep beside a saved adapter what its base model was quantised with."""
    arguments = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": used.bnb_4bit_quant_type,
        "bnb_4bit_use_double_quant": used.bnb_4bit_use_double_quant,
        "bnb_4bit_compute_dtype": str(used.bnb_4bit_compute_dtype).removeprefix("torch."),
        "llm_int8_skip_modules": used.llm_int8_skip_modules,
    }
    write_json(folder / FILE, arguments)


def read_quantization(folder: Path) -> dict[str, Any] | None:
    """What ``write_quantization`` wrote into ``folder``; None for a model that was not quantised."""
    path = folder / FILE
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
