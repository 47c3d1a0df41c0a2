"""Slices, pairs, bins and the risk-coverage curve against counts made by hand."""

from __future__ import annotations

import json
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snugtune.evaluate.metrics import classification_metrics, wilson_interval
from snugtune.evaluate.slices import (
    MAX_POINTS,
    by_class_size,
    by_length,
    confused_pairs,
    reliability,
    risk_coverage,
)


def sure_of(classes, confidence, K):
    """Probabilities whose largest one is ``confidence`` for each class."""
    probs = np.full((len(classes), K), (1 - np.asarray(confidence)[:, None]) / (K - 1))
    probs[np.arange(len(classes)), classes] = confidence
    return probs


def test_pairs_count_both_directions_and_show_the_most_confident_mistakes() -> None:
    y_true = np.array([0, 0, 1, 2, 1, 0, -1])
    predicted = [1, 1, 0, 1, 1, 0, 2]
    probs = sure_of(predicted, [0.6, 0.9, 0.8, 0.7, 0.9, 0.9, 0.9], 3)
    pairs = confused_pairs(y_true, probs, ["a", "b", "c"], np.arange(10, 17))
    assert pairs == [
        {"labels": ["a", "b"], "rows": 3, "a_as_b": 2, "b_as_a": 1, "examples": [11, 12, 10]},
        {"labels": ["b", "c"], "rows": 1, "a_as_b": 0, "b_as_a": 1, "examples": [13]},
    ]


def test_no_mistakes_no_pairs() -> None:
    assert confused_pairs(np.array([0, 1]), np.eye(2), ["a", "b"], np.arange(2)) == []


def test_lengths_are_cut_into_fifths() -> None:
    lengths = np.arange(1, 101)
    y_true, y_pred = np.zeros(100, int), np.where(lengths > 80, 1, 0)
    slices = by_length(np.append(y_true, -1), np.append(y_pred, 0), np.append(lengths, 500))
    assert [row["rows"] for row in slices] == [20, 20, 20, 20, 20]
    assert [row["accuracy"] for row in slices] == [1, 1, 1, 1, 0]
    assert (slices[0]["from"], slices[0]["to"], slices[4]["to"]) == (1, 20, 100)
    assert slices[4]["interval"][0] == 0 < slices[4]["interval"][1] < 0.2


def test_equal_lengths_are_one_group() -> None:
    (only,) = by_length(np.zeros(9, int), np.zeros(9, int), np.full(9, 7))
    assert (only["from"], only["to"], only["rows"]) == (7, 7, 9)
    assert by_length(np.full(3, -1), np.zeros(3, int), np.ones(3, int)) == []


def test_classes_are_grouped_by_their_training_rows() -> None:
    y_true, y_pred = np.array([0, 0, 1, 2, 2]), np.array([0, 0, 0, 2, 2])
    small, large = by_class_size(y_true, y_pred, np.array([3, 4, 60]))
    assert small == {
        "from": 3, "to": 4, "classes": 2, "rows": 3, "accuracy": 2 / 3, "f1_macro": pytest.approx(0.4)
    }  # fmt: skip
    assert large == {"from": 60, "to": 60, "classes": 1, "rows": 2, "accuracy": 1.0, "f1_macro": 1.0}


def test_reliability_by_hand() -> None:
    y_true = np.array([0, 0, 0, 1, -1])
    found = reliability(y_true, sure_of([0, 0, 0, 0, 0], [0.95, 0.95, 0.55, 0.55, 0.9], 2))
    assert found["ece"] == pytest.approx(0.05)
    assert found["bins"] == [
        {"confidence": pytest.approx(0.55), "accuracy": 0.5, "rows": 2},
        {"confidence": pytest.approx(0.95), "accuracy": 1.0, "rows": 2},
    ]


@given(st.integers(0, 2**32 - 1), st.integers(1, 500), st.integers(0, 3))
@settings(deadline=None)
def test_the_curve_says_what_each_threshold_does(seed, rows, decimals) -> None:
    rng = np.random.default_rng(seed)
    confidence = 0.5 + rng.random(rows).round(decimals) / 2
    y_true = (rng.random(rows) > confidence).astype(int)
    curve = risk_coverage(y_true, sure_of(np.zeros(rows, int), confidence, 2))
    assert 0 < len(curve) <= MAX_POINTS
    assert curve[0]["coverage"] == 1
    coverages = [point["coverage"] for point in curve]
    assert coverages == sorted(set(coverages), reverse=True)
    for point in curve:
        taken = sure_of(np.zeros(rows, int), confidence, 2).max(1) >= point["threshold"]
        right = sure_of(np.zeros(rows, int), confidence, 2).argmax(1) == y_true
        assert point["coverage"] == pytest.approx(taken.mean())
        assert point["precision"] == pytest.approx(right[taken].mean())
    json.dumps(curve, allow_nan=False)


@given(st.integers(0, 300), st.integers(0, 300))
def test_wilsons_interval_holds_the_rates_its_test_accepts(hits, more) -> None:
    rows, z = hits + more, NormalDist().inv_cdf(0.975)
    low, high = wilson_interval(hits, rows)
    assert 0 <= low <= high <= 1
    if rows:
        assert low <= hits / rows <= high
    for end in (low, high):
        if 0 < end < 1:  # an end is where the score test is just passed
            score = (hits / rows - end) / np.sqrt(end * (1 - end) / rows)
            assert abs(score) == pytest.approx(z, rel=1e-6)


def test_intervals_of_a_class_hold_the_truth_as_often_as_they_say() -> None:
    # Class 0: precision .8, recall .6 in the population, so F1 = .6857.
    rng, held, samples = np.random.default_rng(0), {"precision": 0, "recall": 0, "f1": 0}, 400
    truth = {"precision": 0.8, "recall": 0.6, "f1": 2 * 0.8 * 0.6 / 1.4}
    cells = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    share = np.array([0.24, 0.16, 0.06, 0.54])
    for _ in range(samples):
        y_true, y_pred = cells[rng.choice(4, 60, p=share)].T
        rows = classification_metrics(y_true, np.eye(2)[y_pred], ["a", "b"], bootstrap_samples=0)
        for name, (low, high) in rows["per_class"][0]["intervals"].items():
            held[name] += low <= truth[name] <= high
    assert all(0.91 < count / samples < 0.99 for count in held.values()), held


def test_a_class_nobody_saw_has_intervals_that_say_so() -> None:
    rows = classification_metrics(np.array([0]), np.array([[0.9, 0.1]]), ["a", "b"], bootstrap_samples=0)
    assert rows["per_class"][1]["intervals"] == {
        "precision": [0.0, 1.0], "recall": [0.0, 1.0], "f1": [0.0, 1.0]
    }  # fmt: skip
