"""Rules that vote: the majority, weights learned from agreement and from known labels, abstaining."""

import numpy as np
import pytest

from snugtune.evaluate.label_model import by_accuracy, combine, majority


def made_votes(accuracies, *, rows=3000, K=3, speaks=0.6, seed=0):
    """Votes of rules that speak on a part of the rows and are right so often, and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, K, rows)
    columns = []
    for accuracy in accuracies:
        wrong = (truth + rng.integers(1, K, rows)) % K
        vote = np.where(rng.random(rows) < accuracy, truth, wrong)
        columns.append(np.where(rng.random(rows) < speaks, vote, -1))
    return np.stack(columns, axis=1), truth


def test_the_majority_by_hand():
    votes = np.array([[0, 0, 1], [1, -1, -1], [-1, -1, -1], [0, 1, -1]])
    found = majority(votes, 2)
    assert found.probabilities.tolist() == [[2 / 3, 1 / 3], [0, 1], [0, 0], [0.5, 0.5]]
    assert found.labels(0.0).tolist() == [0, 1, -1, -1]
    assert found.labels(0.7).tolist() == [-1, 1, -1, -1]


def test_accuracies_are_found_without_knowing_the_truth():
    accuracies = (0.95, 0.8, 0.6, 0.45)
    votes, truth = made_votes(accuracies)
    found = by_accuracy(votes, 3)
    assert found.accuracy == pytest.approx(accuracies, abs=0.05)
    spoken = (votes >= 0).any(axis=1)
    right = lambda one: (one.probabilities.argmax(axis=1) == truth)[spoken].mean()  # noqa: E731
    assert right(found) > right(majority(votes, 3)) + 0.02


def test_one_good_rule_overrules_two_bad_ones():
    votes, _ = made_votes((0.97, 0.5, 0.5), speaks=1.0)
    against = np.flatnonzero((votes[:, 1] == votes[:, 2]) & (votes[:, 0] != votes[:, 1]))
    found = by_accuracy(votes, 3)
    assert (found.probabilities[against].argmax(axis=1) == votes[against, 0]).all()
    assert (majority(votes, 3).probabilities[against].argmax(axis=1) == votes[against, 1]).all()


def test_known_labels_tell_what_agreement_cannot():
    """Rules that never meet say nothing of each other; known labels do."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 400)
    half = np.arange(400) % 2 == 0
    wrong = np.where(rng.random(400) < 0.3, truth, 1 - truth)
    votes = np.stack([np.where(half, truth, -1), np.where(half, -1, wrong)], axis=1)
    assert by_accuracy(votes, 2).accuracy == pytest.approx([0.8, 0.8], abs=0.1)
    told = by_accuracy(votes, 2, truth).accuracy
    assert told[0] > 0.95
    assert told[1] < 0.4


def test_a_rule_that_never_speaks_is_no_trouble():
    votes = np.array([[0, -1], [1, -1]])
    for how in ("accuracy", "majority"):
        found = combine(votes, 2, how)
        assert found.labels(0.5).tolist() == [0, 1]
        assert np.isnan(found.accuracy[1])


def test_a_single_class_and_no_votes():
    assert by_accuracy(np.array([[0], [-1]]), 1).labels(0.5).tolist() == [0, -1]
    assert by_accuracy(np.full((2, 2), -1), 2).labels(0.0).tolist() == [-1, -1]


def test_a_known_label_that_no_rule_gives_counts_against_those_that_speak():
    """Class 2 is never said: rows of it tell that the rule is wrong there, and no row is given it."""
    votes = np.zeros((40, 1), dtype=np.int64)
    known = np.full(40, 2)
    found = by_accuracy(votes, 3, known)
    assert found.accuracy[0] < 0.2
    assert (found.probabilities[:, 1:] == 0).all()
    assert found.labels(0.5).tolist() == [-1] * 40
