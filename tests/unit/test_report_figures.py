"""Axes, series and confusion maps: the arithmetic of the report's pictures."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snugtune.report import formats
from snugtune.report.charts import Axis, Chart, binned, near_percent_axis, rolling_mean
from snugtune.report.confusion import Confusion, corner_classes, map_order, map_svg, pairs, shade


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_an_axis_takes_in_its_values_and_has_round_ticks(values):
    axis = Axis.over(values, "")
    span = max(1.0, abs(axis.high), abs(axis.low))
    assert axis.low <= min(values) + 1e-6 * span
    assert axis.high >= max(values) - 1e-6 * span
    assert 2 <= len(axis.ticks) <= 12
    steps = np.diff(axis.ticks)
    assert np.allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - round_one) for round_one in (1, 2, 5)) < 1e-3


def test_what_lies_beyond_an_axis_is_drawn_on_its_edge():
    axis = Axis.over([0, 10], "", low=0, high=10)
    assert axis.share(-5) == 0
    assert axis.share(25) == 1
    assert axis.share(5) == 0.5


def test_a_line_is_broken_where_a_value_is_missing():
    chart = Chart("t", Axis.over([0, 3], ""), Axis.over([0, 1], ""))
    chart.line([(0, 0.0), (1, math.nan), (2, 0.5), (3, 1.0)], "model")
    path = str(chart.svg()).split('class="line model" d="')[1].split('"')[0]
    assert path.count("M") == 2
    assert path.count("L") == 1
    assert "nan" not in path


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_an_axis_of_shares_stays_between_nothing_and_everything(values):
    axis = near_percent_axis(values)
    assert 0 <= axis.low <= min(values) + 1e-9
    assert 1 >= axis.high >= max(values) - 1e-9
    assert axis.high - axis.low >= 0.02 - 1e-9
    assert all(-1e-9 <= tick <= 1 + 1e-9 for tick in axis.ticks)
    assert len(axis.ticks) >= 2


def test_words_on_a_chart_are_escaped():
    chart = Chart('<b>"', Axis.over([0, 1], "<i>"), Axis.over([0, 1], ""))
    svg = str(chart.dots([(0, 0)], "model", title=["<script>"]).svg())
    assert "<b>" not in svg
    assert "<i>" not in svg
    assert "<script>" not in svg


def test_bins_keep_the_largest_where_that_is_asked():
    points = [(i, float(i == 777)) for i in range(1000)]
    assert len(binned(points, max, 100)) == 100
    assert max(y for _, y in binned(points, max, 100)) == 1
    assert binned(points[:50], max, 100) == points[:50]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.integers(1, 10))
def test_the_rolling_mean_is_that_of_the_last_values(values, window):
    means = rolling_mean(list(enumerate(values)), window)
    for i, (_, mean) in enumerate(means):
        assert mean == pytest.approx(np.mean(values[max(0, i - window + 1) : i + 1]), abs=1e-6)


# Confusion

COUNTS = np.array(
    [
        [50, 0, 9, 0, 0],
        [0, 40, 0, 7, 0],
        [8, 0, 30, 0, 0],
        [0, 6, 0, 20, 0],
        [0, 0, 0, 0, 99],
    ]
)
NAMES = ["a", "b", "c", "d", "clean"]


def test_the_matrix_is_that_of_the_metrics():
    metrics = {
        "per_class": [
            {"label": name, "support": int(n)} for name, n in zip(NAMES, COUNTS.sum(1), strict=True)
        ],
        "confusion": [
            [i, j, int(COUNTS[i, j])] for i in range(5) for j in range(5) if i != j and COUNTS[i, j]
        ],
    }
    assert (Confusion.of(metrics).counts == COUNTS).all()


def test_classes_taken_for_each_other_stand_together_and_clean_ones_last():
    order = [NAMES[i] for i in map_order(Confusion(NAMES, COUNTS))]
    assert order[-1] == "clean"
    assert abs(order.index("a") - order.index("c")) == 1
    assert abs(order.index("b") - order.index("d")) == 1


def test_the_map_of_many_classes_keeps_those_with_the_most_mistakes():
    assert set(map_order(Confusion(NAMES, COUNTS), most=2)) == {0, 2}


@given(st.integers(1, 30), st.integers(0, 10_000))
def test_the_order_of_the_map_holds_every_class_once(K, seed):
    counts = np.random.default_rng(seed).poisson(0.3, (K, K))
    assert sorted(map_order(Confusion([str(i) for i in range(K)], counts))) == list(range(K))


def test_the_corner_holds_the_largest_pairs():
    assert set(corner_classes(Confusion(NAMES, COUNTS), most=2)) == {0, 2}
    assert set(corner_classes(Confusion(NAMES, COUNTS), most=5)) == {0, 1, 2, 3}


def test_pairs_count_both_directions():
    first, second = pairs(Confusion(NAMES, COUNTS))
    assert first == {"labels": ["a", "c"], "rows": 17, "a_as_b": 9, "b_as_a": 8, "examples": []}
    assert second["rows"] == 13


def test_each_cell_of_the_map_is_drawn_once_in_its_shade():
    svg = str(map_svg(Confusion(NAMES, COUNTS)))
    assert svg.count("h1v1h-1z") == (COUNTS > 0).sum()
    assert f'class="m{shade(9 / 59)}" d="' in svg
    assert [shade(share) for share in (0, 0.01, 0.02, 0.3, 1)] == [0, 1, 2, 5, 6]


# Numbers


@pytest.mark.parametrize("missing", [None, float("nan"), "text", True])
def test_what_is_not_known_is_a_dash(missing):
    for tell in (
        formats.percent, formats.number, formats.money, formats.time, formats.figure, formats.points,
        formats.probability, formats.interval,
    ):  # fmt: skip
        assert tell(missing) == "\N{EN DASH}"
    assert formats.share_bar(missing) == ""


def test_numbers_are_written_for_readers():
    assert formats.percent(0.7123) == "71.2\N{NO-BREAK SPACE}%"
    assert formats.points(-0.0312) == "\N{MINUS SIGN}3.1"
    assert formats.money(0.00025) == "0.00025\N{NO-BREAK SPACE}USD"
    assert formats.money(0.0000231) == "0.000023\N{NO-BREAK SPACE}USD"
    assert formats.money(4e-9) == "under 0.000001\N{NO-BREAK SPACE}USD"
    assert formats.between(6, 6) == "6"
    assert formats.between(6, 1900) == "6 to 1,900"
    assert formats.between(500, None) == "500 and more"
    assert formats.count(1, "text") == "1\N{NO-BREAK SPACE}text"
    assert formats.probability(1e-9) == "p\N{NO-BREAK SPACE}<\N{NO-BREAK SPACE}0.001"
    assert formats.interval([0.1, 0.25], 0) == "10 to 25\N{NO-BREAK SPACE}%"
