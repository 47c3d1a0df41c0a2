"""The probe start: logistic regression on frozen features, written into the head before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from snugtune.data.tokens import Tokens
from snugtune.evaluate.calibration import softmax
from snugtune.evaluate.imbalance import Balance
from snugtune.evaluate.metrics import log_loss
from snugtune.evaluate.multilabel.linear import fit_each_label
from snugtune.evaluate.multilabel.metrics import sigmoid_log_loss
from snugtune.model.head import Head, Probe, has_bias, write_probe

INVERSE_REGULARISATION = 0.25
"""scikit-learn's C on standardised features where no held-out rows choose one."""

INVERSE_REGULARISATIONS = (0.00025, 0.0025, 0.025, 0.25, 1.0)
"""What held-out rows choose from, the strongest penalty first.

Long texts in many classes want a strong one: on complaints with 121 issues the log loss on validation was
2.10, 2.01, 2.54, 3.33 and the accuracy .429, .451, .400, .380 for the last four; on Banking77 .67, .32, .27,
.30 and .909, .929, .927, .925."""

ABSENT_CLASS_BIAS = -10.0

MAX_ITERATIONS = 200


Features = NDArray[np.float32]


@dataclass(frozen=True)
class HeldOut:
    """Features (R, H) and labels (M,), or (M, K), of texts the probe is not fitted on.

    ``tokens`` say which rows are of one text; without them, every row is a text. ``natural`` makes logits of
    a probe that favours rare classes those of the classes as they are, by which penalties are compared.
    """

    features: Features
    y: NDArray[Any]
    tokens: Tokens | None = None
    natural: Callable[[Features], NDArray[np.floating[Any]]] = lambda logits: logits

    def logits(self, probe: Probe, head: Head) -> NDArray[np.float32]:
        """What ``probe`` says of the texts: (M, K)."""
        of_rows = probe.logits(torch.from_numpy(self.features), head.activation).numpy()
        return of_rows if self.tokens is None else self.tokens.pooled(of_rows)


def fit_probes(
    features: Features,
    y: NDArray[Any],
    n_classes: int,
    head: Head,
    held_out: HeldOut | None = None,
    weight: NDArray[np.floating[Any]] | None = None,
) -> tuple[Probe, Probe]:
    """The probe that ``held_out`` rows like best, and the one of the next stronger penalty.

    ``features`` (R, H) are what ``head.feature_layer`` is given, ``y`` (R,) are class ids below
    ``n_classes``, ``weight`` (R,) is what each row counts (None: one). Where a text may have several labels,
    ``y`` (R, K) is 1 for each that applies, and each is told from the rest. A head without a bias (the
    decoders') can neither centre the features nor add a constant, so its probe goes through the origin.
    """
    x = torch.from_numpy(features)
    biased = has_bias(head.final)
    mean = x.mean(0) if biased or head.dense is not None else torch.zeros(x.shape[1])
    std = (x - mean).square().mean(0).sqrt().clamp_min(1e-6)
    inputs = Probe.transform(x, mean, std, head.activation)
    squeeze = head.activation.scale if head.activation else 1.0
    choices = INVERSE_REGULARISATIONS if held_out else (INVERSE_REGULARISATION,)
    fit = _label_probes if y.ndim == 2 else _class_probes
    probes = fit(inputs, y, weight, n_classes, [C / squeeze**2 for C in choices], (mean, std), biased=biased)
    if held_out is None:
        only = next(probes)
        return only, only
    return _best_and_stronger(probes, head, held_out)


def _class_probes(
    inputs: Features,
    y: NDArray[np.int64],
    weight: NDArray[np.floating[Any]] | None,
    n_classes: int,
    choices: list[float],
    scale: tuple[Tensor, Tensor],
    *,
    biased: bool,
) -> Iterator[Probe]:
    """One regression for each C, each started from the one before."""
    regression = LogisticRegression(max_iter=MAX_ITERATIONS, fit_intercept=biased, warm_start=True)
    for C in choices:
        regression.set_params(C=C).fit(inputs, y, sample_weight=weight)
        yield _as_probe(regression, inputs, n_classes, *scale, biased=biased)


def _label_probes(
    inputs: Features,
    y: NDArray[np.int8],
    weight: NDArray[np.floating[Any]] | None,
    n_labels: int,
    choices: list[float],
    scale: tuple[Tensor, Tensor],
    *,
    biased: bool,
) -> Iterator[Probe]:
    """The same for label sets: each label against the rest; one of all rows or none is a constant."""
    rows = (y > 0).sum(axis=0)
    told = np.flatnonzero((rows > 0) & (rows < len(y)))
    found = None
    for C in choices:
        found = fit_each_label(
            inputs, y[:, told], C, weight=weight, biased=biased, start=found, max_iterations=MAX_ITERATIONS
        )
        weights, bias = _constants(inputs, n_labels, biased=biased)
        always = torch.from_numpy(rows == len(y))
        weights[always], bias[always] = -weights[always], -bias[always]
        weights[told], bias[told] = (torch.from_numpy(part).float() for part in found)
        yield Probe(weights, bias, *scale)


