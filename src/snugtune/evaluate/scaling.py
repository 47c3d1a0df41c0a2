"""Calibration maps: temperature, vector and Dirichlet scaling, and the confidence of the predicted label.

Temperature scaling (Guo et al. 2017, sec. 4.2) has one parameter. Vector scaling (same place) has a scale
and an offset for each class. Dirichlet calibration (Kull et al. 2019, eq. 7) is ``softmax(W log p + b)`` with
a full matrix. The richer maps are drawn towards temperature scaling by an L2 penalty on what they differ from
it, as the ODIR penalty of Kull et al. (sec. 4) does for off-diagonal elements and intercepts; here it is that
of a normal prior, whose standard deviations are tried from tight to loose.

After either of them, the confidence of the predicted label alone may be corrected by beta calibration (Kull,
Silva Filho & Flach 2017), which has three parameters and keeps the order of the rows and the most probable
class of each: it mends what one temperature cannot, such as labels that are wrong however sure the model is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, ndtri

from snugtune.evaluate.calibration import fit_temperature, log_softmax

Method = Literal["temperature", "vector", "dirichlet"]
Floats = NDArray[np.floating[Any]]
Real = NDArray[np.float64]

MAX_DIRICHLET_CLASSES = 100
"""Past it the matrix, which is written to ``run.json``, would take more than 200 kB and is not tried."""

FOLDS = 5
_PRIORS: dict[Method, tuple[float, ...]] = {"vector": (0.1, 0.3, 1.0), "dirichlet": (0.01, 0.03, 0.1)}
_DIAGONAL_PRIOR = 0.1  # of scales and offsets in a Dirichlet map; its own prior is for the rest of it
_IDENTITY = (1.0, 1.0, 0.0)
_LEAST_SLOPE = 0.01
_TINY = np.finfo(np.float64).tiny
_ITERATIONS = 60
_ROWS_TO_TRY = 4000  # past it the choice is clear, and each candidate costs seconds for many classes
_LEVEL = 0.05  # a richer map counts if temperature scaling is worse at this one-sided level


@dataclass(frozen=True)
class Calibration:
    """``softmax(W x + offset)`` of log-probabilities x; W is ``1 / temperature``, a diagonal or a matrix.

    ``scale (K,)`` is the diagonal of vector scaling, ``matrix (K, K)`` the W of a Dirichlet map.
    ``confidence`` are (a, b, c) of the beta map that corrects the predicted label's probability after that.
    """

    method: Method = "temperature"
    temperature: float = 1.0
    scale: tuple[float, ...] | None = None
    matrix: tuple[tuple[float, ...], ...] | None = None
    offset: tuple[float, ...] | None = None
    confidence: tuple[float, ...] | None = None

    def apply(self, log_probs: Floats) -> Real:
        """Calibrated log-probabilities ``(N, K)`` from ``log_probs (N, K)``."""
        scaled = self._scaled(log_softmax(log_probs))
        return scaled if self.confidence is None else _with_confidence(scaled, self.confidence)

    def _scaled(self, x: Real) -> Real:
        if self.scale is not None:
            return log_softmax(x * np.array(self.scale) + np.array(self.offset))
        if self.matrix is not None:
            return log_softmax(x @ np.array(self.matrix).T + np.array(self.offset))
        return log_softmax(x, self.temperature)

    def as_dict(self) -> dict[str, Any]:
        """The fields that are set, as JSON-ready values."""
        names = ("method", "temperature", "scale", "matrix", "offset", "confidence")
        values = {name: getattr(self, name) for name in names}
        return {name: _listed(value) for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Calibration:
        """The map that `as_dict` described."""
        return cls(**{name: _tupled(value) for name, value in fields.items()})


@dataclass(frozen=True)
class Calibrated:
    """A chosen map, and what it was chosen by.

    ``out_of_fold (N, K)`` are log-probabilities of the rows it was chosen on, each row's from a map fitted
    without it.
    ``log_losses`` are the cross-validated log losses of all candidates, in nats.
    """

    calibration: Calibration
    out_of_fold: Real
    log_losses: dict[str, float]


def choose_calibration(
    log_probs: Floats, y_true: NDArray[np.int64], *, keep_order: bool = False, seed: int = 0
) -> Calibrated:
    """The map of lowest cross-validated log loss, if it beats temperature scaling beyond noise.

    ``log_probs (N, K)`` are log-probabilities of held-out rows, ``y_true (N,)`` their classes; rows of class
    -1 teach nothing. "Beyond noise": the mean of the rows' paired differences of out-of-fold loss is above
    zero by a one-sided normal test at 5 %, divided by the number of candidates (Bonferroni). The confidence
    is corrected on the same terms; its loss is that of the statement "this label is right". ``keep_order``
    leaves out the maps that may change which class is the most probable one.
    """
    folds = np.random.default_rng(seed).permutation(len(y_true)) % FOLDS
    known = np.flatnonzero(y_true >= 0)
    tried = known if len(known) <= _ROWS_TO_TRY else known[:: -(-len(known) // _ROWS_TO_TRY)]
    method: Method = "temperature"
    prior, log_losses = 0.0, dict[str, float]()
    if len(tried) >= 2 * FOLDS:
        richer = [] if keep_order else _candidates(len(tried), log_probs.shape[1])
        method, prior, log_losses = _best(log_probs[tried], y_true[tried], folds[tried], richer)
    with_confidence = len(known) >= 2 * FOLDS and _confidence_gains(log_probs, y_true, folds, method, prior)
    out_of_fold = _out_of_fold(log_probs, y_true, folds, method, prior, with_confidence)
    chosen = fit_calibration(log_probs, y_true, method, prior, with_confidence=with_confidence)
    return Calibrated(chosen, out_of_fold, log_losses)


def _best(
    log_probs: Floats, y_true: NDArray[np.int64], folds: NDArray[np.int64], richer: list[tuple[Method, float]]
) -> tuple[Method, float, dict[str, float]]:
    """The method and prior to use, and the cross-validated log loss of each candidate."""
    plain = _losses(_out_of_fold(log_probs, y_true, folds, "temperature", 0.0), y_true)
    log_losses, best_gain = {"temperature": float(plain.mean())}, 0.0
    best: tuple[Method, float] = ("temperature", 0.0)
    for method, prior in richer:
        trial = _losses(_out_of_fold(log_probs, y_true, folds, method, prior), y_true)
        log_losses[f"{method} {prior:g}"] = float(trial.mean())
        gain = float((plain - trial).mean())
        if gain > best_gain and beyond_noise(plain - trial, len(richer)):
            best, best_gain = (method, prior), gain
    return (*best, log_losses)


def _confidence_gains(
    log_probs: Floats, y_true: NDArray[np.int64], folds: NDArray[np.int64], method: Method, prior: float
) -> bool:
    """Whether correcting the confidence tells right predictions from wrong ones better, beyond noise."""
    known = y_true >= 0
    log_probs, y_true, folds = log_probs[known], y_true[known], folds[known]
    losses = []
    for with_confidence in (False, True):
        probs = np.exp(_out_of_fold(log_probs, y_true, folds, method, prior, with_confidence))
        right = probs.argmax(axis=1) == y_true
        losses.append(-np.log(np.where(right, probs.max(axis=1), 1 - probs.max(axis=1)).clip(1e-12)))
    return beyond_noise(losses[0] - losses[1], 1)


def beyond_noise(gains: Real, candidates: int) -> bool:
    """Whether the mean of paired ``gains (N,)`` is above zero at the level, shared by the candidates."""
    if len(gains) < 2:
        return False
    noise = -ndtri(_LEVEL / candidates) * gains.std(ddof=1) / np.sqrt(len(gains))
    return bool(gains.mean() > noise)


def fit_calibration(
    log_probs: Floats,
    y_true: NDArray[np.int64],
    method: Method,
    prior: float = 0.3,
    *,
    with_confidence: bool = False,
) -> Calibration:
    """Fit one map to held-out ``log_probs (N, K)`` and classes ``y_true (N,)``; rows of -1 are ignored.

    ``prior`` is the standard deviation of the normal prior on the parameters: of scales (relative to the
    temperature's) and offsets in vector scaling, of the elements beside the diagonal in a Dirichlet map.
    """
    known = y_true >= 0
    x, y = log_softmax(log_probs[known]), y_true[known]
    temperature = fit_temperature(x, y)
    fields: dict[str, Any] = {}
    if method != "temperature" and len(y):
        K = x.shape[1]
        if method == "dirichlet":
            spread: Real = np.full((K, K), prior)
            np.fill_diagonal(spread, _DIAGONAL_PRIOR)
        else:
            spread = np.full(K, prior)
        weights, offset = _fit(x / temperature, y, spread, np.full(K, spread[(0,) * spread.ndim]))
        name = "scale" if method == "vector" else "matrix"
        fields = {name: _tupled((weights / temperature).tolist()), "offset": _tupled(offset.tolist())}
    map_alone = Calibration(method, temperature, **fields)
    if not (with_confidence and len(y)):
        return map_alone
    probs = np.exp(map_alone.apply(x))
    return replace(map_alone, confidence=fit_beta(probs.max(axis=1), probs.argmax(axis=1) == y))


def fit_beta(confidence: Real, correct: NDArray[np.bool_]) -> tuple[float, ...]:
    """(a, b, c) of the beta map, by maximum a posteriori; a and b stay above zero, so it keeps the order.

    The prior is normal around the identity (1, 1, 0) with standard deviation 1, so that no run of right
    predictions makes the confidence certain.
    """
    features, sign = _beta_features(confidence), np.where(correct, 1.0, -1.0)
    identity = np.array(_IDENTITY)

    def loss(parameters: Real) -> tuple[float, Real]:
        margins = sign * (features @ parameters)
        pull = (parameters - identity) / len(sign)
        value = np.logaddexp(0, -margins).mean() + pull @ (parameters - identity) / 2
        return float(value), pull - features.T @ (sign * expit(-margins)) / len(sign)

    bounds = [(_LEAST_SLOPE, None), (_LEAST_SLOPE, None), (None, None)]
    found = minimize(loss, identity, jac=True, method="L-BFGS-B", bounds=bounds)
    return tuple(found.x.tolist())


def beta_confidence(confidence: Real, parameters: tuple[float, ...]) -> Real:
    """What the beta map of `fit_beta` makes of each confidence: ``(N,)``."""
    return np.asarray(expit(_beta_features(confidence) @ np.array(parameters)))


def _beta_features(confidence: Real) -> Real:
    """``log s, -log(1 - s), 1`` of each confidence s: ``(N, 3)`` (Kull, Silva Filho & Flach 2017, sec. 3)."""
    clipped = confidence.clip(1e-12, 1 - 1e-12)
    return np.stack([np.log(clipped), -np.log1p(-clipped), np.ones_like(clipped)], axis=1)


def _with_confidence(log_probs: Real, parameters: tuple[float, ...]) -> Real:
    """Probabilities whose largest one in each row is the beta map of what it was.

    The other classes share the rest as before. Where that would lift one of them above the label, which
    stays, they are mixed with even probabilities instead.
    """
    probs = np.exp(log_probs)
    rows, K, top = np.arange(len(probs)), probs.shape[1], probs.argmax(axis=1)
    before = probs[rows, top]
    # Just above even, so that the label stays the most probable class.
    after = np.maximum(beta_confidence(before, parameters), (1 + 1e-6) / K)
    shared = probs.copy()
    shared[rows, top] = 0
    shared *= ((1 - after) / np.maximum(shared.sum(axis=1), _TINY))[:, None]
    shared[rows, top] = after
    overtaken = np.flatnonzero(shared.max(axis=1) > after)
    even = ((before - after) / np.maximum(before - 1 / K, _TINY))[overtaken, None].clip(0, 1)
    shared[overtaken] = (1 - even) * probs[overtaken] + even / K
    return np.asarray(np.log(shared.clip(_TINY)))


def _fit(x: Real, y: NDArray[np.int64], spread: Real, offset_spread: Real) -> tuple[Real, Real]:
    """The weights, of the shape of ``spread``, and offsets ``(K,)`` of highest posterior probability.

    Both are sought as deviations from the identity in units of their prior's standard deviation.
    """
    full, size, K = spread.ndim == 2, spread.size, x.shape[1]
    identity = np.eye(K) if full else np.ones(K)
    truth = (np.arange(len(y)), y)

    def weights_of(parameters: Real) -> tuple[Real, Real]:
        deviations = parameters[:size].reshape(spread.shape)
        return identity + spread * deviations, offset_spread * parameters[size:]

    def loss(parameters: Real) -> tuple[float, Real]:
        weights, offset = weights_of(parameters)
        log_p = log_softmax((x @ weights.T if full else x * weights) + offset)
        error = np.exp(log_p)
        error[truth] -= 1
        error /= len(y)
        by_weight = error.T @ x if full else (error * x).sum(axis=0)
        gradient = np.concatenate([(by_weight * spread).ravel(), error.sum(axis=0) * offset_spread])
        penalty = parameters @ parameters / (2 * len(y))
        return float(-log_p[truth].mean() + penalty), gradient + parameters / len(y)

    start = np.zeros(size + K)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS})
    return weights_of(np.asarray(found.x))


def _candidates(rows: int, K: int) -> list[tuple[Method, float]]:
    """The richer maps worth trying: a class needs more than one row on average."""
    if rows < 2 * FOLDS or rows < 2 * K:
        return []
    methods: tuple[Method, ...] = ("vector", "dirichlet") if K <= MAX_DIRICHLET_CLASSES else ("vector",)
    return [(method, prior) for method in methods for prior in _PRIORS[method]]


def _out_of_fold(
    log_probs: Floats,
    y_true: NDArray[np.int64],
    folds: NDArray[np.int64],
    method: Method,
    prior: float,
    with_confidence: bool = False,
) -> Real:
    """Log-probabilities ``(N, K)``, each row's from the map fitted to the other folds."""
    result = np.empty(log_probs.shape, np.float64)
    for fold in range(FOLDS):
        out = folds == fold
        fitted = fit_calibration(
            log_probs[~out], y_true[~out], method, prior, with_confidence=with_confidence
        )
        result[out] = fitted.apply(log_probs[out])
    return result


def _losses(log_probs: Real, y_true: NDArray[np.int64]) -> Real:
    return np.asarray(-log_probs[np.arange(len(y_true)), y_true])


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list | tuple) else value
