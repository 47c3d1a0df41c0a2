"""Attention over texts that lie one behind the other in one row: each sees its own tokens and no other's.

A row of T tokens holds N texts; ``boundaries`` (N + 1,) are where they begin and end. On a GPU one kernel
does all of them (FlashAttention 2 inside PyTorch); elsewhere it is a loop over texts of one length through
PyTorch's fused attention, or over texts of nearly one length through ``blocked_attention``, where that is
faster.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from snugtune.model import blocked_attention

LARGEST_HEAD_DIM = 192
"""Above it the kernel's backward pass runs on some of the cards only (PyTorch 2.13,
``aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp``)."""

OPTIONS = {"window_size", "scale"}
"""What the kernel's first version (PyTorch 2.10) lacks."""

SHARED_HEADS = "enable_gqa"
"""The option for fewer heads of keys and values than of queries, which came later (PyTorch 2.12)."""

CHOOSES_CUDNN = "_should_use_cudnn"
"""Its function that says, by the card, whether cuDNN may compute instead."""

EVERYTHING = (-1, -1)
"""The window of a text whose tokens see all of it."""

MAX_PADDING = 128
"""Most tokens of padding in what ``by_blocks`` computes at once: 64 and 256 are as fast on two cores."""

Kernel = Callable[..., Any]


@cache
def kernel() -> Kernel | None:
    """PyTorch's variable-length attention; None where it has none, or one that can do too little.

    A PyTorch for CPUs has it in name, which is enough to plan for a card.
    """
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return None
    _pin_flash(varlen)
    varlen_attn = varlen.varlen_attn
    is_built = torch.version.cuda is None or torch.backends.cuda.is_flash_attention_available()
    # On AMD's cards it is another kernel, which nobody has tried here.
    is_known = _options(varlen_attn) >= OPTIONS and torch.version.hip is None
    return varlen_attn if is_built and is_known else None


def _pin_flash(varlen: Any) -> None:
    """Have FlashAttention compute in every version of PyTorch and on every card.

    From 2.14 on some texts on some cards would go to cuDNN, which compiles a plan for every new number of
    tokens and takes other memory than was planned with.
    """
    if hasattr(varlen, CHOOSES_CUDNN):
        setattr(varlen, CHOOSES_CUDNN, lambda *_device: False)


def takes_shared_heads() -> bool:
    """Whether ``kernel()`` computes grouped-query attention."""
    found = kernel()
    return found is not None and SHARED_HEADS in _options(found)


def _options(function: Kernel) -> set[str]:
    return set(inspect.signature(function).parameters)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    run: Kernel | None = None,
    **options: Any,
) -> Tensor:
    """Attention in Transformers' interface over packed texts; ``options`` has their boundaries.

    Takes (1, heads, T, head_dim), with as many or fewer heads of keys and values, and returns (1, T, heads,
    head_dim). The boundaries come as ``cu_seq_lens_q`` and ``cu_seq_lens_k`` (int32) and the longest text as
    ``max_length_q`` and ``max_length_k``, the names that Transformers gives them; queries may be fewer than
    keys where nothing depends on their places. ``run`` stands in for the kernel that the device has.

    Raises:
        ValueError: attention dropout, which the kernel does not have.
    """
    if dropout:
        raise ValueError("packed texts need a model without attention dropout")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    seen = window(causal, sliding_window)
    rows = [tensor[0].transpose(0, 1) for tensor in _autocast(query, key, value)]
    run = run or _on_device(rows, seen, options["max_length_k"])
    shared = {SHARED_HEADS: True} if query.shape[1] != key.shape[1] else {}
    mixed: Tensor = run(
        *rows, options["cu_seq_lens_q"], options["cu_seq_lens_k"], options["max_length_q"],
        options["max_length_k"], scale=scaling, window_size=seen, **shared,
    )  # fmt: skip
    return mixed[None]


def _on_device(rows: Sequence[Tensor], seen: tuple[int, int], longest: int) -> Kernel:
    """What computes attention where ``rows``, of queries, keys and values, are."""
    query, key, _value = rows
    if query.device.type == "cuda":
        on_card = kernel()
        assert on_card is not None
        return on_card
    in_blocks = (
        query.dtype == torch.bfloat16
        and query.shape == key.shape
        and seen == EVERYTHING
        and longest <= blocked_attention.LONGEST
        and blocked_attention.pays(longest)
    )
    return by_blocks if in_blocks else by_text


