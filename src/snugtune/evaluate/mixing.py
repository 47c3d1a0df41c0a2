"""Two models that err differently, pooled: how much of the second one helps, and is that more than noise?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from snugtune.evaluate.calibration import fit_temperature, log_softmax
from snugtune.evaluate.metrics import macro_f1

Metric = Literal["accuracy", "macro_f1", "log_loss"]
Floats = NDArray[np.floating[Any]]

_WEIGHTS = np.linspace(0, 1, 21)
_TAUS = np.linspace(0, 1.5, 7)  # 1 is the value Menon et al. derive for the balanced error
_LOG_FLOOR = np.log(1e-12)  # no member may rule out a class all by itself
_RESAMPLES = 200
_LEVEL = 0.05  # a gain counts if its one-sided 95 % bootstrap bound is above zero


@dataclass(frozen=True)
class Mixture:
    """Log-linear pool of two classifiers over the same K classes, with a logit adjustment for rare ones.

    ``p = softmax(((1 - weight) * log p_a + weight * log p_b) / temperature - tau * log class_prior)`` where
    ``log p_a = log_softmax(logits_a / temperature_a)``, likewise b (the logarithmic
    pool of Genest & Zidek 1986; the post-hoc logit adjustment of Menon et al. 2021). ``weight`` is the share
    of b in 0..1. With ``tau > 0`` the probabilities are those of a world with more even classes. A model a
    that was trained in such a world lacks ``trained_tau * log class_prior``, which is added to its logits
    first, so that both members speak of the classes as they are; with ``tau == trained_tau`` and
    ``weight == 0`` it predicts what it predicts by itself.
    """

    weight: float = 0.0
    temperature: float = 1.0
    tau: float = 0.0
    temperature_a: float = 1.0
    temperature_b: float = 1.0
    class_prior: tuple[float, ...] | None = None
    trained_tau: float = 0.0

    def apply(self, logits_a: Floats, logits_b: Floats) -> NDArray[np.float64]:
        """Probabilities ``(N, K)`` from the logits ``(N, K)`` of both models."""
        return np.exp(self.log_probabilities(logits_a, logits_b))

    def log_probabilities(self, logits_a: Floats, logits_b: Floats) -> NDArray[np.float64]:
        """The logarithms of `apply`, finite however sure the models are."""
        log_a = _floored(self._natural(logits_a), self.temperature_a)
        log_b = _floored(logits_b, self.temperature_b)
        return self._pool(log_a, log_b)

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        fields = asdict(self)
        return {**fields, "class_prior": None if self.class_prior is None else list(self.class_prior)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Mixture:
        """The mixture that `as_dict` described."""
        prior = fields.get("class_prior")
        return cls(**{**fields, "class_prior": None if prior is None else tuple(prior)})

    def _natural(self, logits_a: Floats) -> Floats:
        if not self.trained_tau or self.class_prior is None:
            return logits_a
        return np.asarray(logits_a + self.trained_tau * np.log(self.class_prior))

    def _pool(self, log_a: Floats, log_b: Floats) -> NDArray[np.float64]:
        logits = ((1 - self.weight) * log_a + self.weight * log_b) / self.temperature
        if self.tau and self.class_prior is not None:
            logits = logits - self.tau * np.log(self.class_prior)
        return log_softmax(logits)


def fit_mixture(
    logits_a: Floats,
    logits_b: Floats,
    y_true: NDArray[np.int64],
    *,
    metric: Metric = "log_loss",
    class_prior: NDArray[np.floating[Any]] | None = None,
    adjust_for: Metric | None = None,
    trained_tau: float = 0.0,
    search_tau: bool = True,
    seed: int = 0,
) -> Mixture:
    """Choose the share of model b on held-out rows: ``logits (N, K)`` of both, ``y_true (N,)``.

    Each model is calibrated by itself, then the weight of b is chosen from a grid, then tau if a
    ``class_prior (K,)`` is given (class shares in training; zeros count as half of the smallest other) and
    it is to be searched. The weight stays 0 and tau what model a was trained with (``trained_tau``) unless
    another value improves ``metric`` (tau: ``adjust_for``, if that is another one) beyond the noise of these
    rows, judged by a paired bootstrap. Rows with ``y_true == -1`` are ignored; without
    others the answer is model a as it is.

    Raises:
        ValueError: the shapes disagree.
    """
    _check_shapes(logits_a, logits_b, y_true, class_prior)
    trained = Mixture() if class_prior is None else _as_trained(class_prior, trained_tau)
    known = y_true >= 0
    if not known.any():
        return replace(trained, tau=trained_tau)
    logits_a, logits_b, y_true = logits_a[known], logits_b[known], y_true[known]
    logits_a = trained._natural(logits_a)
    alone = replace(
        trained,
        temperature_a=fit_temperature(logits_a, y_true),
        temperature_b=fit_temperature(logits_b, y_true),
    )
    judge = _Judge(
        _floored(logits_a, alone.temperature_a), _floored(logits_b, alone.temperature_b), y_true, metric, seed
    )
    chosen = judge.better([judge.recalibrated(replace(alone, weight=float(weight))) for weight in _WEIGHTS])
    chosen = replace(chosen, tau=trained_tau)
    if class_prior is None or not search_tau:
        return chosen
    judge.metric = adjust_for or metric
    prior = positive_shares(class_prior)
    others = [float(tau) for tau in _TAUS if tau != trained_tau]
    return judge.better([chosen, *(replace(chosen, tau=tau, class_prior=prior) for tau in others)])


def _as_trained(class_prior: NDArray[np.floating[Any]], trained_tau: float) -> Mixture:
    if not trained_tau:
        return Mixture()
    return Mixture(trained_tau=trained_tau, class_prior=positive_shares(class_prior))


class _Judge:
    """Compares mixtures on the same rows; log-probabilities ``(N, K)``, ``y_true (N,)``."""

    def __init__(
        self, log_a: Floats, log_b: Floats, y_true: NDArray[np.int64], metric: Metric, seed: int
    ) -> None:
        self.log_a, self.log_b, self.y_true, self.metric, self.seed = log_a, log_b, y_true, metric, seed

    def recalibrated(self, mixture: Mixture) -> Mixture:
        """The mixture with the temperature that suits the pool: pooling leaves probabilities too even."""
        pooled = (1 - mixture.weight) * self.log_a + mixture.weight * self.log_b
        return replace(mixture, temperature=fit_temperature(pooled, self.y_true))

    def better(self, candidates: list[Mixture]) -> Mixture:
        """The best candidate, if it beats the first one beyond noise; otherwise the first."""

        def probabilities(i: int) -> NDArray[np.float64]:
            return np.exp(candidates[i]._pool(self.log_a, self.log_b))

        best = best_beyond_noise(probabilities, len(candidates), self.y_true, self.metric, seed=self.seed)
        return candidates[best]


def best_beyond_noise(
    probabilities: Callable[[int], Floats],
    count: int,
    y_true: NDArray[np.int64],
    metric: Metric,
    *,
    seed: int = 0,
) -> int:
    """Which of ``count`` candidates is best, if it beats the first one beyond noise; otherwise 0.

    ``probabilities(i)`` are those of candidate i, (N, K), for rows of classes ``y_true (N,)``. The gain in
    ``metric`` is beyond noise if its one-sided 95 % bound in a paired bootstrap is above zero.
    """
    once = np.ones((1, len(y_true)), np.float32)
    scores = [float(_score(metric, y_true, probabilities(i), once)[0]) for i in range(count)]
    best = int(np.argmax(scores))
    if best == 0:
        return 0
    repeats = _resamples(len(y_true), seed)
    of_best, of_first = (_score(metric, y_true, probabilities(i), repeats) for i in (best, 0))
    return best if np.quantile(of_best - of_first, _LEVEL) > 0 else 0


def _resamples(rows: int, seed: int) -> NDArray[np.float32]:
    """How often each row is drawn in each bootstrap sample: ``(B, N)``."""
    draws = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=_RESAMPLES)
    return draws.astype(np.float32)


def _score(
    metric: Metric, y_true: NDArray[np.int64], probs: Floats, repeats: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The metric, larger is better, of each row-weighted sample ``(B, N)``: ``(B,)``."""
    if metric == "macro_f1":
        return _macro_f1(y_true, probs, repeats)
    if metric == "accuracy":
        per_row = (probs.argmax(axis=1) == y_true).astype(np.float64)
    else:
        of_truth = probs[np.arange(len(y_true)), y_true]
        per_row = np.log(of_truth.clip(np.finfo(np.float64).eps))
    return np.asarray(repeats @ per_row / len(y_true))


