"""The shapes of 4-bit weights: what bitsandbytes' NF4 layers hold and allocate, without bitsandbytes.

Layout of ``bitsandbytes.nn.Linear4bit`` with double quantisation (Dettmers et al. 2023, arXiv:2305.14314,
section 3; bitsandbytes 0.50.2, ``functional.py``, ``quantize_4bit``): half a byte a weight, one 8-bit scale
for each 64 weights, one float32 for each 256 of those scales, and two tables. Forward and backward each
unpack the whole matrix into the compute format for the length of one product (``autograd/_functions.py``,
``MatMul4Bit``; on cards a fused kernel spares the forward pass that for small products). The result is cast
back to the format of the layer's input (``nn/modules.py``); plain layers under autocast leave it as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from snugtune.model.quantization import BLOCK, quantizable

BLOCKS_PER_SCALE = 256

TABLES = {"levels": 16, "scale_levels": 256, "offset": 1}
"""Float32 numbers that each layer keeps beside its weights and scales."""


def nf4_storages(n_weights: int) -> dict[str, tuple[int, torch.dtype]]:
    """What a layer of ``n_weights`` weights keeps: the elements and the number format of each tensor."""
    blocks = -(-n_weights // BLOCK)
    held = {
        "packed": (-(-n_weights // 2), torch.uint8),
        "scales": (blocks, torch.uint8),
        "scales_of_scales": (-(-blocks // BLOCKS_PER_SCALE), torch.float32),
    }
    return held | {name: (length, torch.float32) for name, length in TABLES.items()}


def nf4_bytes(n_weights: int) -> int:
    """Bytes of ``n_weights`` weights in NF4 with double quantisation: about 0.516 each."""
    return sum(length * dtype.itemsize for length, dtype in nf4_storages(n_weights).values())


def quantize_shapes(
    model: nn.Module, dtype: torch.dtype, *, modules_to_save: tuple[str, ...] = (), on_card: bool = True
) -> None:
    """Give the layers that ``load_in_4bit`` quantises the storage and the temporaries of NF4.

    ``model`` is plain or PEFT's, ``dtype`` the format of products; ``on_card`` says that autocast is CUDA's.
    """
    for name, layer in list(quantizable(model, modules_to_save)):
        if not layer.weight.requires_grad:
            _quantize(layer, dtype)
            parent = model.get_submodule(name.rpartition(".")[0])
            if isinstance(parent, LoraLayer):
                converts = not on_card or dtype == torch.float32
                parent.forward = _adapted(parent, converts=converts)


def _quantize(layer: Any, dtype: torch.dtype) -> None:
    weight = layer.weight
    as_stored = tuple(weight.shape)
    shape = as_stored[::-1] if isinstance(layer, Conv1D) else as_stored
    for name, (length, format_) in nf4_storages(weight.numel()).items():
        held = torch.empty(length, dtype=format_, device=weight.device)
        if name == "packed":
            layer.weight = nn.Parameter(held, requires_grad=False)
        else:
            layer.register_buffer(name, held)

    def forward(hidden: Tensor) -> Tensor:
        out: Tensor = _Product.apply(hidden.to(dtype), layer.weight, layer.bias, shape)  # type: ignore[no-untyped-call]
        return out.to(hidden.dtype)

    layer.forward = forward
    # By these names PEFT asks a layer of another library for its whole matrix (DoRA needs it).
    layer.W_q = None
    layer.dequantize = lambda: _unpack(layer.weight, as_stored, dtype)


class _Product(torch.autograd.Function):
    """A product with a matrix that exists in full only while it is used."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, packed: Tensor, bias: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        ctx.packed, ctx.shape = packed, shape
        scales = _scales(packed)
        with torch.autocast("cpu", enabled=False):
            # The scales live as long as the product.
            return functional.linear(hidden, _unpack(packed, shape, hidden.dtype, scales), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        return gradient @ _unpack(ctx.packed, ctx.shape, gradient.dtype), None, None, None


def _scales(packed: Tensor) -> Tensor:
    """The scales in float32: unpacked, then moved by their offset into a tensor of their own."""
    return packed.new_zeros(-(-2 * packed.numel() // BLOCK), dtype=torch.float32) + 1


def _unpack(
    packed: Tensor, shape: tuple[int, int], dtype: torch.dtype, scales: Tensor | None = None
) -> Tensor:
    # Only the allocations matter here: the values are those of bitsandbytes on the card.
    if scales is None:
        scales = packed.new_zeros(-(-2 * packed.numel() // BLOCK), dtype=torch.float32)
    return packed.new_zeros(shape, dtype=dtype)


def _adapted(layer: Any, *, converts: bool) -> Callable[..., Tensor]:
    """The forward pass of PEFT's LoRA around a 4-bit layer, which is not that around a plain one.

    PEFT 0.21, ``tuners/lora/bnb.py``, ``Linear4bit.forward``: the base's result is copied, and inputs are
    cast to the adapter's format only where CUDA's autocast is off.
    """

    def forward(x: Tensor) -> Tensor:
        result: Tensor = layer.base_layer(x).clone()
        for name in layer.active_adapters:
            if name not in layer.lora_A:
                continue
            given = result.dtype
            if converts:
                x = layer._cast_input_dtype(x, layer.lora_A[name].weight.dtype)
            if name in layer.lora_variant:
                result = layer.lora_variant[name].forward(layer, active_adapter=name, x=x, result=result)
                result = result.to(given) if converts else result
            else:
                update = layer.lora_B[name](layer.lora_A[name](layer.lora_dropout[name](x)))
                update = update * layer.scaling[name]
                result = result + (update.to(given) if converts else update)
        return result

    return forward
