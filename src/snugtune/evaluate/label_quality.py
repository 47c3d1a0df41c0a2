"""Which given labels look wrong: confident learning on out-of-fold probabilities (Northcutt et al. 2021).

Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 70, 2021.
Every row is judged by models that have seen neither it nor a near-duplicate of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.evaluate.baseline import ABSENT_SCORE, fit_linear
from snugtune.evaluate.calibration import fit_temperature, softmax
from snugtune.evaluate.metrics import log_loss

FOLDS = 5
"""Models per method: each sees four fifths of the rows."""

SHRINKAGES = (0.1, 0.3, 0.6)
"""Of the covariance towards a multiple of the identity; the out-of-fold log loss chooses."""

MAX_FIT_ROWS = 20_000
"""Rows a fold's model learns from at most: more makes the ranking little better and the audit long."""

KEPT_OF_A_CLASS = 20
"""Rows of a class that stay whatever its share."""

SCORE_SCALE = 10
"""Log-densities are divided by it: those of many features would need temperatures beyond those sought."""

MIN_ROWS_SEEN = 4
"""Rows of a class a model must have seen before its word on a label of that class counts."""

MOST_CREDIBLE = 0.05
"""Probability of the given label above which no row is suspected.

The confident joint asks a model only for what is usual for its class. Where models err often, little is
usual, and nearly all their mistakes pass: on the sample workbook, whose labels are wrong in 3 % of the rows,
19 % were suspected and a sixth of those rightly. With this bound it is 5 % and half; of labels flipped in
Banking77 as many are found as without it, in complaints by product 94 % instead of 97 %, among half the
suspects."""

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]
Scores = Callable[[Ids, Ids], Floats]


@dataclass(frozen=True)
class LabelQuality:
    """For each of N rows: how well its label fits, the label that fits best, and whether it is suspected.

    ``quality`` (N,) is the probability of the given label, low where it looks wrong; ``suggested`` (N,) are
    class ids; ``suspected`` (N,) marks the rows that confident learning counts as mislabelled.
    """

    quality: NDArray[np.float64]
    suggested: Ids
    suspected: NDArray[np.bool_]

    def ranked(self) -> Ids:
        """All rows, the least credible label first."""
        return np.argsort(self.quality, kind="stable")

    def suspects(self) -> Ids:
        """The suspected rows, the least credible label first."""
        order = self.ranked()
        return order[self.suspected[order]]


def judge_labels(
    y: Ids,
    groups: Ids,
    n_classes: int,
    *,
    words: Any,
    features: Floats | None = None,
    seed: int = 0,
) -> LabelQuality:
    """Judge the labels ``y`` (N,) by the baseline and, given ``features`` (N, H), the probe.

    ``groups`` (N,) are near-duplicate groups, ``words`` (N, F) the baseline's sparse features of the texts
    (`TfidfBaseline.fit_features`), ``features`` those of the frozen model. Where both are there, their
    probabilities are averaged.
    """
    folds = grouped_folds(y, groups, seed=seed)
    found = [baseline_probabilities(words, y, n_classes, folds, seed=seed)]
    if features is not None:
        found.append(probe_probabilities(features, y, n_classes, folds, seed=seed))
    return label_quality(y, np.mean(found, axis=0), judged=_learnable(y, folds, n_classes))


def grouped_folds(y: Ids, groups: Ids, *, folds: int = FOLDS, seed: int = 0) -> Ids:
    """Fold ids (N,): each group in one fold, each class spread evenly, in time linear in N.

    Groups are sorted by class (of their first row), shuffled within it, and dealt out in turn.
    """
    _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    shuffled = np.random.default_rng(seed).random(len(first))
    order = np.lexsort((shuffled, y[first]))
    dealt = np.empty(len(first), dtype=np.int64)
    dealt[order] = np.arange(len(first)) % folds
    return dealt[group_of]


def out_of_fold(y: Ids, n_classes: int, folds: Ids, scores: Scores) -> NDArray[np.float64]:
    """Probabilities (N, K) of each row by a model that was fitted without its fold.

    ``scores(train, test)`` fits on the rows ``train`` and returns scores (len(test), K). One temperature for
    all of them makes probabilities of scores.
    """
    found = np.full((len(y), n_classes), ABSENT_SCORE, dtype=np.float64)
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if len(train):
            found[test] = scores(train, test)
    return softmax(found, fit_temperature(found, y))


def baseline_probabilities(
    words: Any, y: Ids, n_classes: int, folds: Ids, *, seed: int = 0
) -> NDArray[np.float64]:
    """Out-of-fold probabilities (N, K) of a linear classifier of the sparse ``words`` (N, F)."""

    def scores(train: Ids, test: Ids) -> Floats:
        return linear_scores(words, y, n_classes, _fewer(train, y, seed), test)

    return out_of_fold(y, n_classes, folds, scores)


def linear_scores(X: Any, y: Ids, n_classes: int, train: Ids, test: Ids) -> NDArray[np.float64]:
    """Scores (len(test), K) of a linear classifier of the rows ``train`` of sparse ``X`` (N, F)."""
    seen, weights, bias = fit_linear("svc", 1.0, X[train], y[train])
    found = np.full((len(test), n_classes), ABSENT_SCORE, dtype=np.float64)
    found[:, seen] = X[test] @ weights.T + bias
    return found


