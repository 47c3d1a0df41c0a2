"""Linear layers as oneDNN computes them fastest on a CPU in bfloat16, where no gradient is asked for.

Two things that ``nn.Linear`` leaves on the table. GELU is computed on the sums of a product while they are
still in float32 and in registers, not in a pass of its own over the largest tensor of a layer; it is rounded
once instead of twice. And weights that never change again are kept in the order in which the processor reads
them. Both are operators that torch's own compiler uses (``torch/_inductor/mkldnn_lowerings.py``), here
without it. The results are those of the plain layers to the rounding of bfloat16.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snugtune.model.checkpointing import encoder_layers

GELU_ALGORITHMS = {"GELUActivation": "none", "NewGELUActivation": "tanh", "GELUTanh": "tanh"}
"""oneDNN's name for what Transformers' activation classes compute: with the error function, or tanh."""

PACKED_FOR_ROWS = 2048
"""Rows for which the order of packed weights is chosen; the layers take any number of them."""


def can_fuse() -> bool:
    """Whether this torch and this processor have the operators, in bfloat16."""
    operators = torch.ops.mkldnn
    return bool(
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(operators, "_linear_pointwise")
        and hasattr(operators, "_reorder_linear_weight")
        and operators._is_mkldnn_bf16_supported()
    )


def fuse_gelu(model: nn.Module) -> int:
    """Let layers of BERT's layout compute their GELU within the product before it; how many will.

    While training, with gradients, on other devices and in other number formats they stay as they are, also
    where an adapter is put on the product later.
    """
    if not can_fuse():
        return 0
    chosen = [module for module in model.modules() if _is_intermediate(module)]
    for module in chosen:
        algorithm = GELU_ALGORITHMS[type(module.intermediate_act_fn).__name__]
        module.forward = partial(_intermediate, module, type(module).forward, algorithm)
    return len(chosen)


def pack_linears(model: nn.Module) -> int:
    """Replace the linear layers of ``model``'s encoder, in bfloat16 on the CPU, by packed ones; how many.

    For a model that is only asked from now on: the packed weights cannot be saved, moved or trained.
    """
    if not can_fuse():
        return 0
    packed = 0
    for layer in encoder_layers(model):
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear and _is_ready(child.weight):
                    setattr(parent, name, PackedLinear(child))
                    packed += 1
    return packed


class PackedLinear(nn.Module):
    """A linear layer (..., in) -> (..., out) in bfloat16 on the CPU, its weights in oneDNN's own order."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # No parameters: whoever counts, moves or saves those of a model could do nothing with these.
        with torch.no_grad():
            self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), PACKED_FOR_ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """X times the weights' transpose, plus the bias."""
        return linear_pointwise(self, x)


def linear_pointwise(linear: Any, x: Tensor, gelu: str | None = None) -> Tensor:
    """``linear`` (an ``nn.Linear`` or ``PackedLinear``) of ``x``, and GELU by oneDNN's algorithm ``gelu``."""
    what, algorithm = ("none", "") if gelu is None else ("gelu", gelu)
    x = x.to(torch.bfloat16)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, linear.weight, linear.bias, what, [], algorithm)
    return out


def _is_intermediate(module: nn.Module) -> bool:
    """Whether it is what BERT calls an intermediate layer: ``intermediate_act_fn(dense(x))`` and no more."""
    return (
        type(module).__name__.endswith("Intermediate")
        and {name for name, _ in module.named_children()} == {"dense", "intermediate_act_fn"}
        and type(module.intermediate_act_fn).__name__ in GELU_ALGORITHMS
    )


def _intermediate(module: Any, plain: Any, algorithm: str, hidden_states: Tensor) -> Tensor:
    dense = module.dense
    if module.training or torch.is_grad_enabled() or not _can_run(dense, hidden_states):
        out: Tensor = plain(module, hidden_states)
        return out
    return linear_pointwise(dense, hidden_states, algorithm)


def _can_run(dense: nn.Module, x: Tensor) -> bool:
    if isinstance(dense, PackedLinear):
        return True
    # The very class: adapters and quantised layers are subclasses or wrap it, and compute more.
    in_bfloat16 = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return type(dense) is nn.Linear and in_bfloat16 and _is_ready(dense.weight)


def _is_ready(weight: Tensor) -> bool:
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
