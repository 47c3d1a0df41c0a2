"""Model FLOPs: what training must compute at least, whatever an implementation computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A BERT-like encoder with LoRA of rank ``r`` on query and value of every layer, and K classes."""

    layers: int
    hidden: int
    intermediate: int
    r: int
    classes: int

    @classmethod
    def of(cls, config: Any, r: int, classes: int) -> Shape:
        """From a Transformers configuration."""
        return cls(config.num_hidden_layers, config.hidden_size, config.intermediate_size, r, classes)


def training_flops(shape: Shape, lengths: Sequence[int]) -> float:
    """Floating-point operations to train once on texts of ``lengths`` tokens, none of them padding.

    A product of (m, k) and (k, n) counts 2 m k n. Frozen weights cost their forward product and the
    gradient of their input (4 N a token); adapters and head also the gradient of their weights (6 N). Below
    the lowest adapter there is no gradient: the first layer's query, key and value give none to their
    input, nor do its adapters' first factors, and its keys need none at all. Attention's two products cost
    twice as much again backward.
    Recomputation is an implementation's own cost and does not count (Chowdhery et al. 2022, PaLM, app. B).
    """
    h, tokens = shape.hidden, float(sum(lengths))
    projections, feed_forward = 4 * h * h, 2 * h * shape.intermediate
    factor = h * shape.r
    per_token = shape.layers * (4 * (projections + feed_forward) + 2 * 6 * 2 * factor)
    per_token -= 2 * 3 * h * h + 2 * 2 * factor
    attention = (shape.layers * 3 * 2 * 2 - 2) * h * float(sum(n * n for n in lengths))
    head = len(lengths) * 6 * (h * h + h * shape.classes)
    return per_token * tokens + attention + head
