"""Learning curves: points, the power law found again, intervals that hold the truth."""

import numpy as np
import pytest

from snugtune.evaluate.baseline import TfidfBaseline
from snugtune.evaluate.learning_curve import FEWEST_ROWS, extrapolate, learning_curve


def outcomes(sizes, errors, M, seed=0):
    """Whether each of M rows is right at each size: a row is right once its difficulty is reached."""
    difficulty = np.random.default_rng(seed).random(M)
    return np.stack([difficulty >= error for error in errors])


def test_a_power_law_is_found_again():
    sizes = [100, 200, 400, 800, 1600]
    errors = [0.8 * n**-0.3 for n in sizes]
    difficulty = (np.arange(20_000) + 0.5) / 20_000
    curve = extrapolate(sizes, np.stack([difficulty >= error for error in errors]), 2000)
    assert [point.rows for point in curve.points] == sizes
    assert [one.rows for one in curve.forecast] == [4000, 8000]
    for one in curve.forecast:
        truth = 1 - 0.8 * one.rows**-0.3
        assert one.accuracy == pytest.approx(truth, abs=2e-3)
        assert one.interval[0] < truth < one.interval[1]
    assert curve.gain[0] == pytest.approx(0.8 * (2000**-0.3 - 4000**-0.3), abs=1e-3)
    assert curve.gain[1] < curve.gain[0] < curve.gain[2]


def test_intervals_hold_the_truth_as_often_as_they_say():
    sizes = [100, 200, 400, 800, 1600]
    held = 0
    for seed in range(60):
        right = outcomes(sizes, [0.8 * n**-0.3 for n in sizes], 600, seed)
        curve = extrapolate(sizes, right, 1600, seed=seed)
        truth = 1 - 0.8 * 3200**-0.3
        held += curve.forecast[0].interval[0] <= truth <= curve.forecast[0].interval[1]
    assert held >= 52  # of 60; with .95 it is fewer less than once in a hundred times


def test_a_law_that_misjudged_its_own_points_is_doubted():
    sizes, M = [100, 200, 400, 800], 5000
    steady = extrapolate(sizes, outcomes(sizes, [0.8 * n**-0.3 for n in sizes], M), 800)
    bent = extrapolate(sizes, outcomes(sizes, [0.4, 0.25, 0.22, 0.21], M), 800)
    assert bent.gain[2] - bent.gain[1] > 2 * (steady.gain[2] - steady.gain[1])
    assert bent.gain[1] == 0.0


def test_more_rows_are_never_forecast_to_harm():
    curve = extrapolate([100, 200, 400], outcomes([1] * 3, [0.2, 0.25, 0.3], 500), 400)
    assert curve.gain[0] == 0.0


def test_no_error_at_all_is_no_trouble():
    curve = extrapolate([100, 200], np.ones((2, 50), dtype=bool), 200)
    assert curve.forecast[0].accuracy > 0.98
    assert "+0.0 points" in curve.sentence()


def test_from_texts():
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(400)]
    y = np.arange(800) % 4
    texts = [" ".join(rng.choice(words[100 * k : 100 * k + 100], 3)) for k in y]
    curve = learning_curve(TfidfBaseline().fit_features(texts, 4), y, np.arange(800), 4)
    assert [point.rows for point in curve.points] == [40, 80, 160, 320, 640]
    accuracies = [point.accuracy for point in curve.points]
    assert accuracies == sorted(accuracies)
    assert accuracies[0] < 0.8 < accuracies[-1]
    told = curve.as_dict()
    assert told["sentence"].startswith("Twice the rows would likely bring the baseline +")
    assert told["forecast"][0]["rows"] == 1600
    assert len(told["forecast"][0]["interval"]) == 2


def test_too_few_rows_for_a_curve():
    assert learning_curve(None, np.zeros(FEWEST_ROWS - 1, int), np.arange(199), 1) is None
