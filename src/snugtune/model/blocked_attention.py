"""Attention in bfloat16 on CPUs, block by block: as much of the scores at a time as stays in the cache.

torch's fused kernel holds the scores of few tokens at a time, in float32, and its matrix products are too
small for the bfloat16 units. Here the scores of whole texts are made by one batched product of bfloat16,
weighed in place and multiplied with the values, for as many heads at a time as fit ``BLOCK_BYTES``. With q
and k the queries and keys, d the head's width:

    e = 2 ^ (q k^T log2(e) / sqrt(d)),   l = rows of e summed up,   out = e v / l

The factor is multiplied into q. Two more columns of q and k carry what else must be added to a score: one the
padding mask, one the largest score of a row. The latter is subtracted only from rows whose sum leaves
the range in which bfloat16, which has float32's exponents, is exact without.

Backward makes e again (nothing as large as the scores is kept) and follows Dao et al. 2022, arXiv:2205.14135,
appendix B.2: with p = e / l, g the gradient of the output and D = rows of g * out summed up,

    dv = p^T g,   ds = p * (g v^T - D),   dq = ds k / sqrt(d),   dk = ds^T q / sqrt(d)

where 1 / l is multiplied into g and D, and D is two more columns of g.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

BLOCK_BYTES = 4 << 20
"""Scores held at a time: of 1, 2 and 4 MiB the fastest on two cores with 1 MiB of cache each."""

LONGEST = 2048
"""Tokens of a text beyond which one head's scores are more than twice ``BLOCK_BYTES``."""

LOG2_E = math.log2(math.e)

PADDING = -1e4
"""Score of a padding token: 2 to its power is nothing, in any number format."""

SMALLEST_SUM, LARGEST_SUM = 2.0**-60, 2.0**60
"""Between these, no weight of note has left bfloat16's normal numbers, which end at 2^-126 and 2^128."""

SHORTEST_ON_TILES = 65
"""Tokens of a text below which torch's kernel in float32, with its backward pass, is faster than blocks on a
processor that multiplies tiles (AMX). Without gradients its kernel in bfloat16 is, at any length."""

_Part = tuple[slice, slice]


def pays(length: int) -> bool:
    """Whether it is faster here than torch's own kernels at so many tokens (``decisions/0002``)."""
    if not torch.cpu._is_amx_tile_supported():
        return True
    return torch.is_grad_enabled() and length >= SHORTEST_ON_TILES


def can_run(query: Tensor, key: Tensor, mask: Tensor | None, dropout: float) -> bool:
    """Whether ``attend`` computes this attention: bfloat16 on a CPU, padding masked at most, no dropout."""
    return (
        query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and query.shape == key.shape
        and query.shape[2] <= LONGEST
        and dropout == 0.0
        and (mask is None or (mask.dtype == torch.bool and mask.shape[1:3] == (1, 1)))
    )


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T) v of (batch, heads, length, head_dim), in that shape, laid out length first.

    ``mask`` is (batch, 1, 1, length), true where a token is read; see ``can_run`` for what is taken.
    """
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _Blocked.apply(query, key, value, mask, scale)  # type: ignore[no-untyped-call]
    return out


class _Blocked(torch.autograd.Function):
    """The formulas at the head of this file."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        queries = _widened(query, scale * LOG2_E, 1.0, 0.0)
        keys = _widened(key, 1.0, 0.0 if mask is None else torch.where(mask[:, :, 0], 0.0, PADDING), 1.0)
        value = value.contiguous()
        out, sums = _length_first(query), query.new_empty(*query.shape[:3], 1)
        for part in _parts(query.shape):
            weights = _weights(_pairs(queries, part), _pairs(keys, part), sums[part])
            mixed = torch.bmm(weights, _pairs(value, part))
            torch.div(mixed.view_as(out[part]), sums[part], out=out[part])
        ctx.save_for_backward(queries, keys, value, out, sums)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, value, out, sums = ctx.saved_tensors
        width = value.shape[-1]
        grad = grad / sums
        # D in two summands: what the first loses by rounding is the second.
        rows = (grad * out).sum(-1, dtype=torch.promote_types(grad.dtype, torch.float32))
        rounded = rows.to(grad.dtype)
        grads = _widened(grad, 1.0, -rounded, rounded - rows)
        values = _widened(value, 1.0, 1.0, 1.0)
        # The products need their last dimension dense.
        grad, plain_queries, plain_keys = (
            t.contiguous() for t in (grad, queries[..., :width], keys[..., :width])
        )
        needs_query, needs_key, needs_value = ctx.needs_input_grad[:3]
        d_query, d_key, d_value = (
            _length_first(value) if needed else None for needed in (needs_query, needs_key, needs_value)
        )
        for part in _parts(value.shape):
            weights = torch.bmm(_pairs(queries, part), _pairs(keys, part).mT).exp2_()
            if d_value is not None:
                d_value[part] = torch.bmm(weights.mT, _pairs(grad, part)).view_as(d_value[part])
            d_scores = weights.mul_(torch.bmm(_pairs(grads, part), _pairs(values, part).mT))
            if d_query is not None:
                product = torch.bmm(d_scores, _pairs(plain_keys, part)).view_as(d_query[part])
                torch.mul(product, ctx.scale, out=d_query[part])
            if d_key is not None:
                product = torch.bmm(d_scores.mT, _pairs(plain_queries, part)).view_as(d_key[part])
                torch.mul(product, 1 / LOG2_E, out=d_key[part])
        return d_query, d_key, d_value, None, None


