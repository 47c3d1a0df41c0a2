"""Metrics of label sets against scikit-learn's and against counting by hand."""

import json

import numpy as np
import pytest
from sklearn import metrics as theirs

from snugtune.errors import UserInputError
from snugtune.evaluate.multilabel.metrics import (
    PredictedSets,
    label_set_metrics,
    resampled_scores,
    sigmoid_log_loss,
)
from snugtune.evaluate.multilabel.verdict import compare_sets, no_label_alarm, set_verdict

NAMES = ["a", "b", "c", "never"]


def drawn(rows=300, seed=0, noise=0.8):
    """Label sets of three labels that occur and one that never does, and noisy probabilities of them."""
    rng = np.random.default_rng(seed)
    y = (rng.random((rows, 4)) < [0.5, 0.3, 0.1, 0.0]).astype(np.int8)
    probabilities = 1 / (1 + np.exp(-(3.0 * y - 1.5 + noise * rng.normal(size=y.shape))))
    labels = probabilities >= 0.5
    return y, PredictedSets(probabilities, labels, probabilities.max(axis=1))


def test_averages_are_scikit_learns():
    y, told = drawn()
    found = label_set_metrics(y, told, NAMES, bootstrap_samples=0)
    json.dumps(found, allow_nan=False)
    assert found["accuracy"] == pytest.approx(theirs.accuracy_score(y, told.labels))
    assert found["hamming_loss"] == pytest.approx(theirs.hamming_loss(y, told.labels))
    for kind in ("micro", "weighted", "samples"):
        for name, score in (
            ("precision", theirs.precision_score), ("recall", theirs.recall_score), ("f1", theirs.f1_score)
        ):  # fmt: skip
            expected = score(y, told.labels, average=kind, zero_division=0)
            assert found[f"{name}_{kind}"] == pytest.approx(expected), (name, kind)
    occurring = y.any(axis=0) | told.labels.any(axis=0)
    expected = theirs.f1_score(y[:, occurring], told.labels[:, occurring], average="macro")
    assert found["f1_macro"] == pytest.approx(expected)
    assert found["lrap"] == pytest.approx(theirs.label_ranking_average_precision_score(y, told.probabilities))
    assert found["log_loss"] == pytest.approx(
        np.mean([theirs.log_loss(y[:, k], told.probabilities[:, k], labels=[0, 1]) for k in range(4)])
    )
    assert [row["label"] for row in found["per_class"]] == NAMES
    assert found["per_class"][3]["average_precision"] is None
    assert found["per_class"][0]["average_precision"] == pytest.approx(
        theirs.average_precision_score(y[:, 0], told.probabilities[:, 0])
    )


def test_rows_of_unseen_labels_are_counted_and_not_scored():
    y, told = drawn(50)
    y[:5] = -1
    found = label_set_metrics(y, told, NAMES, bootstrap_samples=0)
    assert (found["rows"], found["rows_unseen_label"]) == (45, 5)
    rest = label_set_metrics(y[5:], told.rows(np.arange(50) >= 5), NAMES, bootstrap_samples=0)
    assert found["f1_micro"] == rest["f1_micro"]
    with pytest.raises(UserInputError, match="nothing can be scored"):
        label_set_metrics(np.full_like(y, -1), told, NAMES)


def test_rows_without_any_label_count():
    y = np.zeros((20, 4), np.int8)
    told = PredictedSets(np.full((20, 4), 0.1), np.zeros((20, 4), bool), np.full(20, 0.9))
    found = label_set_metrics(y, told, NAMES, bootstrap_samples=10)
    json.dumps(found, allow_nan=False)
    assert found["accuracy"] == 1.0
    assert found["hamming_loss"] == 0.0
    assert found["f1_micro"] == 0.0


def test_wrong_shapes_and_diverged_models_are_refused():
    y, told = drawn(10)
    with pytest.raises(ValueError, match="shape"):
        label_set_metrics(y[:, :3], told, NAMES)
    told.probabilities[0, 0] = np.nan
    with pytest.raises(ValueError, match="diverged"):
        label_set_metrics(y, told, NAMES)


def test_resampled_scores_are_those_of_the_drawn_rows():
    y, told = drawn(40)
    scores = resampled_scores(y, [told.labels], 5, seed=3)[0]
    weights = np.random.default_rng(3).multinomial(40, np.full(40, 1 / 40), size=5)
    for b, weight in enumerate(weights):
        rows = np.repeat(np.arange(40), weight)
        t, p = y[rows], told.labels[rows]
        occurring = t.any(axis=0) | p.any(axis=0)
        expected = (
            theirs.accuracy_score(t, p),
            theirs.f1_score(t, p, average="micro"),
            theirs.f1_score(t[:, occurring], p[:, occurring], average="macro"),
        )
        assert scores[:, b] == pytest.approx(expected)


def test_log_loss_of_sure_mistakes_is_finite():
    assert np.isfinite(sigmoid_log_loss(np.array([[1, 0]], np.int8), np.array([[0.0, 1.0]])))


def test_a_real_difference_is_found_and_none_is_not():
    y, good = drawn(600, noise=0.5)
    _, other = drawn(600, noise=0.5)
    bad = drawn(600, noise=3.0)[1]
    assert compare_sets(y, good.labels, bad.labels).against == "better"
    assert compare_sets(y, bad.labels, good.labels).against == "worse"
    assert compare_sets(y, good.labels, other.labels).against == "same"
    found = compare_sets(y, good.labels, bad.labels)
    expected = theirs.f1_score(y, good.labels, average="micro") - theirs.f1_score(
        y, bad.labels, average="micro"
    )
    assert found.f1_micro == pytest.approx(expected)
    low, high = found.f1_micro_interval
    assert low < expected < high
    json.dumps(found.as_dict(), allow_nan=False)


def block(coverage=1.0, precision=0.99):
    test = {"coverage": coverage, "precision": precision, "interval": [0.96, 1.0]}
    return {
        "test": test, "validation": test, "precision_target": 0.95, "threshold": 0.6, "sentence": "All of it."
    }  # fmt: skip


def test_the_verdict_follows_micro_f1_and_what_can_be_automated():
    y, good = drawn(600, noise=0.5)
    bad = drawn(600, noise=3.0)[1]
    metrics = label_set_metrics(y, good, NAMES, bootstrap_samples=100)
    rows = y.sum(axis=0).astype(np.int64)

    def judge(a, b, automation):
        return set_verdict(compare_sets(y, a.labels, b.labels), automation, metrics, rows, part="test")

    ready = judge(good, bad, block())
    assert (ready["level"], ready["against_baseline"]) == ("ready", "better")
    assert "points of micro F1" in " ".join(ready["reasons"])
    assert judge(good, bad, block(0.5))["level"] == "ready_with_review"
    assert judge(good, bad, block(0.01))["level"] == "not_ready"
    worse = judge(bad, good, block())
    assert worse["level"] == "not_ready"
    assert "more of micro F1" in worse["reasons"][0]
    json.dumps(ready, allow_nan=False)


def test_a_model_that_gives_all_rows_the_same_has_collapsed():
    y = drawn(50)[0]
    assert "given a label" in no_label_alarm(y, np.zeros((50, 4), bool))
    assert "the same labels" in no_label_alarm(y, np.ones((50, 4), bool))
    assert no_label_alarm(y, y > 0) is None
    assert no_label_alarm(np.zeros((50, 4), np.int8), np.zeros((50, 4), bool)) is None
