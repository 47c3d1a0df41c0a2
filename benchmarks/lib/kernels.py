"""How near to the hardware's limit: a bare loop over the same matrices, and time outside kernels."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile
from transformers import AttentionInterface

from snugtune.model import attention, fused_linear
from snugtune.train.forward import predict_logits

from .common import best_time_s, synchronize
from .datasets import TokenData

NO_KERNELS = re.compile(r"^(torch::)?autograd::")


@dataclass
class Products:
    """The matrix products of a forward pass, in their order.

    ``linear`` are weight and bias with the rows they are multiplied with; ``attention`` are texts x heads,
    queries, keys and the size of a head of each layer's two products.
    """

    linear: list[tuple[Tensor, Tensor | None, int]] = field(default_factory=list)
    attention: list[tuple[int, int, int, int]] = field(default_factory=list)


def forward_shares(data: TokenData) -> dict[str, float]:
    """Our forward pass over the training rows against bare loops over the same weight matrices.

    ``bound_s`` has nothing but the encoder's linear layers, on tensors of the very rows they were given: no
    norm, no activation, no attention. ``attention_bound_s`` has attention's two batched products besides,
    over whole texts and without softmax. ``share`` and ``share_with_attention`` are those / ``forward_s``.
    """
    model, device = data.backbone.model.eval(), data.device

    def forward() -> None:
        predict_logits(
            model, data.train.tokens, pad_token_id=data.backbone.tokenizer.pad_token_id,
            device=device, dtype=data.dtype,
        )  # fmt: skip
        synchronize(device)

    with torch.inference_mode():
        products = observe(model, forward)
        bound_s = best_time_s(bare_loop(products.linear, [], device))
        attention_bound_s = best_time_s(bare_loop(products.linear, products.attention, device))
        forward_s = best_time_s(forward)
    return {
        "forward_s": forward_s,
        "bound_s": bound_s,
        "attention_bound_s": attention_bound_s,
        "share": bound_s / forward_s,
        "share_with_attention": attention_bound_s / forward_s,
    }


def observe(model: nn.Module, forward: Callable[[], None]) -> Products:
    """The products of one call of ``forward``, seen at linear modules, fused products and our attention."""
    found, plain, fused = Products(), attention.attention, fused_linear.linear_pointwise

    def on_linear(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.linear.append((module.weight, module.bias, inputs[0].numel() // module.in_features))

    def on_fused(module: nn.Module, x: Tensor, gelu: str | None = None) -> Tensor:
        on_linear(module, (x,))
        return fused(module, x, gelu)

    def noted(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **options: Any) -> Any:
        texts, heads, queries, size = query.shape
        if "cu_seq_lens_k" in options:  # texts in one row
            lengths = (options[f"cu_seq_lens_{side}"].diff().tolist() for side in "qk")
            alike = Counter(zip(*lengths, strict=True))
            found.attention.extend((count * heads, q, k, size) for (q, k), count in alike.items())
        else:
            found.attention.append((texts * heads, queries, key.shape[2], size))
        return plain(module, query, key, *args, **options)

    hooks = [
        module.register_forward_pre_hook(on_linear)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layer." in name
    ]
    AttentionInterface.register(attention.NAME, noted)
    fused_linear.linear_pointwise = on_fused
    try:
        forward()
    finally:
        attention.register()
        fused_linear.linear_pointwise = fused
        for hook in hooks:
            hook.remove()
    if not found.linear:
        raise ValueError("no linear layer of the encoder was called; the bare loop would be empty")
    return found


def bare_loop(
    linears: list[tuple[Tensor, Tensor | None, int]], attended: list[tuple[int, int, int, int]], device: Any
) -> Callable[[], None]:
    """The products and nothing else, on inputs made beforehand."""
    dtype = linears[0][0].dtype
    made: dict[tuple[int, ...], Tensor] = {}

    def random(*shape: int) -> Tensor:
        if shape not in made:
            made[shape] = torch.randn(shape, device=device).to(dtype)
        return made[shape]

    first = [(random(rows, weight.shape[1]), weight, bias) for weight, bias, rows in linears]
    second = [
        (random(n, queries, size), random(n, size, keys), random(n, queries, keys), random(n, keys, size))
        for n, queries, keys, size in attended
    ]

    def run() -> None:
        for x, weight, bias in first:
            linear(x, weight, bias)
        for queries, keys, weights, values in second:
            torch.bmm(queries, keys)
            torch.bmm(weights, values)
        synchronize(device)

    return run


def outside_kernels(work: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """The share of ``work``'s time in which no kernel computes, by torch's own profiler.

    On a CPU kernels are the operators' own times (``aten::`` and registered ones), on a GPU the device's. The
    profiler itself takes time outside, so the share is an upper bound.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        began = time.perf_counter()
        work()
        synchronize(device)
        wall_s = time.perf_counter() - began
    events = profiler.key_averages()
    if device.type == "cuda":
        kernels_us = sum(event.self_device_time_total for event in events)
    else:
        kernels_us = sum(event.self_cpu_time_total for event in events if is_operator(event.key))
    return {"wall_s": wall_s, "kernels_s": kernels_us / 1e6, "share": max(0.0, 1 - kernels_us / 1e6 / wall_s)}


def is_operator(name: str) -> bool:
    """Whether the profiler's event is an operator that computes (``aten::mm``, ``mine::attention``)."""
    return "::" in name and " " not in name and not NO_KERNELS.match(name)
