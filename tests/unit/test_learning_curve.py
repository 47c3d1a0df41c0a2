"""Learning curves: points, the power law found again, intervals that hold the truth."""

import numpy as np
import pytest

from snugtune.evaluate.baseline import TfidfBaseline
from snugtune.evaluate.learning_curve import (
    FEWEST_ROWS,
    class_gains,
    extrapolate,
    learning_curve,
    rounded,
)


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


def test_where_next_to_no_error_is_left_no_rows_bring_a_point():
    errors = [0.1, 0.02, 0.01, 0.004, 0.003]
    curve = extrapolate([28, 55, 110, 220, 440], outcomes([1] * 5, errors, 300), 550)
    assert curve.for_a_point.low is None
    assert "at best" not in curve.sentence()
    assert all(one.interval[0] > 0.95 for one in curve.forecast)


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


def test_a_table_of_near_duplicates_has_no_curve():
    y = np.arange(300) % 3
    groups = np.zeros(300, int)
    groups[-4:] = [1, 2, 3, 4]
    words = TfidfBaseline().fit_features([f"word{i % 7} same" for i in range(300)], 3)
    curves = [learning_curve(words, y, groups, 3, seed=seed) for seed in range(12)]
    # Where all of them are held out, there is nothing to learn from.
    assert None in curves


def exact(sizes, errors, M=5_000):
    difficulty = (np.arange(M) + 0.5) / M
    return np.stack([difficulty >= error for error in errors])


def test_rows_for_a_point_are_those_at_which_the_law_has_fallen_by_one():
    sizes = [100, 200, 400, 800, 1600]
    found = extrapolate(sizes, exact(sizes, [0.8 * n**-0.3 for n in sizes]), 2000).for_a_point
    truth = (2000**-0.3 - 0.01 / 0.8) ** (-1 / 0.3) - 2000
    assert found.rows == pytest.approx(truth, rel=0.05)
    assert found.low < truth < found.high
    assert f"About {rounded(found.rows):,} more labelled rows" in found.sentence()


def test_rows_for_a_point_hold_the_truth_as_often_as_they_say():
    sizes = [100, 200, 400, 800, 1600]
    truth = (1600**-0.3 - 0.01 / 0.8) ** (-1 / 0.3) - 1600
    held = 0
    for seed in range(20):
        right = outcomes(sizes, [0.8 * n**-0.3 for n in sizes], 600, seed)
        found = extrapolate(sizes, right, 1600, seed=seed).for_a_point
        held += (found.low is None or found.low <= truth) and (found.high is None or truth <= found.high)
    assert held >= 17


def test_a_flat_curve_promises_no_point():
    sizes = [100, 200, 400]
    found = extrapolate(sizes, exact(sizes, [0.2, 0.2, 0.2]), 400).for_a_point
    assert (found.rows, found.high) == (None, None)
    assert "No number of further rows is likely" in found.sentence()


@pytest.mark.parametrize(
    ("rows", "told"), [(7, 7), (47, 47), (367, 370), (2219, 2200), (1_251_000, 1_300_000)]
)
def test_a_forecast_is_told_in_two_digits(rows, told):
    assert rounded(rows) == told


def flips(classes, rows, gained, seed=0):
    """Rows of each class right before and after, where each class gains ``gained[k]`` of its rows."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), rows)
    draw = rng.random(len(y))
    return draw < 0.4, draw < 0.4 + np.array(gained)[y], y


def test_a_class_that_gains_more_is_found_and_the_others_are_not():
    before, after, y = flips(20, 60, [0.02] * 19 + [0.3])
    (found,) = class_gains(before, after, y, np.full(20, 300), 0.3)
    assert found.label == 19
    assert found.rows == 300
    assert found.interval[0] < found.gain < found.interval[1]
    assert found.gain == pytest.approx(2**-0.3 * 0.3, abs=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_differences_that_are_noise_name_no_class(seed):
    before, after, y = flips(20, 30, [0.05] * 20, seed)
    assert class_gains(before, after, y, np.full(20, 150), 0.3) == ()


def test_classes_with_hardly_a_held_out_row_are_not_judged():
    before, after, y = flips(3, 2, [0.0, 0.0, 0.6])
    assert class_gains(before, after, y, np.full(3, 10), 0.3) == ()
