"""Model FLOPs: what training and prediction must compute at least, whatever an implementation computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A BERT-like encoder, K classes, LoRA of rank ``r`` on query and value from layer ``lowest`` up.

    With ``first_token`` the head reads that one alone, and all that the last layer makes of others but their
    keys and values need not be computed.
    """

    layers: int
    hidden: int
    intermediate: int
    r: int
    classes: int
    lowest: int = 0
    first_token: bool = True

    @classmethod
    def of(cls, config: Any, r: int, classes: int, lowest: int = 0, *, first_token: bool = True) -> Shape:
        """From a Transformers configuration."""
        sizes = config.num_hidden_layers, config.hidden_size, config.intermediate_size
        return cls(*sizes, r, classes, lowest, first_token)


def training_flops(shape: Shape, lengths: Sequence[int]) -> float:
    """Floating-point operations to train once on texts of ``lengths`` tokens, none of them padding.

    A product of (m, k) and (k, n) counts 2 m k n. Frozen weights cost their forward product and the
    gradient of their input (4 N a token); adapters and head also the gradient of their weights (6 N). Below
    the lowest adapter there is no gradient: layers under it are computed forward only (2 N); its own
    layer's query, key and value give none to their input, nor do its adapters' first factors, and its keys
    need none at all. Attention's two products cost twice as much again backward.
    Recomputation is an implementation's own cost and does not count (Chowdhery et al. 2022, PaLM, app. B).
    """
    layers = sum(_layer(shape, i, lengths, backward=True, merged=False) for i in range(shape.layers))
    return 2 * (layers + 3 * len(lengths) * _head(shape))


def forward_flops(shape: Shape, lengths: Sequence[int], *, merged: bool) -> float:
    """Floating-point operations of a forward pass, with the adapters as they train or ``merged``."""
    layers = sum(_layer(shape, i, lengths, backward=False, merged=merged) for i in range(shape.layers))
    return 2 * (layers + len(lengths) * _head(shape))


def _layer(shape: Shape, i: int, lengths: Sequence[int], *, backward: bool, merged: bool) -> float:
    """Multiplications of layer ``i``: each product once forward, and once for each gradient it gives."""
    h, tokens = shape.hidden, float(sum(lengths))
    if shape.first_token and i == shape.layers - 1:
        positions, pairs = float(len(lengths)), tokens
    else:
        positions, pairs = tokens, float(sum(n * n for n in lengths))
    trained = backward and i >= shape.lowest
    to_input = backward and i > shape.lowest
    read = (positions + 2 * tokens) * h * h * (1 + to_input)  # query, and key and value of every token
    made = positions * (h * h + 2 * h * shape.intermediate) * (1 + trained)
    first, second = 1 + trained + to_input, 1 + 2 * trained
    adapters = (positions + tokens) * h * shape.r * (first + second)
    attention = pairs * h * ((1 + trained + to_input) + (1 + 2 * trained))
    return read + made + attention + (0 if merged or i < shape.lowest else adapters)


def _head(shape: Shape) -> int:
    """Multiplications of dense layer and classifier on one text, forward."""
    return shape.hidden**2 + shape.hidden * shape.classes
