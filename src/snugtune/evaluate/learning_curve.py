"""What more rows would likely bring: the baseline's learning curve and a power law through it.

Errors of classifiers fall about as ``a * n**-b`` in the number of rows n (Cortes et al. 1994, Learning
curves: asymptotic values and rate of convergence; Hestness et al. 2017, Deep Learning Scaling is Predictable,
Empirically).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.evaluate.label_quality import grouped_folds, linear_scores

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Of the rows to learn from; each is a part of the next."""

FORECASTS = (2, 4)
"""Times the rows at hand for which a forecast is made."""

RESAMPLES = 500
Z = 1.96
"""Standard deviations on each side of a 95 % interval."""

FEWEST_ROWS = 200
"""With fewer rows the curve is noise."""

POINT = 0.01
"""Of accuracy, for which the rows are counted."""

MOST_TIMES = 32
"""Times the rows at hand up to which they are counted: beyond it a law of five points says nothing."""

FEWEST_HELD_OUT = 5
"""Held-out rows of a class below which nothing is said of it."""

CLASSES_TOLD = 3
"""In a sentence; all are in the record."""

Ids = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Point:
    """Accuracy on held-out rows after learning from ``rows``."""

    rows: int
    accuracy: float


@dataclass(frozen=True)
class Forecast:
    """Accuracy expected from ``rows``, with a 95 % interval."""

    rows: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class RowsForAPoint:
    """Rows to label beside those at hand until accuracy has likely risen by ``POINT``.

    ``rows`` is the middle of a 95 % interval from ``low`` to ``high``; None says that it is not reached with
    ``MOST_TIMES`` the rows at hand.
    """

    rows: int | None
    low: int | None
    high: int | None

    def sentence(self) -> str:
        """One line for the person at the keyboard."""
        if self.rows is None:
            few = "" if self.low is None else f"; at best {rounded(self.low):,} would do"
            return f"No number of further rows is likely to bring the baseline one point more{few}."
        most = "perhaps no number would do" if self.high is None else f"at most {rounded(self.high):,}"
        return (
            f"About {rounded(self.rows):,} more labelled rows would likely bring it one point more "
            f"(at least {rounded(self.low or 0):,}, {most})."
        )


def rounded(rows: int) -> int:
    """``rows`` to two digits: a forecast has no more."""
    digits = max(0, len(str(rows)) - 2)
    return int(round(rows, -digits))


@dataclass(frozen=True)
class ClassGain:
    """What the last doubling of the rows brought one class, and so what the next would bring.

    ``label`` is the class id, ``rows`` how many the table has, ``recall`` the share of its held-out rows that
    is right after learning from all others. ``gain`` is the share of them that the next doubling would likely
    set right, shrunk towards that of all classes as far as their differences are noise, with a 95 %
    ``interval``.
    """

    label: int
    rows: int
    recall: float
    gain: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class LearningCurve:
    """Points, forecasts, and by how much accuracy would rise from the last point with twice its rows.

    ``gain`` is an interval's middle, low and high end, in 0..1; ``for_a_point`` turns the same law and the
    same doubts around. ``classes`` are those that would profit clearly more than the average one, the most
    first.
    """

    points: tuple[Point, ...]
    forecast: tuple[Forecast, ...]
    gain: tuple[float, float, float]
    for_a_point: RowsForAPoint
    classes: tuple[ClassGain, ...] = ()

    def sentence(self, names: Sequence[str] = ()) -> str:
        """What more rows would bring, for the person at the keyboard; ``names`` are the classes' (K,)."""
        middle, low, high = (100 * value for value in self.gain)
        told = (
            f"Twice the rows would likely bring the baseline {middle:+.1f} points of accuracy "
            f"({low:+.1f} to {high:+.1f}). {self.for_a_point.sentence()}"
        )
        most = [repr(names[one.label]) for one in self.classes[:CLASSES_TOLD] if names]
        return f"{told} Rows of {', '.join(most)} would help most." if most else told

    def as_dict(self, names: Sequence[str] = ()) -> dict[str, Any]:
        """JSON-ready; ``names`` are the classes' (K,), without which none is told of."""
        return {
            "points": [asdict(point) for point in self.points],
            "forecast": [asdict(one) | {"interval": list(one.interval)} for one in self.forecast],
            "rows_for_a_point": asdict(self.for_a_point),
            "classes": [
                asdict(one) | {"label": names[one.label], "interval": list(one.interval)}
                for one in self.classes
                if names
            ],
            "sentence": self.sentence(names),
        }


