"""Model FLOPs: what training and prediction must compute at least, whatever an implementation computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A BERT-like encoder, K classes, LoRA of rank ``r`` on query and value from layer ``lowest`` up."""

    layers: int
    hidden: int
    intermediate: int
    r: int
    classes: int
    lowest: int = 0

    @classmethod
    def of(cls, config: Any, r: int, classes: int, lowest: int = 0) -> Shape:
        """From a Transformers configuration."""
        sizes = config.num_hidden_layers, config.hidden_size, config.intermediate_size
        return cls(*sizes, r, classes, lowest)


def training_flops(shape: Shape, lengths: Sequence[int]) -> float:
    """Floating-point operations to train once on texts of ``lengths`` tokens, none of them padding.

    A product of (m, k) and (k, n) counts 2 m k n. Frozen weights cost their forward product and the
    gradient of their input (4 N a token); adapters and head also the gradient of their weights (6 N). Below
    the lowest adapter there is no gradient: layers under it are computed forward only (2 N); its own
    layer's query, key and value give none to their input, nor do its adapters' first factors, and its keys
    need none at all. Attention's two products cost twice as much again backward.
    Recomputation is an implementation's own cost and does not count (Chowdhery et al. 2022, PaLM, app. B).
    """
    h, tokens, square = shape.hidden, float(sum(lengths)), float(sum(n * n for n in lengths))
    factor, above = h * shape.r, shape.layers - shape.lowest
    per_token = shape.lowest * 2 * _layer(shape) + above * (4 * _layer(shape) + 2 * 6 * 2 * factor)
    per_token -= 2 * 3 * h * h + 2 * 2 * factor
    attention = (shape.lowest * 2 * 2 + above * 3 * 2 * 2 - 2) * h * square
    return per_token * tokens + attention + len(lengths) * 3 * _head(shape)


def forward_flops(shape: Shape, lengths: Sequence[int], *, merged: bool) -> float:
    """Floating-point operations of a forward pass, with the adapters as they train or ``merged``."""
    h, adapted = shape.hidden, 0 if merged else shape.layers - shape.lowest
    per_token = shape.layers * 2 * _layer(shape) + adapted * 2 * 2 * 2 * h * shape.r
    attention = shape.layers * 2 * 2 * h * float(sum(n * n for n in lengths))
    return per_token * float(sum(lengths)) + attention + len(lengths) * _head(shape)


def _layer(shape: Shape) -> int:
    """Weights of a layer that every token is multiplied with."""
    return 4 * shape.hidden**2 + 2 * shape.hidden * shape.intermediate


def _head(shape: Shape) -> int:
    """FLOPs of dense layer and classifier on one text, forward."""
    return 2 * (shape.hidden**2 + shape.hidden * shape.classes)
