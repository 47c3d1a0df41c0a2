"""A threshold for each label: its own where validation rows bear it out, drawn to a common one where few do.

For calibrated probabilities the threshold that maximises a label's F1 is half of that F1 (Lipton, Elkan &
Naryanaswamy 2014, Optimal Thresholding of Classifiers to Maximize F1 Measure), so a half is too high for
nearly all labels. A threshold tuned on a handful of rows is worse than a common one (Yang 2001, A study on
thresholding strategies for text categorization; Fan & Lin 2007, A Study on Threshold Selection for
Multi-label Classification): each label's counts are therefore filled up with those of all labels together, as
if it had so many positive rows more, and cross-validation chooses how many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from snugtune.evaluate.metrics import macro_f1

Objective = Literal["accuracy", "f1_macro", "f1_micro"]
OBJECTIVES: tuple[Objective, ...] = ("accuracy", "f1_macro", "f1_micro")
Floats = NDArray[np.floating[Any]]
Real = NDArray[np.float64]

GRID: Real = expit(np.arange(logit(0.02), logit(0.95), 0.1))
"""The thresholds tried: T of them, in even steps of log-odds."""

POOLED = np.inf
BORROWED = (POOLED, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3)
"""Positive rows that each label borrows from all together; `POOLED` is one threshold for all."""

FOLDS = 5
FEWEST_ROWS = 20
"""Validation rows below which the threshold is common to all labels."""


@dataclass(frozen=True)
class Thresholds:
    """``values`` (K,); how many positive rows were ``borrowed`` for each, None if it is one for all.

    ``out_of_fold`` (N, K) are the labels given to the rows they were chosen on, each by thresholds that were
    chosen without it.
    """

    values: Real
    borrowed: float | None
    out_of_fold: NDArray[np.bool_]


def give_labels(probabilities: Floats, thresholds: Floats, *, at_least_one: bool) -> NDArray[np.bool_]:
    """The labels (N, K) at or above their ``thresholds`` (K,).

    With ``at_least_one``, a row without any gets its most probable one: right where no training row was bare.
    """
    given = probabilities >= thresholds
    if at_least_one and given.shape[1]:
        bare = np.flatnonzero(~given.any(axis=1))
        given[bare, probabilities[bare].argmax(axis=1)] = True
    return np.asarray(given)


def choose_thresholds(
    probabilities: Floats,
    y: NDArray[np.int8],
    objective: Objective,
    *,
    at_least_one: bool,
    seed: int = 0,
) -> Thresholds:
    """Choose on held-out rows: ``probabilities`` (N, K), calibrated, and labels ``y`` (N, K).

    How much labels borrow is what gives the best ``objective`` out of fold; equals go to the most.
    """
    folds = np.random.default_rng(seed).permutation(len(y)) % FOLDS
    counts = [_Counts.of(probabilities[folds == fold], y[folds == fold]) for fold in range(FOLDS)]
    every = sum(counts[1:], counts[0])
    candidates = BORROWED if len(y) >= FEWEST_ROWS else (POOLED,)
    trials = []
    for borrowed in candidates:
        given = np.empty(y.shape, bool)
        for fold in range(FOLDS):
            # With a row or two, one fold is all there is to learn from.
            learnt = every - counts[fold] if len(y) >= FOLDS else every
            values, out = learnt.thresholds(borrowed), folds == fold
            given[out] = give_labels(probabilities[out], values, at_least_one=at_least_one)
        trials.append(given)
    best = int(np.argmax([set_score(y, given, objective) for given in trials]))
    return Thresholds(
        every.thresholds(candidates[best]),
        None if candidates[best] == POOLED else candidates[best],
        trials[best],
    )


def fit_thresholds(probabilities: Floats, y: NDArray[np.int8], borrowed: float) -> Real:
    """The threshold of highest F1 of each label (K,), its counts filled up by ``borrowed`` positive rows."""
    return _Counts.of(probabilities, y).thresholds(borrowed)


@dataclass(frozen=True)
class _Counts:
    """Rows of each label (K,), and those given it rightly, and at all, at each threshold of `GRID` (T, K)."""

    positives: Real
    hits: Real
    given: Real

    @classmethod
    def of(cls, probabilities: Floats, y: NDArray[np.int8]) -> _Counts:
        true = y > 0
        hits, given = np.empty((2, len(GRID), y.shape[1]))
        for i, threshold in enumerate(GRID):
            above = probabilities >= threshold
            hits[i], given[i] = (above & true).sum(axis=0), above.sum(axis=0)
        return cls(true.sum(axis=0).astype(np.float64), hits, given)

    def __add__(self, other: _Counts) -> _Counts:
        return _Counts(self.positives + other.positives, self.hits + other.hits, self.given + other.given)

    def __sub__(self, other: _Counts) -> _Counts:
        return _Counts(self.positives - other.positives, self.hits - other.hits, self.given - other.given)

    def thresholds(self, borrowed: float) -> Real:
        """As in `fit_thresholds`."""
        total, K = self.positives.sum(), len(self.positives)
        if not total:
            return np.full(K, GRID[-1])
        # Of all labels together, for each positive row.
        hits, given = (cells.sum(axis=1, keepdims=True) / total for cells in (self.hits, self.given))
        if borrowed == POOLED:
            return np.repeat(GRID[_best(2 * hits / (1 + given))], K)
        filled, of = self.hits + borrowed * hits, self.positives + self.given + borrowed * (1 + given)
        return np.asarray(GRID[_best(2 * filled / of)])


def _best(f1: Real) -> NDArray[np.int64]:
    """Of the largest of ``f1`` (T, K) in each column the middle one: as far as may be from either mistake."""
    largest = f1 >= f1.max(axis=0) - 1e-12
    first, last = largest.argmax(axis=0), len(f1) - 1 - largest[::-1].argmax(axis=0)
    middle = (first + last) // 2
    return np.asarray(np.where(largest[middle, np.arange(f1.shape[1])], middle, first))


def best_common_score(probabilities: Floats, y: NDArray[np.int8], objective: Objective) -> float:
    """The best ``objective`` that one threshold for all labels gives: by it training is judged as it goes."""
    if objective == "accuracy":
        return max(float(((probabilities >= t) == (y > 0)).all(axis=1).mean()) for t in GRID)
    counts = _Counts.of(probabilities, y)
    if objective == "f1_macro":
        return float(macro_f1(counts.hits, counts.positives, counts.given).max())
    total = counts.positives.sum() + counts.given.sum(axis=1)
    return float((2 * counts.hits.sum(axis=1) / np.maximum(total, 1)).max())


def set_score(y: NDArray[np.int8], given: NDArray[np.bool_], objective: Objective) -> float:
    """The ``objective`` of labels ``given`` (N, K)."""
    true = y > 0
    if objective == "accuracy":
        return float((true == given).all(axis=1).mean()) if len(y) else 0.0
    hits, support, predicted = ((true & given).sum(axis=0), true.sum(axis=0), given.sum(axis=0))
    if objective == "f1_macro":
        return float(macro_f1(hits, support, predicted))
    return float(2 * hits.sum() / max(int(support.sum() + predicted.sum()), 1))