def learning_curve(words: Any, y: Ids, groups: Ids, n_classes: int, *, seed: int = 0) -> LearningCurve | None:
    """Accuracy of TF-IDF + linear on a fifth of the rows by how many of the others it learns from.

    ``words`` (N, F) are the baseline's sparse features (`TfidfBaseline.fit_features`), ``y`` (N,) class ids,
    ``groups`` (N,) near-duplicate groups, which stay on one side. None where there are fewer than
    ``FEWEST_ROWS``, or nearly all of them are near-duplicates of each other.
    """
    if len(y) < FEWEST_ROWS:
        return None
    held_out = grouped_folds(y, groups, seed=seed) == 0
    test, rest = np.flatnonzero(held_out), np.flatnonzero(~held_out)
    order = np.random.default_rng(seed).permutation(rest)
    sizes = [round(share * len(order)) for share in SHARES]
    if not sizes[0] or not len(test):
        return None
    correct = np.stack(
        [linear_scores(words, y, n_classes, order[:size], test).argmax(axis=1) == y[test] for size in sizes]
    )
    curve = extrapolate(sizes, correct, len(y), seed=seed)
    exponent = _exponent(np.array(sizes, dtype=np.float64), correct)
    gains = class_gains(correct[-2], correct[-1], y[test], np.bincount(y, minlength=n_classes), exponent)
    return replace(curve, classes=gains)


def extrapolate(
    sizes: Sequence[int], correct: NDArray[np.bool_], rows: int, *, seed: int = 0
) -> LearningCurve:
    """Forecasts for multiples of ``rows`` from whether each of M held-out rows was right at S ``sizes``.

    ``correct`` is (S, M). The intervals hold two doubts: which rows were held out (the law is refitted on
    resampled ones) and the law itself, for which stands how far it was off when it foretold the later points
    from those before them. On three data sets, forecasts of twice and four times the rows lay within them
    18 times of 18.
    """
    M = correct.shape[1]
    at = np.array(sizes, dtype=np.float64)
    weights = np.random.default_rng(seed).multinomial(M, np.full(M, 1 / M), size=RESAMPLES) / M
    errors = np.concatenate([correct.mean(axis=1)[None], weights @ correct.T])
    errors = np.maximum(1.0 - errors, 1 / (2 * M))
    wanted = np.array([rows, *(rows * times for times in FORECASTS)], dtype=np.float64)
    law = _power_law(at, errors, wanted)
    step = _doubt_of_a_step(at, errors[0])
    gains, doubt = _gains(law, wanted / rows, step)
    accuracy, of_the_rows = 1.0 - law[0], Z * law[1:, 0].std()
    # More rows are not forecast to harm: what is doubted of a gain downwards is the gain itself at most.
    low = np.maximum(accuracy - np.hypot(np.minimum(Z * doubt, gains[0]), of_the_rows), 0.0)
    high = np.minimum(accuracy + np.hypot(Z * doubt, of_the_rows), 1.0)
    return LearningCurve(
        tuple(Point(size, float(row.mean())) for size, row in zip(sizes, correct, strict=True)),
        tuple(
            Forecast(int(wanted[i]), float(accuracy[i]), (float(low[i]), float(high[i])))
            for i in range(1, len(wanted))
        ),
        (
            float(gains[0, 1]),
            max(0.0, float(gains[0, 1] - Z * doubt[1])),
            min(float(law[0, 0]), float(gains[0, 1] + Z * doubt[1])),
        ),
        _rows_for_a_point(at, errors, rows, step),
    )


