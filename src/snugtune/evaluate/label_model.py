"""Many rules, one label: a vote, or a vote weighted by how often each rule is likely right.

Dawid and Skene (1979, Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm, Applied
Statistics 28) learn how reliable observers are from where they agree, without knowing the truth. Their model
is used with one accuracy for each rule (the "one-coin" form): a rule says one label only, so there is no
confusion of it to learn. That a rule abstains counts as saying nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Combine = Literal["accuracy", "majority"]

MAX_ITERATIONS = 200
TOLERANCE = 1e-8

RIGHT_BEFORE, WRONG_BEFORE = 8.0, 2.0
"""Votes that each rule is credited with beforehand: a person wrote it, so it is taken to be right four times
of five until others, or known labels, say otherwise. A rule that meets no other keeps that."""

SMALLEST_CLASS = 1.0
"""Rows added to each class, so that none that a rule names is impossible."""

Votes = NDArray[np.int64]


@dataclass(frozen=True)
class Combined:
    """``probabilities`` (N, K) of the classes that rules said, and each rule's ``accuracy`` (R,).

    A rule's accuracy is the probability that it is right when it speaks; NaN for one that never does.

    What a row lacks to 1 is the probability that no rule is right; rows of which none spoke are all 0.
    """

    probabilities: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    def labels(self, min_probability: float) -> NDArray[np.int64]:
        """The most probable class of each row (N,); -1 below ``min_probability`` and where two are equal."""
        p = self.probabilities
        best = p.argmax(axis=1)
        top = p[np.arange(len(p)), best]
        tied = (np.isclose(p, top[:, None], rtol=0.0, atol=1e-9) & (p > 0)).sum(axis=1) > 1
        return np.where((top >= max(min_probability, 1e-12)) & ~tied, best, -1)


def combine(votes: Votes, K: int, how: Combine = "accuracy", known: Votes | None = None) -> Combined:
    """One distribution for each of N rows from R ``votes`` (N, R): class ids below ``K``, or -1.

    ``known`` (N,) are class ids of rows whose label is known, else -1; the rules' accuracies are learned from
    them as well, while the probabilities returned for those rows are what the rules alone say.
    """
    if how == "majority":
        return majority(votes, K, known)
    return by_accuracy(votes, K, known)


def majority(votes: Votes, K: int, known: Votes | None = None) -> Combined:
    """Every rule counts the same; a rule's accuracy is how often it is with the majority."""
    counts = _tallies(votes, np.ones(votes.shape[1]), K)
    total = counts.sum(axis=1, keepdims=True)
    probabilities = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    return Combined(probabilities, _accuracies(votes, _with_known(probabilities, known), prior=False))


def by_accuracy(votes: Votes, K: int, known: Votes | None = None) -> Combined:
    """Dawid and Skene's EM with one accuracy for each rule, begun from the majority."""
    spoken = np.asarray((votes >= 0).any(axis=1))
    posterior = majority(votes, K).probabilities
    accuracy = np.full(votes.shape[1], RIGHT_BEFORE / (RIGHT_BEFORE + WRONG_BEFORE))
    for _ in range(MAX_ITERATIONS):
        truth = _with_known(posterior, known)
        before, accuracy = accuracy, _accuracies(votes, truth, prior=True)
        posterior = _posterior(votes, accuracy, _priors(truth), spoken)
        if np.abs(accuracy - before).max(initial=0.0) < TOLERANCE:
            break
    speaks = (votes >= 0).any(axis=0)
    said = _tallies(votes, np.ones(votes.shape[1]), K) > 0
    return Combined(np.where(said, posterior, 0.0), np.where(speaks, accuracy, np.nan))


def _posterior(
    votes: Votes, accuracy: NDArray[np.float64], priors: NDArray[np.float64], spoken: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """p(class) is as its prior times, for each vote, a where it agrees and else (1 - a) / (K - 1)."""
    K = len(priors)
    a = np.clip(accuracy, 1e-6, 1 - 1e-6)
    logs = np.log(priors) + _tallies(votes, np.log(a * max(K - 1, 1) / (1 - a)), K)
    logs -= logs.max(axis=1, keepdims=True)
    p = np.exp(logs)
    return np.asarray(np.where(spoken[:, None], p / p.sum(axis=1, keepdims=True), 0.0))


def _tallies(votes: Votes, weight: NDArray[np.float64], K: int) -> NDArray[np.float64]:
    """The sum of the ``weight`` (R,) of the rules that say each class: (N, K)."""
    found = np.zeros((len(votes), K))
    for r in range(votes.shape[1]):
        rows = np.flatnonzero(votes[:, r] >= 0)
        np.add.at(found, (rows, votes[rows, r]), weight[r])
    return found


def _accuracies(votes: Votes, truth: NDArray[np.float64], *, prior: bool) -> NDArray[np.float64]:
    """How often each rule agrees with the ``truth`` (N, K) where it speaks: (R,)."""
    right, total = np.zeros(votes.shape[1]), np.zeros(votes.shape[1])
    for r in range(votes.shape[1]):
        rows = np.flatnonzero(votes[:, r] >= 0)
        right[r], total[r] = truth[rows, votes[rows, r]].sum(), len(rows)
    if prior:
        right, total = right + RIGHT_BEFORE, total + RIGHT_BEFORE + WRONG_BEFORE
    return np.asarray(np.divide(right, total, out=np.full(len(right), np.nan), where=total > 0))


def _priors(truth: NDArray[np.float64]) -> NDArray[np.float64]:
    counts = truth.sum(axis=0) + SMALLEST_CLASS
    return np.asarray(counts / counts.sum())


def _with_known(posterior: NDArray[np.float64], known: Votes | None) -> NDArray[np.float64]:
    if known is None:
        return posterior
    truth = posterior.copy()
    rows = np.flatnonzero(known >= 0)
    truth[rows] = 0.0
    truth[rows, known[rows]] = 1.0
    return truth
