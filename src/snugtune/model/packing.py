"""Several texts in one row of tokens, without padding, through a stock model: as if each stood alone.

Three things would else tell them from unpacked texts. Positions start anew with each text (at
``padding_idx + 1`` in the RoBERTa family). Attention stays within a text: the boundaries reach our registered
attention (``model/varlen.py``) under Transformers' own names for them. And the head, which in a padded batch
reads the first or the last token of each row, is given that token of each text. What is packed, and what is
not, is told in ``decisions/0013-packing.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import relu
from transformers import PretrainedConfig, PreTrainedModel

from snugtune.model.adapter import virtual_tokens
from snugtune.model.attention import NAME
from snugtune.model.sharding import is_sharded
from snugtune.model.varlen import LARGEST_HEAD_DIM, kernel, takes_shared_heads


@dataclass(frozen=True)
class PackedTexts:
    """N texts in one row of T tokens.

    ``input_ids`` and ``position_ids`` are (1, T), ``boundaries`` (N + 1,) of int32 says where texts begin and
    end, ``read_at`` (N,) which token of the row speaks for each. ``longest`` is the longest one's length.
    Behind the last text there may be tokens of none.
    """

    input_ids: Tensor
    position_ids: Tensor
    boundaries: Tensor
    read_at: Tensor
    longest: int

    def to(self, move: Callable[[Tensor], Tensor]) -> PackedTexts:
        """The same with every tensor moved."""
        return PackedTexts(
            move(self.input_ids), move(self.position_ids), move(self.boundaries), move(self.read_at),
            self.longest,
        )  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """How a family reads packed texts.

    ``head`` makes logits (N, K) of a plain model and the tokens (N, H) that speak for the texts; the ``last``
    token does in decoders, else the first. ``counts_padding`` is the RoBERTa family's way with positions.
    """

    head: Callable[[Any, Tensor], Tensor]
    last: bool = False
    counts_padding: bool = False


def _bert(model: Any, read: Tensor) -> Tensor:
    return model.classifier(model.dropout(model.base_model.pooler(read[:, None])))  # type: ignore[no-any-return]


def _classifier_of_first(model: Any, read: Tensor) -> Tensor:
    return model.classifier(read[:, None])  # type: ignore[no-any-return]


def _distilbert(model: Any, read: Tensor) -> Tensor:
    return model.classifier(model.dropout(relu(model.pre_classifier(read))))  # type: ignore[no-any-return]


def _modernbert(model: Any, read: Tensor) -> Tensor:
    return model.classifier(model.drop(model.head(read)))  # type: ignore[no-any-return]


def _score(model: Any, read: Tensor) -> Tensor:
    return model.score(read)  # type: ignore[no-any-return]


_ROBERTA = Reading(_classifier_of_first, counts_padding=True)
_DECODER = Reading(_score, last=True)

FAMILIES = {
    "bert": Reading(_bert),
    "camembert": _ROBERTA,
    "distilbert": Reading(_distilbert),
    "electra": Reading(_classifier_of_first),
    "gemma": _DECODER,
    "gemma3_text": _DECODER,
    "gpt2": _DECODER,
    "llama": _DECODER,
    "mistral": _DECODER,
    "modernbert": Reading(_modernbert),
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
"""By model type, what Transformers' own classifier does with the last hidden state (5.23, the families'
``modeling_*.py``). Only families whose packed and unpacked results are compared by a test are here."""


def is_packable(config: PretrainedConfig) -> bool:
    """Whether a model of ``config`` gives packed texts the same logits as unpacked ones.

    Not so for other families, for attention dropout, which the kernel does not have, and for settings that
    leave the plain way of attention.
    """
    if config.model_type not in FAMILIES:
        return False
    unusual = ("is_decoder", "reorder_and_upcast_attn", "use_bidirectional_attention")
    dropouts = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
    return not any(getattr(config, name, None) for name in (*unusual, *dropouts))


def kernel_takes(config: PretrainedConfig) -> bool:
    """Whether this PyTorch has a variable-length kernel for the model's heads."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    is_shared = getattr(config, "num_key_value_heads", None) not in (None, heads)
    return (
        kernel() is not None
        and head_dim % 8 == 0
        and head_dim <= LARGEST_HEAD_DIM
        and (takes_shared_heads() or not is_shared)
    )


def plain(model: nn.Module) -> PreTrainedModel:
    """The Transformers model itself, with its adapters in place."""
    found: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    return found


