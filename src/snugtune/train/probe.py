"""The probe start: logistic regression on frozen features, written into the head before the first step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from snugtune.model.head import Probe

INVERSE_REGULARISATION = 1.0
"""scikit-learn's C on standardised features; .1 to 10 differ little on validation."""

ABSENT_CLASS_BIAS = -10.0


def fit_probe(features: NDArray[np.float32], y: NDArray[np.int64], n_classes: int, *, tanh: bool) -> Probe:
    """Fit on training rows: ``features`` (N, H), ``y`` (N,) class ids below ``n_classes``."""
    x = torch.from_numpy(features)
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    regression = LogisticRegression(C=INVERSE_REGULARISATION * (4.0 if tanh else 1.0), max_iter=300)
    regression.fit(Probe.transform(x, mean, std, tanh=tanh), y)
    weight = torch.zeros(n_classes, features.shape[1])
    bias = torch.full((n_classes,), ABSENT_CLASS_BIAS)
    coefficients, intercepts = _two_sided(regression)
    weight[regression.classes_] = torch.from_numpy(coefficients).float()
    bias[regression.classes_] = torch.from_numpy(intercepts).float()
    return Probe(weight, bias, mean, std)


def _two_sided(regression: LogisticRegression) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # With two classes scikit-learn keeps one row: the second class against the first.
    coefficients, intercepts = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
    return coefficients, intercepts
