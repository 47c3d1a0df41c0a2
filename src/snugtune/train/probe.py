"""The probe start: logistic regression on frozen features, written into the head before the first step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import nn

from snugtune.data.tokens import Tokens
from snugtune.model.head import Head, Probe, has_bias, write_probe
from snugtune.train.forward import layer_inputs

INVERSE_REGULARISATION = 1.0
"""scikit-learn's C on standardised features; .1 to 10 differ little on validation."""

ABSENT_CLASS_BIAS = -10.0


def fit_probe(features: NDArray[np.float32], y: NDArray[np.int64], n_classes: int, head: Head) -> Probe:
    """Fit, on training rows, the probe that ``head`` can hold.

    ``features`` (N, H) are what ``head.feature_layer`` is given, ``y`` (N,) are class ids below
    ``n_classes``. A head without a bias (the decoders') can neither centre the features nor add a
    constant, so its probe goes through the origin.
    """
    x = torch.from_numpy(features)
    biased = has_bias(head.final)
    mean = x.mean(0) if biased or head.dense is not None else torch.zeros(x.shape[1])
    std = (x - mean).square().mean(0).sqrt().clamp_min(1e-6)
    inputs = Probe.transform(x, mean, std, head.activation)
    squeeze = head.activation.scale if head.activation else 1.0
    regression = LogisticRegression(
        C=INVERSE_REGULARISATION / squeeze**2, max_iter=300, fit_intercept=biased
    ).fit(inputs, y)
    centre = torch.from_numpy(inputs.mean(0))
    weight = torch.zeros(n_classes, features.shape[1])
    bias = torch.zeros(n_classes)
    if biased:
        bias += ABSENT_CLASS_BIAS
    else:
        # The same constant for the average text, along the mean of the features.
        weight += ABSENT_CLASS_BIAS * centre / centre.square().sum().clamp_min(1e-6)
    coefficients, intercepts = _two_sided(regression)
    weight[regression.classes_] = torch.from_numpy(coefficients).float()
    bias[regression.classes_] = torch.from_numpy(intercepts).float() if biased else 0.0
    return Probe(weight, bias, mean, std)


def _two_sided(regression: LogisticRegression) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # With two classes scikit-learn keeps one row: the second class against the first.
    coefficients, intercepts = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
    return coefficients, intercepts


def start_from_probe(
    model: nn.Module,
    head: Head,
    tokens: Tokens,
    y: NDArray[np.int64],
    n_classes: int,
    *,
    pad_token_id: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    on_rows: Callable[[int], None] | None = None,
) -> None:
    """One frozen pass over the training rows, then the probe on its features, written into ``head``.

    ``y`` (N,) are class ids below ``n_classes``.
    """
    features = layer_inputs(
        model, head.feature_layer, tokens, pad_token_id=pad_token_id, device=device, dtype=dtype,
        on_rows=on_rows,
    )  # fmt: skip
    write_probe(head, fit_probe(features, y, n_classes, head))