def probe_probabilities(
    features: Floats, y: Ids, n_classes: int, folds: Ids, *, seed: int = 0
) -> NDArray[np.float64]:
    """Out-of-fold probabilities (N, K) of a linear probe on frozen ``features`` (N, H).

    The probe is a linear discriminant analysis: on Banking77 with a twentieth of the labels flipped it ranks
    them as a logistic regression does, in a tenth of the time, and no few wrong labels bend it. The
    shrinkage is the one of the lowest out-of-fold log loss.
    """

    def of(shrinkage: float) -> NDArray[np.float64]:
        def scores(train: Ids, test: Ids) -> Floats:
            chosen = _fewer(train, y, seed)
            return discriminant_scores(features[chosen], y[chosen], n_classes, features[test], shrinkage)

        return out_of_fold(y, n_classes, folds, scores)

    return min(map(of, SHRINKAGES), key=lambda pred_probs: log_loss(y, pred_probs))


def discriminant_scores(
    features: Floats, y: Ids, n_classes: int, others: Floats, shrinkage: float
) -> NDArray[np.float64]:
    """Log-densities (M, K) of ``others`` (M, H), but for scale and constant: linear discriminant analysis.

    Fitted on ``features`` (N, H) of classes ``y`` (N,): normal distributions of one covariance, which is
    shrunk towards its mean variance (Hastie, Tibshirani and Friedman 2009, sec. 4.3).
    """
    x = features.astype(np.float64)
    seen, of, counts = np.unique(y, return_inverse=True, return_counts=True)
    means = np.zeros((len(seen), x.shape[1]))
    np.add.at(means, of, x)
    means /= counts[:, None]
    centre = x.mean(axis=0)
    x -= means[of]
    covariance = x.T @ x / len(x)
    variance = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    covariance *= 1 - shrinkage
    covariance.flat[:: len(covariance) + 1] += shrinkage * variance
    # From the centre, so that the constants stay small.
    weights = np.linalg.solve(covariance, (means - centre).T)
    bias = np.log(counts / len(x)) - 0.5 * np.einsum("kh,hk->k", means - centre, weights)
    found = np.full((len(others), n_classes), ABSENT_SCORE * SCORE_SCALE)
    found[:, seen] = ((others.astype(np.float64) - centre) @ weights + bias) / SCORE_SCALE
    return found


def _fewer(rows: Ids, y: Ids, seed: int) -> Ids:
    """At most about ``MAX_FIT_ROWS`` of ``rows``, of every class its share, of rare ones all."""
    if len(rows) <= MAX_FIT_ROWS:
        return rows
    shuffled = np.random.default_rng(seed).permutation(rows)
    by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
    _, first, of, counts = np.unique(y[by_class], return_index=True, return_inverse=True, return_counts=True)
    place_in_class = np.arange(len(by_class)) - first[of]
    allowed = np.maximum(KEPT_OF_A_CLASS, np.ceil(counts * MAX_FIT_ROWS / len(rows)))
    return np.sort(by_class[place_in_class < allowed[of]])


def label_quality(y: Ids, pred_probs: Floats, *, judged: NDArray[np.bool_] | None = None) -> LabelQuality:
    """Judge labels ``y`` (N,) by out-of-sample ``pred_probs`` (N, K).

    Suspected are the rows off the diagonal of the confident joint whose given label is hardly credible. Rows
    not ``judged`` (N,) get the quality 1 and are never suspected.
    """
    quality = self_confidence(y, pred_probs)
    suspected = confident_issues(y, pred_probs) & (quality <= MOST_CREDIBLE)
    if judged is not None:
        quality, suspected = np.where(judged, quality, 1.0), suspected & judged
    return LabelQuality(quality, pred_probs.argmax(axis=1).astype(np.int64), suspected)


def self_confidence(y: Ids, pred_probs: Floats) -> NDArray[np.float64]:
    """Probability (N,) of the given label.

    The normalised margin, which subtracts that of the best other label, ranks flipped labels worse on
    Banking77: it finds .94 of them in the first 8 % where this finds .99.
    """
    return pred_probs[np.arange(len(y)), y].astype(np.float64)


def confident_issues(y: Ids, pred_probs: Floats) -> NDArray[np.bool_]:
    """Rows (N,) off the diagonal of the confident joint (Northcutt et al. 2021, eq. 1 and 2).

    A row is confidently of class j if p(j) reaches the mean p(j) of the rows labelled j; of several such
    classes the most probable counts. Rows whose given label is also the predicted one are left out.
    """
    above = pred_probs >= confident_thresholds(y, pred_probs) - 1e-6
    confident = np.where(above, pred_probs, -np.inf)
    of = confident.argmax(axis=1)
    return np.asarray(above.any(axis=1) & (of != y) & (pred_probs.argmax(axis=1) != y))


def confident_thresholds(y: Ids, pred_probs: Floats) -> NDArray[np.float64]:
    """Mean probability of each class (K,) over the rows that carry its label; out of reach without any."""
    counts = np.bincount(y, minlength=pred_probs.shape[1])
    sums = np.bincount(y, weights=pred_probs[np.arange(len(y)), y], minlength=pred_probs.shape[1])
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def _learnable(y: Ids, folds: Ids, n_classes: int) -> NDArray[np.bool_]:
    """Rows (N,) of whose class the models that judge them have seen enough rows."""
    by_fold = np.zeros((int(folds.max()) + 1, n_classes), dtype=np.int64)
    np.add.at(by_fold, (folds, y), 1)
    elsewhere = by_fold.sum(axis=0) - by_fold[folds]
    return np.asarray(elsewhere[np.arange(len(y)), y] >= MIN_ROWS_SEEN)
