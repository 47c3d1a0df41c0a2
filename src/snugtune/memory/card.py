"""What an NVIDIA card does differently from a CPU, above autograd, while fake tensors stand in for real ones.

Fake tensors carry the CPU's dispatch keys, so the dispatcher itself applies ``torch.autocast("cpu")`` to
matrix products. This mode adds what differs on CUDA (PyTorch 2.13 ``aten/src/ATen/autocast_mode.h``): the
operators that autocast runs in float32, dropout that keeps a mask of one byte, and the memory-efficient
attention kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from snugtune.model.varlen import kernel, packed_attention

ATTENTION_NAME = "snugtune_card"

RUN_IN_FLOAT32: frozenset[Callable[..., Any]] = frozenset(
    {
        functional.layer_norm, functional.group_norm, functional.rms_norm, torch.pow, Tensor.pow,
        Tensor.__pow__, torch.rsqrt, Tensor.rsqrt, torch.exp, Tensor.exp, torch.log, Tensor.log, torch.norm,
        Tensor.norm, torch.reciprocal, Tensor.reciprocal, functional.nll_loss, functional.mse_loss,
    }
)  # fmt: skip
"""Autocast's float32 list on CUDA, as far as text classifiers use it."""

SOFTMAX: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.softmax: torch.ops.aten._softmax,
    torch.softmax: torch.ops.aten._softmax,
    Tensor.softmax: torch.ops.aten._softmax,
    functional.log_softmax: torch.ops.aten._log_softmax,
    torch.log_softmax: torch.ops.aten._log_softmax,
    Tensor.log_softmax: torch.ops.aten._log_softmax,
}
"""Autocast gives these ``dtype=float32``. Of float16 they then write float32 in one kernel, of bfloat16 they
copy first (``aten/src/ATen/native/SoftMax.cpp``)."""

SOFTMAX_ARGUMENTS = dict.fromkeys(
    (functional.softmax, functional.log_softmax), ("input", "dim", "_stacklevel", "dtype")
)
"""Names of positional arguments where they are not input, dim and dtype."""

SUMS: frozenset[Callable[..., Any]] = frozenset({torch.sum, Tensor.sum, torch.cumsum, Tensor.cumsum})
"""These get ``dtype=float32``, too, and copy nothing."""

MASK_ALIGNMENT = 8
"""Elements to whose multiple the last dimension of an attention bias is padded
(``aten/src/ATen/native/transformers/attention.cpp``, ``preprocess_mask``)."""


class CardSemantics(TorchFunctionMode):
    """Inside, fake CPU tensors are cast, dropped out and attended to as on a card."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the few calls that differ."""
        kwargs = kwargs or {}
        if func is functional.dropout:
            return _dropout(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            return _efficient_attention(*args, **kwargs)
        is_autocast = torch.is_autocast_enabled("cpu")
        if func in SOFTMAX:
            return _softmax(func, args, kwargs, is_autocast=is_autocast)
        if is_autocast and func in RUN_IN_FLOAT32:
            args = tuple(map(_float32, args))
            kwargs = {key: _float32(value) for key, value in kwargs.items()}
        elif is_autocast and func in SUMS and args and _is_half(args[0]) and kwargs.get("dtype") is None:
            kwargs = {**kwargs, "dtype": torch.float32}
        return func(*args, **kwargs)


def register() -> str:
    """Make the card's attention known to Transformers; returns its name for ``attn_implementation``."""
    AttentionInterface.register(ATTENTION_NAME, _attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
    return ATTENTION_NAME


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    if "cu_seq_lens_q" in options:
        return packed_attention(module, query, key, value, run=kernel(), **options), None
    return sdpa_attention_forward(module, query, key, value, mask, **options)  # type: ignore[no-any-return]


def _float32(value: Any) -> Any:
    return value.float() if _is_half(value) else value


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)


def _softmax(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, is_autocast: bool
) -> Any:
    """Softmax as a card computes it, however its arguments were given."""
    given = dict(zip(SOFTMAX_ARGUMENTS.get(func, ("input", "dim", "dtype")), args, strict=False)) | kwargs
    values, dim, dtype = (given.get(name) for name in ("input", "dim", "dtype"))
    if dtype is None and is_autocast:
        dtype = torch.float32
    if dtype is None or dim is None or not isinstance(values, Tensor):
        return func(*args, **kwargs)
    if dtype == torch.float32 and values.dtype == torch.float16:
        return SOFTMAX[func](values, dim, True)
    plain = torch.softmax if SOFTMAX[func] is torch.ops.aten._softmax else torch.log_softmax
    return plain(values, dim, dtype=dtype)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # noqa: A002
    if not training or p == 0.0:
        return input
    out = torch.native_dropout(input, p, True)[0]
    return input.copy_(out) if inplace else out


def _efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention`` as the memory-efficient kernel runs it.

    A boolean mask becomes an additive one in each layer, held for the backward pass.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (t.to(dtype) for t in (query, key, value))
    if enable_gqa and key.shape[1] != query.shape[1]:
        repeat = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(repeat, dim=1) for t in (key, value))
    bias = None if attn_mask is None else _bias(attn_mask, query)
    keep_statistics = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, keep_statistics, dropout_p, is_causal, scale=scale
    )[0]
    return out


def _bias(mask: Tensor, query: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        minus_infinity = torch.scalar_tensor(-torch.inf, dtype=query.dtype)
        mask = torch.where(mask, torch.scalar_tensor(0.0, dtype=query.dtype), minus_infinity)
    else:
        mask = mask.to(query.dtype)
    if missing := -mask.shape[-1] % MASK_ALIGNMENT:
        mask = functional.pad(mask, (0, missing))[..., : mask.shape[-1]]
    return mask.expand(*query.shape[:3], mask.shape[-1])