def packs_on_cpu(model: nn.Module) -> bool:
    """Whether texts can be packed for ``model`` where there is no variable-length kernel and none is needed.

    That is without gradients: the attention that stands in for the kernel takes texts of one length at once.
    """
    inner = plain(model)
    return (
        isinstance(inner, PreTrainedModel)
        and inner.config._attn_implementation == NAME
        and is_packable(inner.config)
        and not virtual_tokens(model)
        # Layers that are gathered for one pass at a time hang on the whole model's own forward.
        and not is_sharded(model)
    )


def row_size(tokens: int) -> int:
    """The length of a row that has room for so many tokens, of few lengths that there are.

    Multiples of 32 up to 256, then four lengths to each doubling. oneDNN compiles a product of bfloat16 anew
    for each number of rows: on a processor that multiplies tiles (AMX), one of MiniLM's feed-forward layer
    takes 20 to 40 ms and some MiB, longer than six layers need to compute 2,048 tokens.
    """
    step = max(32, (1 << (max(tokens, 1) - 1).bit_length()) // 8)
    return -(-tokens // step) * step


def pack(rows: Sequence[NDArray[np.int32]], model: nn.Module, size: int = 0) -> PackedTexts:
    """Token ids of texts, each with its special tokens, for ``packed_logits`` of this model; on the host.

    A row that is shorter than ``size`` is filled up with tokens that belong to no text.
    """
    inner = plain(model)
    reading = FAMILIES[inner.config.model_type]
    lengths = np.array([len(row) for row in rows])
    boundaries = np.concatenate([[0], np.cumsum(lengths)])
    if reading.counts_padding:
        # Transformers' create_position_ids_from_input_ids: padding, even inside a text, is not counted.
        padding: int = inner.base_model.embeddings.padding_idx
        positions = np.concatenate([np.cumsum(row != padding) * (row != padding) + padding for row in rows])
    else:
        positions = np.arange(boundaries[-1]) - np.repeat(boundaries[:-1], lengths)
    if reading.last:
        # Transformers' rule: the last token that is not the pad token; see ``head.pooled_positions``.
        pad = inner.config.get_text_config().pad_token_id
        read = [int((np.arange(len(row)) * (row != pad)).argmax()) for row in rows]
    else:
        read = [0] * len(rows)
    # Any token that there is, at any place: nobody looks at what becomes of it.
    rest = np.zeros(max(0, size - boundaries[-1]), dtype=np.int64)
    return PackedTexts(
        torch.from_numpy(np.concatenate([*rows, rest]).astype(np.int64))[None],
        torch.from_numpy(np.concatenate([positions, rest]).astype(np.int64))[None],
        torch.from_numpy(boundaries.astype(np.int32)),
        torch.from_numpy(boundaries[:-1] + np.array(read)),
        int(lengths.max()),
    )


def packed_logits(model: nn.Module, texts: PackedTexts) -> Tensor:
    """Logits (N, K) of packed texts, as the model's own forward gives them for a padded batch."""
    inner = plain(model)
    hidden: Tensor = inner.base_model(
        input_ids=texts.input_ids,
        position_ids=texts.position_ids,
        # Four dimensions pass for a finished mask, so that Transformers makes none of (T, T).
        attention_mask=texts.boundaries.view(1, 1, 1, -1),
        cu_seq_lens_q=texts.boundaries,
        cu_seq_lens_k=texts.boundaries,
        max_length_q=texts.longest,
        max_length_k=texts.longest,
    ).last_hidden_state[0]
    return FAMILIES[inner.config.model_type].head(inner, _speaking(inner.config, hidden, texts))


def _speaking(config: PretrainedConfig, hidden: Tensor, texts: PackedTexts) -> Tensor:
    """What speaks for each text, (N, H): a token of it, or the mean of all where the model is made so."""
    if getattr(config, "classifier_pooling", "cls") == "mean":
        return _means(hidden, texts.boundaries)
    # The last layer may have computed no others (``model/first_token.py``).
    return hidden if len(hidden) == len(texts.read_at) else hidden.index_select(0, texts.read_at)


def _means(hidden: Tensor, boundaries: Tensor) -> Tensor:
    """Means over each text's tokens of (T, H), as one product in float32: the order of adding is fixed."""
    at = torch.arange(len(hidden), device=hidden.device)
    starts, ends = boundaries[:-1, None], boundaries[1:, None]
    share = ((at >= starts) & (at < ends)).float() / (ends - starts)
    with torch.autocast(hidden.device.type, enabled=False):
        return (share @ hidden.float()).to(hidden.dtype)
