"""How many parameters there are, and how many of them are trained, exactly and by part.

Nothing here needs weights: models are built on PyTorch's meta device, where tensors have shapes only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from snugtune.config import FitConfig
from snugtune.errors import UserInputError
from snugtune.model.adapter import wrap
from snugtune.model.known import bad_values, find_config, no_text_classifier
from snugtune.model.pooling import planned_config
from snugtune.model.quantization import count_weights
from snugtune.model.unscripted import import_unscripted

PARTS = ("embeddings", "encoder", "adapter", "head")

EMBEDDING_NAMES = {"embeddings", "embed_tokens", "wte", "wpe", "word_embedding", "tok_embeddings"}
"""Modules, by the architectures' own names, that turn token ids and positions into vectors."""

HEAD_NAMES = {"classifier", "score", "pre_classifier", "pooler", "classification_head", "head"}
"""Modules between the last hidden state and the logits ("head" is ModernBERT's dense layer)."""

SAVED_NAMES = {"modules_to_save", "original_module"}
"""What PEFT's ``ModulesToSaveWrapper`` calls the trained copy and the module it was copied from."""

ADAPTER_PREFIXES = (*PEFT_TYPE_TO_PREFIX_MAPPING.values(), "prompt_encoder")
"""Beginnings of the parameter names of PEFT's methods: ``lora_``, ``ia3_``, ``oft_`` and so on."""


@dataclass(frozen=True)
class PartCount:
    """Parameters of one part of the model."""

    all: int = 0
    trainable: int = 0


@dataclass(frozen=True)
class ParameterReport:
    """Totals and parts: embeddings, encoder, adapter, head. ``percent`` is 100 x trainable / all."""

    all: int
    trainable: int
    percent: float
    parts: dict[str, PartCount]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def plan_parameters(config: FitConfig, num_labels: int) -> ParameterReport:
    """What a fit with ``config`` would train on ``num_labels`` classes; needs no data and no weights.

    Raises:
        UserInputError: fewer than two classes, a model that cannot be found or is no text classifier, or
            target modules that it does not have.
    """
    if num_labels < 2:
        raise UserInputError(f"A classifier needs at least 2 labels, not {num_labels}; give their number.")
    published = find_config(config.model, num_labels, revision=config.revision)
    model = meta_model(planned_config(published, config.model, config.pooling))
    return count_parameters(wrap(model, config))


def meta_model(config: PretrainedConfig, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The sequence-classification model of ``config`` on the meta device: shapes, no memory.

    Raises:
        UserInputError: Transformers has no sequence-classification model of this architecture, or none can be
            made of such values.
    """
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserInputError(no_text_classifier(config.model_type))
    import_unscripted(config)
    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    except Exception as error:
        # What a model cannot do with a value it tells in any way: ValueError, RuntimeError, an assertion.
        raise UserInputError(bad_values(config.name_or_path or config.model_type, error)) from error


def count_parameters(model: nn.Module) -> ParameterReport:
    """Count every tensor of a plain or PEFT-wrapped sequence-classification model once.

    Tied weights are one tensor. PEFT's ``modules_to_save`` keeps the head as loaded beside the copy that is
    trained: two tensors, both in memory, so both are in ``all`` as in PEFT's own
    ``get_nb_trainable_parameters``; only the copy is in ``trainable``.

    For xlm-roberta-large, r=16 on query and value, 214 labels:

    ==========  ===========  =========  ==========================================================
    part                all  trainable  formula
    ==========  ===========  =========  ==========================================================
    embeddings  256,531,456          0  (250,002 + 514 + 1) x 1,024, and 2 x 1,024 of layer norm
    encoder     302,309,376          0  24 layers of 12,596,224
    adapter       1,572,864  1,572,864  24 layers x 2 modules x r x (1,024 + 1,024)
    head          2,537,900  1,268,950  2 copies of 1,024 x 1,025 + 214 x 1,025
    total       562,951,596  2,841,814  0.5048 %
    ==========  ===========  =========  ==========================================================

    The often-quoted 4,110,764 trainable parameters of this setting are 1,572,864 + 2 x 1,268,950: PEFT
    releases of that time left ``requires_grad`` on for the unused original of the head and counted it too.
    """
    counts = {part: [0, 0] for part in PARTS}
    for name, parameter in model.named_parameters():
        count = counts[_part(name)]
        count[0] += count_weights(parameter)
        count[1] += parameter.numel() if parameter.requires_grad else 0
    total, trainable = (sum(count[i] for count in counts.values()) for i in (0, 1))
    percent = 100 * trainable / total if total else 0.0
    return ParameterReport(total, trainable, percent, {part: PartCount(*counts[part]) for part in PARTS})


def _part(name: str) -> str:
    pieces = name.split(".")
    if any(piece.startswith(ADAPTER_PREFIXES) for piece in pieces):
        return "adapter"
    if not EMBEDDING_NAMES.isdisjoint(pieces):
        return "embeddings"
    return "encoder" if (HEAD_NAMES | SAVED_NAMES).isdisjoint(pieces) else "head"
