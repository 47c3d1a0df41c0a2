"""Our registered attention: the kernel that is fastest where it runs, and the same one every time.

On a CPU, bfloat16 goes block by block through ``blocked_attention`` where that is faster; what it does not
take (a causal mask, fewer heads of keys) goes through torch's fused kernel, in float32 while gradients are
needed, as its bfloat16 backward pass is many times slower for short texts
(``decisions/0002-attention-on-cpu.md``). On a GPU the memory-efficient kernel is pinned and the mask is
always made: a step allocates what was predicted, and nothing is read back to look at the mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

from snugtune.model import blocked_attention
from snugtune.model.varlen import packed_attention

NAME = "snugtune_sdpa"

GPU_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""The kernel that takes a mask on every card since Maxwell, and the written-out one where it cannot run."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention in Transformers' interface.

    Takes (batch, heads, length, head_dim) and returns (batch, length, heads, head_dim). Texts packed into one
    row come with their boundaries (see ``model/packing.py``).
    """
    if "cu_seq_lens_q" in options:
        return packed_attention(module, query, key, value, dropout=dropout, scaling=scaling, **options), None
    if query.device.type == "cuda":
        with sdpa_kernel(GPU_KERNELS):
            return sdpa_attention_forward(  # type: ignore[no-any-return]
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
            )
    usual = not getattr(module, "is_causal", False) and options.get("position_bias") is None
    in_blocks = blocked_attention.can_run(query, key, attention_mask, dropout)
    if usual and in_blocks and blocked_attention.pays(query.shape[2]):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return blocked_attention.attend(query, key, value, attention_mask, scale).transpose(1, 2), None
    plain = query.device.type != "cpu" or query.dtype == torch.float32 or not torch.is_grad_enabled()
    if plain or not usual or key.shape[1] != query.shape[1]:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    mask = (
        attention_mask.float()
        if attention_mask is not None and attention_mask.is_floating_point()
        else attention_mask
    )
    with torch.autocast("cpu", enabled=False):
        mixed = scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask=mask, dropout_p=dropout, scale=scaling
        )
    return mixed.to(query.dtype).transpose(1, 2).contiguous(), None


def mask(*args: Any, **options: Any) -> Tensor | None:
    """Transformers' mask, with a length of one where all its rows are alike and a CPU reads it.

    On a GPU it is made without a look whether it is needed, which would wait for all work.
    """
    if torch.device(options.get("device", "cpu")).type != "cpu":
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return sdpa_mask(*args, **options)  # type: ignore[no-any-return]
    made: Tensor | None = sdpa_mask(*args, **options)
    if made is not None and options.get("mask_function") is bidirectional_mask_function:
        return made[:, :, :1].clone()  # not a view, which would hold the whole of it
    return made


def register() -> str:
    """Make the attention known to Transformers; returns its name for ``attn_implementation``."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
    return NAME
