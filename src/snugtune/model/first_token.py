"""The last layer of an encoder, computed for the one token that the head reads.

Heads of the BERT family read the first token. What the last layer makes of the others is thrown away, and so
need not be made: keys and values are still those of every token, but there is one query, and one position
goes through the feed-forward part. Nothing else in the model changes, and nothing of this is saved.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from snugtune.model.checkpointing import encoder_layers

FIRST_TOKEN_TYPES = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra"})
"""Model types of Transformers' BERT layout whose sequence-classification head reads ``[:, 0]`` alone."""


def read_first_token_only(model: nn.Module) -> bool:
    """Let the last layer compute the first token only, where the head reads no other; whether it does.

    The layer then returns (batch, 1, hidden), equal to rounding to the first token of what it returned; of N
    packed texts (1, N, hidden). A model whose attention is written out ("eager") stays as it is: it is taken
    for the model of someone else.
    """
    config: Any = model.config
    if config.model_type not in FIRST_TOKEN_TYPES or config._attn_implementation == "eager":
        return False
    if getattr(config, "is_decoder", False):
        return False
    layer = encoder_layers(model)[-1]
    layer.forward = partial(_forward, layer)
    return True


def _forward(
    layer: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *_: Any,
    past_key_values: Any = None,
    **options: Any,
) -> Tensor:
    if "cu_seq_lens_k" in options:
        first, options = _first_of_each(hidden_states, options)
    else:
        first, options = hidden_states[:, :1], {}
    mixed = _attend(layer.attention.self, first, hidden_states, attention_mask, past_key_values, options)
    out: Tensor = layer.feed_forward_chunk(layer.attention.output(mixed, first))
    return out


def _first_of_each(tokens: Tensor, options: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The first token of each of N packed texts, (1, N, hidden), and boundaries for so many queries."""
    boundaries = options["cu_seq_lens_k"]
    alone = torch.arange(len(boundaries), dtype=boundaries.dtype, device=boundaries.device)
    return tokens.index_select(1, boundaries[:-1]), {**options, "cu_seq_lens_q": alone, "max_length_q": 1}


def _attend(
    attention: Any,
    queries: Tensor,
    tokens: Tensor,
    mask: Tensor | None,
    past_key_values: Any,
    options: dict[str, Any],
) -> Tensor:
    """Attention of ``queries`` (batch, n, hidden) over ``tokens`` (batch, length, hidden).

    Keys and values of prefix tuning, where there are any, come before those of the tokens.
    """

    def heads(projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:2], -1, attention.attention_head_size).transpose(1, 2)

    attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
    keys, values = heads(attention.key(tokens)), heads(attention.value(tokens))
    if past_key_values is not None:
        keys, values = past_key_values.update(keys, values, attention.layer_idx)
    mixed: Tensor = attend(
        attention,
        heads(attention.query(queries)),
        keys,
        values,
        # All rows of a padding mask are alike.
        mask if mask is None else mask[:, :, : queries.shape[1]],
        dropout=attention.dropout.p if attention.training else 0.0,
        scaling=attention.scaling,
        **options,
    )[0]
    return mixed.flatten(2)
