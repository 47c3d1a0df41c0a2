"""Probabilities that mean what they say, and the confidence above which a person need not look."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import beta

REVIEW_EVERYTHING = 1.000001
"""Threshold that not even a float32 softmax rounded above 1 reaches; unlike infinity it is valid JSON."""

_TEMPERATURES = (1e-2, 1e2)  # wide enough for SVM margins (about 0.1) and for badly overconfident networks
_GROWTH = 1.02  # each test of `review_threshold` covers 2 % more rows than the one before

Floats = NDArray[np.floating[Any]]


def softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities ``softmax(logits / temperature)`` over the last axis, in float64."""
    return np.exp(log_softmax(logits, temperature))


def log_softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Log-probabilities ``log(softmax(logits / temperature))`` over the last axis, in float64."""
    scaled = logits.astype(np.float64) / temperature
    shifted = scaled - scaled.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def fit_temperature(logits: Floats, y_true: NDArray[np.int64]) -> float:
    """Temperature that minimises the negative log-likelihood of held-out rows (Guo et al. 2017, sec. 4.2).

    ``logits (N, K)``, ``y_true (N,)``; rows with ``y_true == -1`` are ignored and without any other row the
    answer is 1. The loss is convex in 1 / T, so it has one minimum in log T; it is sought in 0.01..100.

    Raises:
        ValueError: a logit is not finite.
    """
    known = y_true >= 0
    logits, y_true = logits[known].astype(np.float64), y_true[known]
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite, got NaN or infinity: the model has diverged.")
    if not len(y_true):
        return 1.0
    below_best = logits - logits.max(axis=1, keepdims=True)
    of_truth = float(below_best[np.arange(len(y_true)), y_true].mean())

    def loss(log_temperature: float) -> float:
        inverse = math.exp(-log_temperature)
        return float(np.log(np.exp(below_best * inverse).sum(axis=1)).mean()) - inverse * of_truth

    bounds = (math.log(_TEMPERATURES[0]), math.log(_TEMPERATURES[1]))
    return math.exp(float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-3}).x))


def expected_calibration_error(confidence: Floats, correct: NDArray[np.bool_], *, bins: int = 15) -> float:
    """Mean gap of confidence and accuracy over the bins ((m - 1) / M, m / M] (Guo et al. 2017, eq. 3).

    ``confidence (N,)`` is the probability of the predicted class, ``correct (N,)`` whether it was right.
    The answer is in 0..1, and 0 for no rows.
    """
    if not len(confidence):
        return 0.0
    which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(which, weights=confidence - correct.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def review_threshold(
    confidence: Floats, correct: NDArray[np.bool_], precision: float = 0.95, *, delta: float = 0.1
) -> float:
    """Smallest confidence at or above which predictions are right with the asked ``precision``.

    "With" means: the one-sided Clopper-Pearson lower bound at level ``delta`` of the precision among the rows
    at or above the threshold meets the target. Picking the best of many thresholds would void that level, so
    they are tested in a fixed order, from the most confident rows downwards, until the first failure: the
    chance that the answer misses the target stays below ``delta`` (fixed-sequence testing, as in Angelopoulos
    et al. 2021, Learn then Test). The order depends on the confidences alone. Each test takes 2 % more rows
    than the one before, so the answer is the smallest threshold to within that step.

    ``confidence (N,)`` in 0..1, ``correct (N,)``, both held out. Returns `REVIEW_EVERYTHING`, a number just
    above 1, when no threshold passes.

    Raises:
        ValueError: ``precision`` or ``delta`` is not strictly between 0 and 1.
    """
    if not (0 < precision < 1 and 0 < delta < 1):
        raise ValueError(f"precision and delta must lie between 0 and 1, got {precision} and {delta}.")
    descending = np.argsort(-confidence, kind="stable")
    ranked, hits = confidence[descending], np.cumsum(correct[descending])
    threshold = REVIEW_EVERYTHING
    for rows in _rows_to_test(ranked, precision, delta):
        if precision_lower_bound(int(hits[rows - 1]), rows, delta) < precision:
            break
        threshold = float(ranked[rows - 1])
    return threshold


def precision_lower_bound(hits: int, rows: int, delta: float) -> float:
    """One-sided lower bound at level ``delta`` of the rate of ``hits`` in ``rows`` (Clopper-Pearson 1934)."""
    return float(beta.ppf(delta, hits, rows - hits + 1)) if hits else 0.0


def _rows_to_test(ranked: Floats, precision: float, delta: float) -> list[int]:
    """Sizes of the most-confident sets to test, growing; rows of equal confidence stay together."""
    total = len(ranked)
    fewest = math.ceil(math.log(delta) / math.log(precision))  # below it even a faultless set cannot pass
    # One error among so few would end the search, so where rows abound it starts later, at a tenth of them.
    size = max(fewest, min(5 * fewest, total // 10))
    sizes = []
    while size < total:
        sizes.append(size)
        size = math.ceil(size * _GROWTH)
    if total >= fewest:
        sizes.append(total)
    return sorted({int(np.searchsorted(-ranked, -ranked[size - 1], side="right")) for size in sizes})