def _autocast(*tensors: Tensor) -> list[Tensor]:
    """As PyTorch's own attention is autocast; the variable-length kernel is not."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]


def window(causal: bool, sliding_window: int | None) -> tuple[int, int]:
    """How many tokens to the left and right a token sees beside itself, -1 for all of them.

    Transformers' ``sliding_window`` counts the token itself.
    """
    side = -1 if sliding_window is None else sliding_window - 1
    return side, 0 if causal else side


def by_text(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    boundaries: Tensor,
    boundaries_of_keys: Tensor,
    _longest: int,
    _longest_of_keys: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = EVERYTHING,
    enable_gqa: bool = False,
) -> Tensor:
    """The same as ``kernel()`` text by text, on any device and in any number format.

    Takes and returns (T, heads, head_dim); ``boundaries`` are read on the host. Texts of one length that lie
    side by side are computed at once. What lies behind the last text is nobody's and comes back as zeros.
    """
    out = query.new_zeros(query.shape) if int(boundaries[-1]) < len(query) else torch.empty_like(query)
    for at, text, count in _alike(boundaries.tolist(), boundaries_of_keys.tolist()):
        seen = _within(window_size, (text.stop - text.start) // count, query.device)
        mixed = scaled_dot_product_attention(
            _texts(query[at], count), _texts(key[text], count), _texts(value[text], count),
            attn_mask=seen, scale=scale, enable_gqa=enable_gqa,
        )  # fmt: skip
        out[at].view(count, -1, *out.shape[1:]).copy_(mixed.transpose(1, 2))
    return out


def by_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    boundaries: Tensor,
    *_keys_and_longest: Any,
    scale: float | None = None,
    **_window: Any,
) -> Tensor:
    """As ``by_text``, for what ``blocked_attention`` takes, where each token sees all of its text.

    Texts of nearly one length that lie side by side are padded to the longest and computed at once.
    """
    out = query.new_zeros(query.shape) if int(boundaries[-1]) < len(query) else torch.empty_like(query)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    for starts, lengths in _nearly_alike(boundaries.tolist()):
        at = slice(starts[0], starts[-1] + lengths[-1])
        if min(lengths) == max(lengths):
            q, k, v = (_texts(tensor[at], len(lengths)) for tensor in (query, key, value))
            mixed = blocked_attention.attend(q, k, v, None, scale)
            out[at].view(len(lengths), -1, *out.shape[1:]).copy_(mixed.transpose(1, 2))
        else:
            places = torch.arange(max(lengths))
            real = places < torch.tensor(lengths)[:, None]
            # What pads a text is the next one's beginning, or the last token of all.
            read = (torch.tensor(starts)[:, None] + places).clamp_(max=at.stop - 1)
            q, k, v = (tensor[read].transpose(1, 2) for tensor in (query, key, value))
            mixed = blocked_attention.attend(q, k, v, real[:, None, None], scale)
            out[at] = mixed.transpose(1, 2)[real]
    return out


def _nearly_alike(boundaries: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Starts and lengths of texts side by side, as many at a time as ``MAX_PADDING`` lets be padded."""
    first = longest = 0
    for i, (start, end) in enumerate(pairwise(boundaries)):
        longest = max(longest, end - start)
        if longest * (i + 1 - first) - (end - boundaries[first]) > MAX_PADDING:
            yield _spans(boundaries[first : i + 1])
            first, longest = i, end - start
    yield _spans(boundaries[first:])


def _spans(boundaries: Sequence[int]) -> tuple[list[int], list[int]]:
    return list(boundaries[:-1]), [end - start for start, end in pairwise(boundaries)]


def _alike(queries: Sequence[int], keys: Sequence[int]) -> Iterator[tuple[slice, slice, int]]:
    """Runs of texts with as many tokens each: where queries and keys lie, and how many texts they are."""
    first = 0
    lengths = [(q[1] - q[0], k[1] - k[0]) for q, k in zip(pairwise(queries), pairwise(keys), strict=True)]
    for i, length in enumerate(lengths):
        if i + 1 == len(lengths) or lengths[i + 1] != length:
            yield slice(queries[first], queries[i + 1]), slice(keys[first], keys[i + 1]), i + 1 - first
            first = i + 1


def _texts(rows: Tensor, count: int) -> Tensor:
    """(T, heads, head_dim) of ``count`` texts of one length as (count, heads, length, head_dim)."""
    return rows.reshape(count, -1, *rows.shape[1:]).transpose(1, 2)


def _within(window_size: tuple[int, int], length: int, device: torch.device) -> Tensor | None:
    """Which keys (columns) a query (row) of a text of ``length`` sees; None for all."""
    left, right = window_size
    if left < 0 and right < 0:
        return None
    at = torch.arange(length, device=device)
    ahead = at - at[:, None]
    seen = torch.ones_like(ahead, dtype=torch.bool)
    if left >= 0:
        seen &= ahead >= -left
    if right >= 0:
        seen &= ahead <= right
    return seen
