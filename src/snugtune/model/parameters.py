"""How many parameters there are, and how many of them are trained, exactly and by part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

EMBEDDING_NAMES = {"embeddings", "embed_tokens", "wte", "wpe", "word_embedding", "tok_embeddings"}
HEAD_NAMES = {"classifier", "score", "pre_classifier", "pooler", "classification_head"}


@dataclass(frozen=True)
class PartCount:
    """Parameters of one part of the model."""

    all: int = 0
    trainable: int = 0


@dataclass(frozen=True)
class ParameterReport:
    """Totals and parts: embeddings, encoder, adapter, head."""

    all: int
    trainable: int
    percent: float
    parts: dict[str, PartCount]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def count_parameters(model: nn.Module) -> ParameterReport:
    """Count each tensor once.

    PEFT keeps the head's starting weights beside the trained copy; both are in memory, and both are in
    ``all``, as in PEFT's own count.
    """
    parts = {name: PartCount() for name in ("embeddings", "encoder", "adapter", "head")}
    for name, parameter in model.named_parameters():
        part = _part(name)
        size = parameter.numel()
        old = parts[part]
        parts[part] = PartCount(old.all + size, old.trainable + (size if parameter.requires_grad else 0))
    total = sum(part.all for part in parts.values())
    trainable = sum(part.trainable for part in parts.values())
    return ParameterReport(total, trainable, 100 * trainable / total, parts)


def _part(name: str) -> str:
    pieces = set(name.split("."))
    if any(piece.startswith("lora_") for piece in pieces):
        return "adapter"
    if pieces & HEAD_NAMES:
        return "head"
    return "embeddings" if pieces & EMBEDDING_NAMES else "encoder"
