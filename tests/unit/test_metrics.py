"""Metrics against scikit-learn, the bootstrap against theory, and the rows that cannot be scored."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as theirs

from snugtune.errors import UserInputError
from snugtune.evaluate.metrics import (
    RowScores,
    classification_metrics,
    confusion_matrix_sparse,
    row_metrics,
    single_class_alarm,
)


def random_case(
    n: int, k: int, seed: int, skill: float = 2.0
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    y_true = rng.choice(k, size=n, p=rng.dirichlet(np.full(k, 0.5)))
    logits = rng.normal(size=(n, k))
    logits[np.arange(n), y_true] += skill
    probs = np.exp(logits)
    return y_true, probs / probs.sum(axis=1, keepdims=True)


def names(k: int) -> list[str]:
    return [f"class {i}" for i in range(k)]


@pytest.mark.parametrize(("n", "k"), [(400, 5), (60, 40), (7, 3)])
def test_parity_with_scikit_learn(n: int, k: int) -> None:
    y_true, probs = random_case(n, k, seed=n)
    y_pred = probs.argmax(axis=1)
    ours = classification_metrics(y_true, probs, names(k), bootstrap_samples=0)
    assert ours["accuracy"] == pytest.approx(theirs.accuracy_score(y_true, y_pred))
    assert ours["log_loss"] == pytest.approx(theirs.log_loss(y_true, probs, labels=range(k)))
    for average in ("macro", "weighted", "micro"):
        expected = theirs.precision_recall_fscore_support(y_true, y_pred, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
            assert ours[f"{name}_{average}"] == pytest.approx(value), (name, average)


def test_per_class_and_confusion_agree_with_scikit_learn() -> None:
    k = 8
    y_true, probs = random_case(200, k, seed=3)
    y_pred = probs.argmax(axis=1)
    ours = classification_metrics(y_true, probs, names(k), bootstrap_samples=0)
    expected = theirs.precision_recall_fscore_support(y_true, y_pred, labels=range(k), zero_division=0)
    for column, name in enumerate(("precision", "recall", "f1", "support")):
        assert [row[name] for row in ours["per_class"]] == pytest.approx(expected[column].tolist())
    matrix = theirs.confusion_matrix(y_true, y_pred, labels=range(k))
    assert [row["predicted"] for row in ours["per_class"]] == matrix.sum(axis=0).tolist()
    dense = np.zeros((k, k), int)
    for true, pred, count in ours["confusion"]:
        dense[true, pred] = count
    np.testing.assert_array_equal(dense, matrix - np.diag(np.diag(matrix)))
    counts = [count for _, _, count in ours["confusion"]]
    assert counts == sorted(counts, reverse=True)
    assert min(counts) > 0


def test_confusion_ties_are_ordered_by_class() -> None:
    cells = confusion_matrix_sparse(np.array([2, 0, 1, 1, 1]), np.array([0, 1, 2, 2, 1]))
    assert cells == [[1, 2, 2], [0, 1, 1], [1, 1, 1], [2, 0, 1]]
    assert confusion_matrix_sparse(np.array([], np.int64), np.array([], np.int64)) == []


def test_rows_with_unseen_labels_are_counted_not_scored() -> None:
    y_true, probs = random_case(50, 4, seed=1)
    without = classification_metrics(y_true, probs, names(4))
    padded = classification_metrics(
        np.concatenate([y_true, [-1, -1]]), np.concatenate([probs, probs[:2]]), names(4)
    )
    assert (without["rows_unseen_label"], padded["rows_unseen_label"]) == (0, 2)
    assert {**padded, "rows_unseen_label": 0} == without


def test_a_table_without_any_known_label_is_refused() -> None:
    with pytest.raises(UserInputError, match="None of the 3 rows"):
        classification_metrics(np.full(3, -1), np.full((3, 2), 0.5), names(2))


@pytest.mark.parametrize(
    ("y_true", "probs", "message"),
    [
        ([0, 1], np.full((2, 3), 1 / 3), "shape"),
        ([0, 2], np.full((2, 2), 0.5), r"-1\.\.1"),
        ([0, 1], np.array([[0.5, 0.5], [np.nan, 0.5]]), "NaN"),
    ],
)
def test_programming_errors_are_named(y_true: list[int], probs: NDArray[np.float64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_metrics(np.array(y_true), probs, names(2))


def test_a_certain_mistake_has_a_finite_log_loss() -> None:
    metrics = classification_metrics(np.array([0]), np.array([[0.0, 1.0]]), names(2))
    assert metrics["log_loss"] == pytest.approx(-math.log(np.finfo(float).eps))


def test_float32_probabilities_give_json() -> None:
    y_true, probs = random_case(30, 3, seed=5)
    metrics = classification_metrics(y_true, probs.astype(np.float32), names(3), bootstrap_samples=20)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_interval_of_accuracy_is_the_binomial_one() -> None:
    n = 1000
    y_true = np.arange(n) % 2
    y_pred = np.where(np.arange(n) < 800, y_true, 1 - y_true)
    metrics = classification_metrics(y_true, np.eye(2)[y_pred], names(2), bootstrap_samples=4000)
    half_width = 1.96 * math.sqrt(0.8 * 0.2 / n)
    assert metrics["intervals"]["accuracy"] == pytest.approx([0.8 - half_width, 0.8 + half_width], abs=0.003)


def test_interval_of_macro_f1_is_that_of_a_plain_bootstrap() -> None:
    y_true, probs = random_case(150, 4, seed=9)
    y_pred = probs.argmax(axis=1)
    rng = np.random.default_rng(1)
    rows = rng.integers(0, len(y_true), size=(1000, len(y_true)))
    plain = [theirs.f1_score(y_true[r], y_pred[r], average="macro", zero_division=0) for r in rows]
    ours = classification_metrics(y_true, probs, names(4), bootstrap_samples=2000)["intervals"]["f1_macro"]
    assert ours == pytest.approx(np.quantile(plain, [0.025, 0.975]).tolist(), abs=0.02)


def test_intervals_depend_on_the_seed_alone() -> None:
    y_true, probs = random_case(80, 3, seed=2)
    first, again, other = (
        classification_metrics(y_true, probs, names(3), seed=seed)["intervals"] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert classification_metrics(y_true, probs, names(3), bootstrap_samples=0)["intervals"] == {}


def test_many_rows_and_classes_take_seconds() -> None:
    y_true, probs = random_case(10_000, 214, seed=0)
    start = time.perf_counter()
    metrics = classification_metrics(y_true, probs, names(214))
    assert time.perf_counter() - start < 15  # about 1 s on an idle core; the limit allows for busy machines
    low, high = metrics["intervals"]["f1_macro"]
    assert low < metrics["f1_macro"] < high


def test_single_class_alarm() -> None:
    alarm = single_class_alarm(np.full(1200, 3), 214)
    assert alarm is not None
    assert "All 1,200 predictions are class 3 of 214" in alarm
    assert single_class_alarm(np.array([3] * 1199 + [2]), 214) is None
    assert single_class_alarm(np.full(5, 3), 214) is None
    assert single_class_alarm(np.zeros(50, np.int64), 1) is None
    assert single_class_alarm(np.array([], np.int64), 5) is None


def test_rows_scored_part_by_part_give_the_metrics_of_all_of_them() -> None:
    rng = np.random.default_rng(4)
    y_true = rng.integers(-1, 3, 60)
    probs = rng.dirichlet(np.ones(3), 60).astype(np.float32)
    parts = [RowScores.of(y_true[i : i + 7], probs[i : i + 7], "abc") for i in range(0, 60, 7)]
    joined = RowScores.joined(parts)
    assert row_metrics(joined, "abc") == classification_metrics(y_true, probs, "abc")
    # a few numbers a row, not one for each class
    assert {getattr(joined, name).shape for name in ("y_true", "y_pred", "confidence", "of_truth")} == {
        ((y_true >= 0).sum(),)
    }
