"""Probabilities that mean what they say: temperature scaling and the expected calibration error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

_TEMPERATURES = (1e-2, 1e2)  # wide enough for SVM margins (about 0.1) and for badly overconfident networks

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
    which = bin_of(confidence, bins)
    gaps = np.bincount(which, weights=confidence - correct.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def bin_of(confidence: Floats, bins: int) -> NDArray[np.int64]:
    """The bin ((m - 1) / M, m / M] in which each confidence lies, counted from 0."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
