"""Which words of a text weighed most: each is left out, and the prediction is asked for again.

Leave-one-out, or occlusion: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks"
(2014); for words, Li, Monroe and Jurafsky, "Understanding Neural Networks through Representation Erasure"
(arXiv:1612.08220). It asks ``Predictor.probabilities`` and so explains what is shown: model, TF-IDF
baseline where the decision mixes it in, windows and calibration together. Gradients would see the model
alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from snugtune.predict.predictor import Predictor

MOST_PIECES = 48
"""Passes of the model at most; in longer texts neighbouring words are left out together."""

_LEAST = 1e-9  # log-odds of probabilities of 0 and 1 are not numbers


@dataclass(frozen=True)
class Piece:
    """Some words and the space behind them, and what leaving them out takes from the label's log-odds.

    ``weight`` is in nats: log(p / (1 - p)) of the text less that without the piece. Above 0 the piece speaks
    for the label, below against it.
    """

    text: str
    weight: float


def word_weights(predictor: Predictor, text: str, label: int) -> list[Piece]:
    """What each word of ``text`` does to the probability of class ``label``; joined they are the text."""
    spans = _spans(text)
    if not spans:
        return []
    without = [text[:start] + text[end:] for start, end in spans]
    log_odds = _log_odds(predictor.probabilities([text, *without])[:, label])
    weights = log_odds[0] - log_odds[1:]
    return [
        Piece(text[start:end], float(weight)) for (start, end), weight in zip(spans, weights, strict=True)
    ]


def _spans(text: str) -> list[tuple[int, int]]:
    """Where each piece begins and ends; the first has the space before it, too."""
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    step = max(1, -(-len(starts) // MOST_PIECES))
    starts = starts[::step]
    if not starts:
        return []
    bounds = [0, *starts[1:], len(text)]
    return list(pairwise(bounds))


def _log_odds(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(probabilities, _LEAST, 1 - _LEAST)
    return np.asarray(np.log(p) - np.log1p(-p))