def _gains(
    law: NDArray[np.float64], times: Floats, step: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What ``times`` (W,) the rows gain by each of B + 1 laws (B + 1, W), and its standard deviation (W,)."""
    gains = law[:, :1] - law
    return gains, np.hypot(gains[1:].std(axis=0), np.log2(times) * step)


def _rows_for_a_point(sizes: Floats, errors: Floats, rows: int, step: float) -> RowsForAPoint:
    """Where the middle and the ends of the interval of the gain reach ``POINT``."""
    # Steps of 5 %: what is told has two digits.
    times = np.concatenate([[1.0], 1.0 + np.geomspace(1e-3, MOST_TIMES - 1, 200)])
    law = _power_law(sizes, errors, rows * times)
    gains, doubt = _gains(law, times, step)

    def reached(gain: Floats) -> int | None:
        there = np.flatnonzero(gain >= POINT)
        return int(np.ceil(rows * (times[there[0]] - 1.0))) if len(there) else None

    # Nothing gains more than the error that is left.
    most = np.minimum(gains[0] + Z * doubt, law[0, 0])
    return RowsForAPoint(reached(gains[0]), reached(most), reached(gains[0] - Z * doubt))


def _exponent(sizes: Floats, correct: NDArray[np.bool_]) -> float:
    """B of the law ``a * n**-b`` through the errors of all held-out rows."""
    errors = np.maximum(1.0 - correct.mean(axis=1), 1 / (2 * correct.shape[1]))[None]
    law = _power_law(sizes, errors, np.array([1.0, 2.0]) * sizes[-1])[0]
    return float(np.log2(law[0] / law[1]))


def class_gains(
    before: NDArray[np.bool_], after: NDArray[np.bool_], y: Ids, rows: Ids, exponent: float
) -> tuple[ClassGain, ...]:
    """The classes that would profit clearly more than the average one from twice the rows, the most first.

    ``before`` and ``after`` (M,) say whether each held-out row of class ``y`` (M,) is right after half of the
    rows and after all of them, ``rows`` (K,) how many the table has of each class. The change of a class's
    recall is an average of few rows' (-1, 0 or 1), and most of the classes' differences are noise. So the
    changes are shrunk to their mean by a random-effects model, whose variance between classes is that of
    DerSimonian and Laird (1986, Meta-analysis in clinical trials). By the power law, the next doubling brings
    ``2**-exponent`` of what the last one did.
    """
    counts = np.bincount(y, minlength=len(rows))
    told = np.flatnonzero(counts >= FEWEST_HELD_OUT)
    if len(told) < 2:
        return ()
    change = after.astype(np.float64) - before
    n = counts[told]
    means = np.bincount(y, weights=change, minlength=len(rows))[told] / n
    # One variance for all rows: that of few rows which all stayed as they were would be none.
    variance = max(float(np.var(change[np.isin(y, told)])), 1e-9) / n
    between = _variance_between(means, variance)
    weights = 1.0 / (variance + between)
    mean = float(weights @ means / weights.sum())
    kept = between / (between + variance)
    shrunk = mean + kept * (means - mean)
    spread = Z * np.sqrt(kept * variance)
    recall = np.bincount(y, weights=after, minlength=len(rows))[told] / n
    factor = 2.0**-exponent
    clear = np.flatnonzero(shrunk - spread > mean)
    return tuple(
        ClassGain(
            int(told[i]), int(rows[told[i]]), float(recall[i]), float(factor * shrunk[i]),
            (float(factor * (shrunk[i] - spread[i])), float(factor * (shrunk[i] + spread[i]))),
        )
        for i in clear[np.argsort(-shrunk[clear], kind="stable")].tolist()
    )  # fmt: skip


def _variance_between(means: Floats, variances: Floats) -> float:
    """The part of the variance of ``means`` (K,) that their own ``variances`` (K,) do not explain."""
    weights = 1.0 / variances
    mean = weights @ means / weights.sum()
    excess = weights @ np.square(means - mean) - (len(means) - 1)
    return max(0.0, float(excess / (weights.sum() - np.square(weights).sum() / weights.sum())))


def _doubt_of_a_step(sizes: Floats, errors: Floats) -> float:
    """By how much (weighted RMS) the law misjudged each step to the next point, knowing those before."""
    misses, weights = [], []
    for k in range(2, len(sizes)):
        law = _power_law(sizes[:k], errors[None, :k], sizes[[k - 1, k]])[0]
        misses.append((law[0] - law[1]) - (errors[k - 1] - errors[k]))
        weights.append(sizes[k])
    return float(np.sqrt(np.average(np.square(misses), weights=weights))) if misses else 0.0


def _power_law(sizes: Floats, errors: Floats, wanted: Floats) -> NDArray[np.float64]:
    """Errors (B, W) at ``wanted`` (W,) rows: least squares in logarithms through ``errors`` (B, S).

    The later part of the curve tells most about what comes next, so a point weighs as much as it has rows.
    """
    x, weights = np.log(sizes), sizes / sizes.sum()
    logs = np.log(errors)
    centred = x - weights @ x
    slope = (logs @ (weights * centred)) / (weights @ centred**2)
    # More rows are never forecast to harm.
    slope = np.minimum(slope, 0.0)
    return np.asarray(np.exp((logs @ weights)[:, None] + slope[:, None] * (np.log(wanted) - weights @ x)))
