"""How a run gives label sets: model and baseline pooled, calibrated, a threshold by label, one for review."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from snugtune.evaluate.multilabel.metrics import PredictedSets, Sets
from snugtune.evaluate.multilabel.thresholds import Objective, choose_thresholds, give_labels
from snugtune.evaluate.scaling import beta_confidence, fit_beta
from snugtune.evaluate.selective import DELTA, Outcomes, Promise, promise

Floats = NDArray[np.floating[Any]]
Real = NDArray[np.float64]

FOLDS = 5
_WEIGHTS = np.linspace(0, 1, 21)
_RESAMPLES = 200
_LEVEL = 0.05  # as in ``mixing``: the baseline counts if its gain's one-sided 95 % bound is above zero
_SLOPES = (1e-2, 1e2)
_LARGEST_LOGIT = 30.0  # no member may rule out a label all by itself; also `ABSENT_SCORE`


@dataclass(frozen=True)
class SigmoidMap:
    """``z / temperature + offset``: the log-odds that the logits z mean (Platt 1999)."""

    temperature: float = 1.0
    offset: float = 0.0

    def apply(self, logits: Floats) -> Real:
        """Log-odds (N, K), within what can be told apart."""
        mapped = logits.astype(np.float64) / self.temperature + self.offset
        return np.clip(mapped, -_LARGEST_LOGIT, _LARGEST_LOGIT)


def fit_sigmoid(logits: Floats, y: Sets) -> SigmoidMap:
    """The map of highest likelihood on held-out ``logits`` (N, K) and ``y`` (N, K), one for all labels.

    Targets are Platt's, which stop short of 0 and 1 by what so many cells can tell (Platt 1999, eq. 5).

    Raises:
        ValueError: a logit is not finite.
    """
    z, true = logits.astype(np.float64).ravel(), (y > 0).ravel()
    if not np.isfinite(z).all():
        raise ValueError("logits must be finite, got NaN or infinity: the model has diverged.")
    if not len(z):
        return SigmoidMap()
    positives = int(true.sum())
    target = np.where(true, (positives + 1) / (positives + 2), 1 / (len(true) - positives + 2))

    def loss(parameters: Real) -> tuple[float, Real]:
        log_odds = z * parameters[0] + parameters[1]
        error = (expit(log_odds) - target) / len(z)
        value = (np.logaddexp(0, log_odds) - target * log_odds).mean()
        return float(value), np.array([error @ z, error.sum()])

    bounds = [(1 / _SLOPES[1], 1 / _SLOPES[0]), (None, None)]
    slope, offset = minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds
    ).x.tolist()
    return SigmoidMap(1 / slope, offset)


@dataclass(frozen=True)
class LabelSetDecision:
    """From logits to calibrated probabilities, labels, and the confidence from which on nobody need look.

    The model's and the baseline's log-odds, each by its own map, are averaged with the baseline's ``weight``
    and mapped again (``pooled``). A label is given at or above its threshold. ``confidence_map`` is the beta
    map that makes of the probability of the whole set, labels taken as independent, that of its being right.
    """

    model: SigmoidMap
    baseline: SigmoidMap
    pooled: SigmoidMap
    weight: float
    thresholds: tuple[float, ...]
    borrowed: float | None
    at_least_one: bool
    confidence_map: tuple[float, ...]
    confidence_threshold: float
    precision_target: float
    delta: float = DELTA
    promise: Promise | None = None

    @property
    def uses_baseline(self) -> bool:
        """Whether the baseline's scores are needed."""
        return self.weight > 0

    def probabilities(self, logits: Floats, baseline_scores: Floats | None = None) -> Real:
        """Calibrated probabilities (N, K) from the model's ``logits`` and ``baseline_scores``, (N, K) both.

        Raises:
            ValueError: the baseline is part of the mixture and its scores are not given.
        """
        log_odds = self.model.apply(logits)
        if self.uses_baseline:
            if baseline_scores is None:
                raise ValueError("This decision mixes in the baseline; its scores are needed.")
            log_odds = _pool(log_odds, self.baseline.apply(baseline_scores), self.weight)
        return np.asarray(expit(self.pooled.apply(log_odds)))

    def predict(self, probabilities: Floats) -> PredictedSets:
        """The labels given and their confidence, from `probabilities` (N, K)."""
        labels = give_labels(probabilities, np.array(self.thresholds), at_least_one=self.at_least_one)
        raw = set_probability(probabilities, labels)
        return PredictedSets(probabilities, labels, beta_confidence(raw, self.confidence_map))

    def sigmoid_thresholds(self) -> tuple[float, ...]:
        """The thresholds (K,) for the sigmoid of the model's own logits, which other programs compute.

        Without a share of the baseline they give the labels that `predict` gives before `at_least_one`; with
        one, they are those of the model alone, calibrated by itself.
        """
        log_odds = np.clip(logit(np.array(self.thresholds)), -_LARGEST_LOGIT, _LARGEST_LOGIT)
        own = (log_odds - self.model.offset) * self.model.temperature
        return tuple(np.asarray(expit(own)).tolist())

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the keys of ``run.json``."""
        return {
            "mixture": {
                "weight": self.weight, "model": asdict(self.model), "baseline": asdict(self.baseline),
            },
            "calibration": {
                "method": "sigmoid", **asdict(self.pooled), "confidence": list(self.confidence_map),
            },
            "thresholds": list(self.thresholds),
            "borrowed_rows": self.borrowed,
            "at_least_one": self.at_least_one,
            "confidence_threshold": self.confidence_threshold,
            "precision_target": self.precision_target,
            "delta": self.delta,
            "promise": None if self.promise is None else self.promise.as_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> LabelSetDecision:
        """The decision that ``as_dict`` described."""
        mixture, calibration, kept = fields["mixture"], fields["calibration"], fields["promise"]
        return cls(
            model=SigmoidMap(**mixture["model"]),
            baseline=SigmoidMap(**mixture["baseline"]),
            pooled=SigmoidMap(calibration["temperature"], calibration["offset"]),
            weight=mixture["weight"],
            thresholds=tuple(fields["thresholds"]),
            borrowed=fields["borrowed_rows"],
            at_least_one=fields["at_least_one"],
            confidence_map=tuple(calibration["confidence"]),
            confidence_threshold=fields["confidence_threshold"],
            precision_target=fields["precision_target"],
            delta=fields["delta"],
            promise=None if kept is None else Promise(**kept),
        )


@dataclass(frozen=True)
class DecidedSets:
    """A decision, and what it would have said of each validation row, had it been fitted without that row.

    ``held_out`` are those label sets, ``outcomes`` their confidence and whether they are exactly right.
    """

    decision: LabelSetDecision
    held_out: PredictedSets
    outcomes: Outcomes


def decide_label_sets(
    logits: Floats,
    baseline_scores: Floats | None,
    y: Sets,
    *,
    precision: float,
    objective: Objective,
    at_least_one: bool,
    seed: int = 0,
) -> DecidedSets:
    """Choose maps, the baseline's share and thresholds on validation: ``logits`` and ``y`` (N, K).

    The baseline gets a share only where that lowers the log loss beyond noise, judged by a paired bootstrap
    over rows. Thresholds are chosen for ``objective``. Each row's labels and confidence that the promise
    rests on come from thresholds and a confidence map chosen without it.
    """
    model, baseline, pooled, weight = _mixture(logits, baseline_scores, y, seed)
    log_odds = model.apply(logits)
    if baseline_scores is not None and weight:
        log_odds = _pool(log_odds, baseline.apply(baseline_scores), weight)
    probabilities = np.asarray(expit(pooled.apply(log_odds)))
    chosen = choose_thresholds(probabilities, y, objective, at_least_one=at_least_one, seed=seed)
    raw = set_probability(probabilities, chosen.out_of_fold)
    exact = np.asarray((chosen.out_of_fold == (y > 0)).all(axis=1))
    confidence = _out_of_fold_confidence(raw, exact, seed)
    kept = promise(confidence, exact, precision)
    decision = LabelSetDecision(
        model=model, baseline=baseline, pooled=pooled, weight=weight,
        thresholds=tuple(chosen.values.tolist()), borrowed=chosen.borrowed, at_least_one=at_least_one,
        confidence_map=fit_beta(raw, exact),
        confidence_threshold=kept.threshold, precision_target=precision, promise=kept,
    )  # fmt: skip
    held_out = PredictedSets(probabilities, chosen.out_of_fold, confidence)
    return DecidedSets(decision, held_out, Outcomes(confidence, exact))


def set_probability(probabilities: Floats, labels: NDArray[np.bool_]) -> Real:
    """Probability (N,) that each set of ``labels`` (N, K) is exactly right, were they independent."""
    of_told = np.where(labels, probabilities, 1 - probabilities)
    return np.asarray(np.exp(np.log(of_told.clip(1e-12)).sum(axis=1)))


def _mixture(
    logits: Floats, baseline_scores: Floats | None, y: Sets, seed: int
) -> tuple[SigmoidMap, SigmoidMap, SigmoidMap, float]:
    """The maps of model, baseline and pool, and the baseline's share."""
    model = fit_sigmoid(logits, y)
    if baseline_scores is None or not len(y):
        return model, SigmoidMap(), SigmoidMap(), 0.0
    baseline = fit_sigmoid(baseline_scores, y)
    a, b = model.apply(logits), baseline.apply(baseline_scores)
    losses = np.stack([row_losses(_pool(a, b, weight), y) for weight in _WEIGHTS])
    best = int(losses.mean(axis=1).argmin())
    if not best or not _beyond_noise(losses[0] - losses[best], seed):
        return model, baseline, SigmoidMap(), 0.0
    weight = float(_WEIGHTS[best])
    return model, baseline, fit_sigmoid(_pool(a, b, weight), y), weight


def _pool(model: Real, baseline: Real, weight: float) -> Real:
    return np.asarray((1 - weight) * model + weight * baseline)


def row_losses(log_odds: Real, y: Sets) -> Real:
    """Mean loss (N,) of the labels of each row, in nats, from log-odds and label sets (N, K)."""
    return np.asarray((np.logaddexp(0, log_odds) - (y > 0) * log_odds).mean(axis=1))


def _beyond_noise(gains: Real, seed: int) -> bool:
    rows = len(gains)
    draws = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=_RESAMPLES)
    return bool(np.quantile(draws @ gains, _LEVEL) > 0)


def _out_of_fold_confidence(raw: Real, exact: NDArray[np.bool_], seed: int) -> Real:
    """Confidence (N,) of each row by a beta map fitted to the other folds."""
    folds = np.random.default_rng(seed + 1).permutation(len(raw)) % FOLDS
    confidence = np.empty(len(raw))
    for fold in range(FOLDS):
        out = folds == fold
        learn = ~out if (~out).any() else np.ones_like(out)
        confidence[out] = beta_confidence(raw[out], fit_beta(raw[learn], exact[learn]))
    return confidence
