"""What holds of the metrics for any table: bounds, symmetries and agreement with scikit-learn."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from snugtune.evaluate.calibration import expected_calibration_error, fit_temperature, softmax
from snugtune.evaluate.metrics import classification_metrics, confusion_matrix_sparse
from snugtune.evaluate.selective import REVIEW_EVERYTHING, precision_lower_bound, review_threshold

Case = tuple[NDArray[np.int64], NDArray[np.float64]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Class ids (some unseen, never all) and the probabilities of a model of some skill."""
    rows, K = draw(st.integers(1, 40)), draw(st.integers(2, 6))
    ids = draw(st.lists(st.integers(-1, K - 1), min_size=rows, max_size=rows).filter(lambda y: max(y) >= 0))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y_true = np.array(ids, np.int64)
    skill = draw(st.floats(0, 8))
    return y_true, softmax(rng.normal(size=(rows, K)) + skill * (y_true[:, None] == np.arange(K)))


def score(y_true: NDArray[np.int64], probs: NDArray[np.float64], samples: int = 0) -> dict[str, object]:
    return classification_metrics(
        y_true, probs, [str(k) for k in range(probs.shape[1])], bootstrap_samples=samples
    )


@given(cases())
def test_macro_f1_is_scikit_learns(case: Case) -> None:
    y_true, probs = case
    known = y_true >= 0
    expected = f1_score(y_true[known], probs.argmax(axis=1)[known], average="macro", zero_division=0)
    assert score(y_true, probs)["f1_macro"] == pytest.approx(expected)


@given(cases())
@settings(deadline=None)
def test_values_are_bounded_and_json(case: Case) -> None:
    y_true, probs = case
    metrics = score(y_true, probs, samples=20)
    json.dumps(metrics, allow_nan=False)
    for name, value in metrics.items():
        if isinstance(value, float) and name != "log_loss":
            assert 0 <= value <= 1 + 1e-12, name
    assert 0 <= metrics["log_loss"] < math.inf  # type: ignore[operator]
    for low, high in metrics["intervals"].values():  # type: ignore[attr-defined]
        assert 0 <= low <= high <= 1
    assert metrics["rows"] + metrics["rows_unseen_label"] == len(y_true)  # type: ignore[operator]


@given(cases(), st.randoms(use_true_random=False))
def test_names_and_order_of_classes_and_rows_do_not_matter(case: Case, random: object) -> None:
    y_true, probs = case
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    rows, classes = rng.permutation(len(y_true)), rng.permutation(probs.shape[1])
    renamed = np.where(y_true >= 0, np.argsort(classes)[y_true], -1)
    first, second = score(y_true, probs), score(renamed[rows], probs[rows][:, classes])
    for name in ("accuracy", "f1_macro", "precision_weighted", "recall_macro", "log_loss", "ece"):
        assert first[name] == pytest.approx(second[name]), name


@given(cases())
def test_confusion_counts_every_row_once(case: Case) -> None:
    y_true, probs = case
    known = y_true >= 0
    cells = confusion_matrix_sparse(y_true[known], probs.argmax(axis=1)[known])
    assert sum(count for *_, count in cells) == known.sum()
    assert len({(true, pred) for true, pred, _ in cells}) == len(cells)
    metrics = score(y_true, probs)
    assert metrics["confusion"] == [cell for cell in cells if cell[0] != cell[1]]


@given(cases())
def test_a_fitted_temperature_never_hurts(case: Case) -> None:
    y_true, probs = case
    logits = np.log(probs)
    temperature = fit_temperature(logits, y_true)
    before, after = score(y_true, probs)["log_loss"], score(y_true, softmax(logits, temperature))["log_loss"]
    assert after <= before + 1e-4  # type: ignore[operator]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60), st.integers(1, 20))
def test_calibration_error_is_bounded_by_any_finer_binning(rows: list[tuple[float, bool]], bins: int) -> None:
    confidence, correct = np.array([c for c, _ in rows]), np.array([r for _, r in rows], bool)
    coarse = expected_calibration_error(confidence, correct, bins=bins)
    # Gaps of one sign or another cancel within a bin, so splitting bins cannot shrink the sum.
    assert 0 <= coarse <= expected_calibration_error(confidence, correct, bins=1000 * bins) + 1e-9


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 600),
    st.floats(0.5, 0.98),
    st.floats(0.01, 0.3),
    st.integers(1, 3),
)
@settings(deadline=None)
def test_rows_above_the_threshold_meet_the_bound(
    seed: int, rows: int, precision: float, delta: float, decimals: int
) -> None:
    rng = np.random.default_rng(seed)
    confidence = rng.random(rows).round(decimals)
    correct = rng.random(rows) < confidence**0.2
    threshold = review_threshold(confidence, correct, precision, delta=delta)
    taken = confidence >= threshold
    if threshold == REVIEW_EVERYTHING:
        assert not taken.any()
    else:
        assert precision_lower_bound(int(correct[taken].sum()), int(taken.sum()), delta) >= precision