def _macro_f1(y_true: NDArray[np.int64], probs: Floats, repeats: NDArray[np.float32]) -> NDArray[np.float64]:
    K, y_pred = probs.shape[1], probs.argmax(axis=1)
    right = y_true == y_pred
    hits = _sum_by_class(repeats[:, right], y_true[right], K)
    return macro_f1(hits, _sum_by_class(repeats, y_true, K), _sum_by_class(repeats, y_pred, K))


def _sum_by_class(repeats: NDArray[np.float32], ids: NDArray[np.int64], K: int) -> NDArray[np.float64]:
    """Row weights ``(B, N)`` summed by the class ``ids (N,)`` of each row: ``(B, K)``."""
    one_hot = csr_array((np.ones(len(ids)), (np.arange(len(ids)), ids)), shape=(len(ids), K))
    return np.asarray(repeats @ one_hot, np.float64)


def _floored(logits: Floats, temperature: float) -> NDArray[np.float64]:
    return np.maximum(log_softmax(logits, temperature), _LOG_FLOOR)


def positive_shares(class_prior: NDArray[np.floating[Any]]) -> tuple[float, ...]:
    """Class shares ``(K,)`` that sum to 1, zeros lifted to half of the smallest other: the log is finite."""
    prior = np.asarray(class_prior, np.float64)
    prior = np.where(prior > 0, prior, prior[prior > 0].min() / 2)
    return tuple((prior / prior.sum()).tolist())


def _check_shapes(
    logits_a: Floats, logits_b: Floats, y_true: NDArray[np.int64], class_prior: Floats | None
) -> None:
    if logits_a.shape != logits_b.shape or len(logits_a) != len(y_true):
        shapes = f"{logits_a.shape}, {logits_b.shape} and {y_true.shape}"
        raise ValueError(f"logits_a and logits_b must be (N, K) and y_true (N,), got {shapes}.")
    if class_prior is None:
        return
    if len(class_prior) != logits_a.shape[1] or np.min(class_prior) < 0 or np.max(class_prior) <= 0:
        raise ValueError(
            f"class_prior must hold {logits_a.shape[1]} shares, none below zero and not all zero."
        )