def _best_and_stronger(probes: Iterator[Probe], head: Head, held_out: HeldOut) -> tuple[Probe, Probe]:
    """The first probe after which the log loss on held-out rows rises, and the one before it."""
    best = stronger = next(probes)
    least = _held_out_loss(best, head, held_out)
    for probe in probes:
        loss = _held_out_loss(probe, head, held_out)
        if loss >= least:
            break
        best, stronger, least = probe, best, loss
    return best, stronger


def _held_out_loss(probe: Probe, head: Head, held_out: HeldOut) -> float:
    logits = held_out.natural(held_out.logits(probe, head))
    if held_out.y.ndim == 2:
        return sigmoid_log_loss(held_out.y, expit(logits))
    return log_loss(held_out.y, softmax(logits))


def _as_probe(
    regression: LogisticRegression,
    inputs: NDArray[np.float32],
    n_classes: int,
    mean: Tensor,
    std: Tensor,
    *,
    biased: bool,
) -> Probe:
    weight, bias = _constants(inputs, n_classes, biased=biased)
    coefficients, intercepts = _two_sided(regression)
    weight[regression.classes_] = torch.from_numpy(coefficients).float()
    bias[regression.classes_] = torch.from_numpy(intercepts).float() if biased else 0.0
    return Probe(weight, bias, mean, std)


def _constants(inputs: NDArray[np.float32], K: int, *, biased: bool) -> tuple[Tensor, Tensor]:
    """Weights (K, H) and biases (K,) of classes that never occur."""
    weight, bias = torch.zeros(K, inputs.shape[1]), torch.zeros(K)
    if biased:
        bias += ABSENT_CLASS_BIAS
    else:
        # The same constant for the average text, along the mean of the features.
        centre = torch.from_numpy(inputs.mean(0))
        weight += ABSENT_CLASS_BIAS * centre / centre.square().sum().clamp_min(1e-6)
    return weight, bias


def _two_sided(regression: LogisticRegression) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # With two classes scikit-learn keeps one row: the second class against the first.
    coefficients, intercepts = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
    return coefficients.copy(), np.array(intercepts)


def start_from_probe(
    model: nn.Module,
    head: Head,
    features: Features,
    y: NDArray[Any],
    n_classes: int,
    held_out: HeldOut | None = None,
) -> dict[str, Tensor]:
    """The probe on the training texts' frozen ``features`` (N, H), written into the ``head`` of ``model``.

    ``y`` are the texts' labels, as in `fit_probes`; ``held_out`` texts choose the penalty. What is returned
    is that of `write_start`.
    """
    return write_start(model, head, *fit_probes(features, y, n_classes, head, held_out))


def write_start(model: nn.Module, head: Head, best: Probe, stronger: Probe) -> dict[str, Tensor]:
    """The ``best`` probe written into the ``head`` of ``model``.

    Returns:
        What training begins from, by parameter: the head of the next ``stronger`` penalty. The best probe
        knows its training rows so well that their gradients say little that is new (see
        ``decisions/0006-learning-rates.md``).
    """
    write_probe(head, stronger)
    begin = _head_state(model, head)
    write_probe(head, best)
    return begin


def fit_probes_of_texts(
    features: Features,
    tokens: Tokens,
    y: NDArray[Any],
    n_classes: int,
    head: Head,
    held_out: HeldOut | None = None,
    balance: Balance | None = None,
) -> tuple[Probe, Probe]:
    """`fit_probes` on the rows of ``tokens``; ``y`` are the texts' labels, and a text counts once.

    With a ``balance``, rare classes are favoured as the loss of training will favour them.
    """
    y_of_row = y[tokens.text_of_row]
    weight: NDArray[np.floating[Any]] | None = tokens.share_of_text(np.arange(tokens.rows))
    of_class = None if balance is None else balance.expected_weights
    if balance is not None and of_class is not None:
        weight = of_class[y_of_row] if weight is None else weight * of_class[y_of_row]
        held_out = held_out and replace(held_out, natural=balance.natural)
    best, stronger = fit_probes(features, y_of_row, n_classes, head, held_out, weight)
    if balance is None or balance.logit_shift is None:
        return best, stronger
    return adjusted(best, features, head, balance), adjusted(stronger, features, head, balance)


def adjusted(probe: Probe, features: Features, head: Head, balance: Balance) -> Probe:
    """``probe`` less what the loss will add to its logits: of each text, or of the average without a bias."""
    assert balance.logit_shift is not None
    added = torch.from_numpy(-balance.logit_shift).float()
    if has_bias(head.final):
        return replace(probe, bias=probe.bias + added)
    x = torch.from_numpy(features)
    centre = torch.from_numpy(Probe.transform(x, probe.mean, probe.std, head.activation).mean(0))
    along = centre / centre.square().sum().clamp_min(1e-6)
    return replace(probe, weight=probe.weight + added[:, None] * along)


def _head_state(model: nn.Module, head: Head) -> dict[str, Tensor]:
    layers = [layer for layer in (head.dense, head.final) if layer is not None]
    of_head = {id(parameter) for layer in layers for parameter in layer.parameters()}
    return {name: p.detach().clone() for name, p in model.named_parameters() if id(p) in of_head}
