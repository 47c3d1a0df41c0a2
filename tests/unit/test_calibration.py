"""Temperature and calibration error, each against an answer known beforehand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax as their_softmax

from snugtune.evaluate.calibration import (
    expected_calibration_error,
    fit_temperature,
    log_softmax,
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
