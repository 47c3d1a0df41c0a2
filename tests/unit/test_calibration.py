"""Temperature, calibration error and the review threshold, each against an answer known beforehand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import softmax as their_softmax
from scipy.stats import binomtest

from snugtune.evaluate.calibration import (
    REVIEW_EVERYTHING,
    expected_calibration_error,
    fit_temperature,
    log_softmax,
    precision_lower_bound,
    review_threshold,
    softmax,
)


def test_softmax_is_scipys_and_survives_large_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(softmax(logits, 2.0), their_softmax(logits / 2, axis=1), rtol=1e-6)
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0]])), [[1.0, 0.0]])
    assert log_softmax(np.array([[1e4, 0.0]]))[0, 1] == -1e4


@pytest.mark.parametrize("true_temperature", [0.1, 1.0, 4.0])
def test_temperature_is_recovered(true_temperature: float) -> None:
    rng = np.random.default_rng(1)
    clean = rng.normal(size=(20_000, 5)) * 2
    y_true = (softmax(clean).cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    assert fit_temperature(clean * true_temperature, y_true) == pytest.approx(true_temperature, rel=0.05)


def test_temperature_ignores_unlabelled_rows_and_needs_one() -> None:
    rng = np.random.default_rng(2)
    logits, y_true = rng.normal(size=(200, 3)), rng.integers(0, 3, 200)
    padded = fit_temperature(np.concatenate([logits, [[9.0, 0, 0]]]), np.append(y_true, -1))
    assert padded == fit_temperature(logits, y_true)
    assert fit_temperature(logits[:2], np.array([-1, -1])) == 1.0


def test_temperature_of_separable_rows_stays_in_bounds() -> None:
    temperature = fit_temperature(np.eye(3) * 5, np.arange(3))
    assert 0.01 <= temperature < 1


def test_diverged_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="diverged"):
        fit_temperature(np.array([[np.nan, 0.0]]), np.array([0]))


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    correct = np.array([True, True, True, False])
    # Bins of .95 and .55: gaps .05 and .05, two rows each.
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.05)
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0.0
    assert expected_calibration_error(np.array([]), np.array([], bool)) == 0.0


def test_calibration_bins_are_closed_on_the_right() -> None:
    # .5 belongs to (0, .5]: with .2 it makes one bin, gap |.7 - 1| / 2; left-closed bins would give .5.
    value = expected_calibration_error(np.array([0.5, 0.2]), np.array([True, False]), bins=2)
    assert value == pytest.approx(0.15)


@pytest.mark.parametrize(("hits", "rows"), [(0, 5), (5, 5), (90, 100)])
def test_lower_bound_is_scipys_clopper_pearson(hits: int, rows: int) -> None:
    interval = binomtest(hits, rows, alternative="greater").proportion_ci(
        confidence_level=0.9, method="exact"
    )
    assert precision_lower_bound(hits, rows, 0.1) == pytest.approx(interval.low)


def test_threshold_separates_good_rows_from_bad_ones() -> None:
    confidence = np.concatenate([np.linspace(0.8, 1, 1000), np.linspace(0.2, 0.5, 1000)])
    correct = np.arange(2000) < 1000
    threshold = review_threshold(confidence, correct)
    taken = confidence >= threshold
    # 1000 right rows bear some wrong ones: the bound, not the plain precision, must still meet the target.
    assert 1000 <= taken.sum() < 1053
    assert precision_lower_bound(int(correct[taken].sum()), int(taken.sum()), 0.1) >= 0.95


def test_everything_is_taken_when_everything_is_right() -> None:
    confidence = np.random.default_rng(0).random(500)
    assert review_threshold(confidence, np.ones(500, bool)) == confidence.min()


@pytest.mark.parametrize("rows", [0, 1, 44])
def test_too_few_rows_prove_nothing(rows: int) -> None:
    assert review_threshold(np.full(rows, 0.99), np.ones(rows, bool)) == REVIEW_EVERYTHING


def test_fewest_rows_that_can_prove_the_target() -> None:
    assert review_threshold(np.full(45, 0.99), np.ones(45, bool)) == 0.99  # .1 ** (1 / 45) = .9501


def test_review_everything_is_above_any_confidence_and_json_safe() -> None:
    threshold = review_threshold(np.linspace(0, 1, 500), np.zeros(500, bool))
    assert threshold == REVIEW_EVERYTHING > np.float32(1.0000001)
    assert json.loads(json.dumps(threshold, allow_nan=False)) == threshold


def test_rows_of_equal_confidence_are_taken_together() -> None:
    # The first hundred by position are right, but nothing tells them from the wrong ones.
    assert review_threshold(np.full(200, 0.9), np.arange(200) < 100) == REVIEW_EVERYTHING


def test_order_of_rows_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    confidence = rng.random(3000).round(2)
    correct = rng.random(3000) < 0.7 + 0.3 * confidence
    shuffled = rng.permutation(3000)
    threshold = review_threshold(confidence, correct, 0.9)
    assert threshold < 1
    assert threshold == review_threshold(confidence[shuffled], correct[shuffled], 0.9)


def test_promise_is_broken_no_more_often_than_delta() -> None:
    rng, broken, answered = np.random.default_rng(5), 0, 0
    for _ in range(300):
        confidence = rng.random(1000)
        right = 0.8 + 0.2 * confidence  # the precision above t is .9 + .1 t: exactly .95 at t = .5
        threshold = review_threshold(confidence, rng.random(1000) < right, 0.95, delta=0.1)
        broken += threshold < 0.5
        answered += threshold <= 1
    assert answered > 200
    assert broken / 300 < 0.1 + 3 * np.sqrt(0.1 * 0.9 / 300)


@pytest.mark.parametrize(("precision", "delta"), [(1.0, 0.1), (0.0, 0.1), (0.9, 0.0)])
def test_impossible_promises_are_refused(precision: float, delta: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        review_threshold(np.ones(3), np.ones(3, bool), precision, delta=delta)