def _weights(queries: Tensor, keys: Tensor, sums: Tensor) -> Tensor:
    """Weights e (pairs, length, length); writes their ``sums``, and into ``queries`` what it subtracted."""
    weights = torch.bmm(queries, keys.mT).exp2_()
    totals = weights.sum(-1, keepdim=True)
    # On fake tensors nobody can look; the few rows that the other case adds are no memory of note.
    if not isinstance(totals, FakeTensor) and not (inside := _in_range(totals)).all():
        scores = torch.bmm(queries, keys.mT, out=weights)
        # Only where it must be: what a text gives does not depend on the others.
        queries[..., -1] = torch.where(inside.squeeze(-1), 0.0, -scores.amax(-1))
        weights = torch.bmm(queries, keys.mT, out=weights).exp2_()
        totals = weights.sum(-1, keepdim=True)
    sums.copy_(totals.view_as(sums))
    return weights


def _in_range(sums: Tensor) -> Tensor:
    """Where they are; a sum that is not a number is in no range."""
    return (sums > SMALLEST_SUM) & (sums < LARGEST_SUM)


def _widened(tensor: Tensor, factor: float, first: Tensor | float, second: Tensor | float) -> Tensor:
    """``tensor`` times ``factor``, with two more columns."""
    width = tensor.shape[-1]
    wide = tensor.new_empty(*tensor.shape[:-1], width + 2)
    torch.mul(tensor, factor, out=wide[..., :width])
    wide[..., width], wide[..., width + 1] = first, second
    return wide


def _length_first(like: Tensor) -> Tensor:
    """Room for (batch, heads, length, width), laid out as the linear layer that reads it wants it."""
    batch, heads, length, width = like.shape
    return like.new_empty(batch, length, heads, width).transpose(1, 2)


def _pairs(tensor: Tensor, part: _Part) -> Tensor:
    """The texts and heads of ``part`` in one dimension."""
    return tensor[part].flatten(0, 1)


def _parts(shape: torch.Size) -> Iterator[_Part]:
    """Texts and heads whose scores fill a block: whole texts, or some heads of one."""
    texts, heads, length, _ = shape
    pairs = max(1, BLOCK_BYTES // (2 * length * length))
    if pairs >= heads:
        step = pairs // heads
        yield from ((slice(i, i + step), slice(0, heads)) for i in range(0, texts, step))
    else:
        for i in range(texts):
            yield from ((slice(i, i + 1), slice(j, j + pairs)) for j in range(0, heads, pairs))
