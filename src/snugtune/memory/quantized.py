"""The shapes of 4-bit weights: what bitsandbytes' NF4 layers hold and allocate, without bitsandbytes.

Layout of ``bitsandbytes.nn.Linear4bit`` with double quantisation (Dettmers et al. 2023, arXiv:2305.14314,
section 3; ``bitsandbytes/functional.py``, ``quantize_4bit``): half a byte a weight, one 8-bit scale for each
64 weights, one float32 for each 256 of those scales. Forward and backward each unpack the whole matrix into
the compute format for the length of one product (``bitsandbytes/autograd/_functions.py``, ``MatMul4Bit``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCK, BLOCKS_PER_SCALE = 64, 256


def nf4_bytes(n_weights: int) -> int:
    """Bytes of ``n_weights`` weights in NF4 with double quantisation: about 0.516 each."""
    blocks = -(-n_weights // BLOCK)
    return -(-n_weights // 2) + blocks + 4 * -(-blocks // BLOCKS_PER_SCALE)


def quantize_shapes(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every frozen linear layer inside the encoder the storage and the temporaries of NF4."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad and _inside(model, module):
            _quantize(module, dtype)


def _inside(model: nn.Module, module: nn.Module) -> bool:
    """Whether the layer is part of the repeated layers: embeddings and head stay as they are."""
    lists = (m for m in model.modules() if isinstance(m, nn.ModuleList))
    return any(inner is module for layers in lists for inner in layers.modules())


def _quantize(layer: nn.Linear, dtype: torch.dtype) -> None:
    weight = layer.weight
    packed = torch.empty(nf4_bytes(weight.numel()), dtype=torch.uint8, device=weight.device)
    shape = tuple(weight.shape)
    layer.weight = nn.Parameter(packed, requires_grad=False)

    def forward(hidden: Tensor) -> Tensor:
        compute = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else dtype
        out: Tensor = _Unpacked.apply(hidden.to(compute), layer.weight, shape)  # type: ignore[no-untyped-call]
        return out if layer.bias is None else out + layer.bias.to(out.dtype)

    layer.forward = forward  # type: ignore[method-assign, assignment]


class _Unpacked(torch.autograd.Function):
    """A product with a matrix that exists in full only while it is used."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.packed, ctx.shape = packed, shape
        with torch.autocast("cpu", enabled=False):
            return functional.linear(hidden, _unpack(packed, shape, hidden.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ _unpack(ctx.packed, ctx.shape, gradient.dtype), None, None


def _unpack(packed: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    # Only the allocation matters here: the values are those of bitsandbytes on the card.
    return packed.new_zeros(shape, dtype=dtype)
