"""Selective prediction: the confidence at or above which a person need not look, with a promise kept.

The promise: on fresh rows like the validation rows, predictions at or above the threshold are right with
the precision asked for; over repeated draws of the validation rows it is broken with probability ``delta`` at
most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import beta, binom

from snugtune.evaluate.metrics import wilson_interval

REVIEW_EVERYTHING = 1.000001
"""Threshold that not even a float32 softmax rounded above 1 reaches; unlike infinity it is valid JSON."""

DELTA = 0.1
"""How often the promise may be broken, over draws of the validation rows."""

GUARANTEE = "clopper_pearson"

_STEP = 0.05  # of the thresholds tested, in log-odds
_STARTS = ((1.0, 0.95), (0.25, 0.05))  # odds relative to the target's, and share of delta
_MOST_ROWS_TAKEN = 20_000
_MOST_ROWS = 1_000_000
_LEAST_THRESHOLD = 0.01  # below it there is only 0, which takes everything

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Promise:
    """A threshold, and how it did on the ``rows`` it was chosen on.

    ``precision`` is None if no row is at or above the threshold; ``lower_bound`` is that of the precision,
    one-sided, at level delta.
    """

    threshold: float
    rows: int
    coverage: float
    precision: float | None
    lower_bound: float

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return asdict(self)


def promise(confidence: Floats, correct: Bools, precision: float = 0.95, *, delta: float = DELTA) -> Promise:
    """The smallest threshold that rows ``confidence (N,)``, ``correct (N,)`` prove to keep ``precision``.

    Thresholds fixed beforehand are tested from high to low. A test passes at a level if so many right rows
    among those at or above the threshold have at most that probability where the precision is lower than
    asked: given their number, right rows are binomial, so the test is exact (Clopper & Pearson 1934). The
    levels are those of the fallback procedure (Wiens & Dmitrienko 2005): most of ``delta`` is spent on the
    first threshold, the precision asked for, and a little on a lower one; a test that passes hands its level
    on to the next. The chance that any threshold that passes breaks the promise is ``delta`` at most
    (Angelopoulos et al. 2021, Learn then Test, use such tests for the same end).

    Calibrated confidences at or above the target are higher than it on average, so that the first test is
    likely passed and the whole of ``delta`` goes on; the second start is for confidences that are too low.
    Decision 11 has what other starts gave. The confidences must come from maps fitted without the row.

    Raises:
        ValueError: ``precision`` or ``delta`` is not strictly between 0 and 1.
    """
    if not (0 < precision < 1 and 0 < delta < 1):
        raise ValueError(f"precision and delta must lie between 0 and 1, got {precision} and {delta}.")
    thresholds = _thresholds(precision)
    ascending = np.sort(confidence)
    rows = len(ascending) - np.searchsorted(ascending, thresholds, side="left")
    hits = _hits(confidence, correct, thresholds)
    passed = _fallback(binom.sf(hits - 1, rows, precision), delta * _spent(thresholds, precision))
    if not passed.any():
        return Promise(REVIEW_EVERYTHING, len(correct), 0.0, None, 0.0)
    # Of proven thresholds that take the same rows, the highest.
    last = int(np.argmax(passed & (rows == rows[passed][-1])))
    taken, right = int(rows[last]), int(hits[last])
    return Promise(
        threshold=float(thresholds[last]),
        rows=len(correct),
        coverage=taken / len(correct),
        precision=right / taken,
        lower_bound=precision_lower_bound(right, taken, delta),
    )


def review_threshold(
    confidence: Floats, correct: Bools, precision: float = 0.95, *, delta: float = DELTA
) -> float:
    """The threshold of `promise`: just above 1, so that everything is reviewed, where nothing is proven."""
    return promise(confidence, correct, precision, delta=delta).threshold


def precision_lower_bound(hits: int, rows: int, delta: float) -> float:
    """One-sided lower bound at level ``delta`` of the rate of ``hits`` in ``rows`` (Clopper-Pearson 1934)."""
    return float(beta.ppf(delta, hits, rows - hits + 1)) if hits else 0.0


def expected_coverage(confidence: Floats, precision: float) -> float:
    """The largest share whose mean confidence is ``precision``: what calibration suggests, without proof."""
    if not len(confidence):
        return 0.0
    ranked = np.sort(confidence)[::-1]
    means = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float((means >= precision).sum() / len(ranked))


def rows_to_prove(confidence: Floats, precision: float, *, delta: float = DELTA) -> int | None:
    """About how many validation rows have an even chance to prove that a first share is right.

    With ``precision``, that is, and if the confidences ``(N,)`` mean what they say. A proof begins at one of
    two thresholds (see `promise`). Of n rows the share c at or above it, of mean confidence m, is expected to
    have ``m c n`` right; n is the least number for which so many pass the exact test. None: no row is
    confident enough, or it would take more than a million.
    """
    found = []
    for odds, share in _STARTS:
        sure = confidence[confidence >= expit(logit(precision) + np.log(odds))]
        taken = np.arange(1, _MOST_ROWS_TAKEN)
        right = np.floor(taken * sure.mean()) if len(sure) else np.zeros(len(taken))
        passes = np.flatnonzero(binom.sf(right - 1, taken, precision) <= share * delta)
        if len(passes):
            found.append(int(np.ceil(taken[passes[0]] * len(confidence) / len(sure))))
    return min((rows for rows in found if rows <= _MOST_ROWS), default=None)


def outcome(confidence: Floats, correct: Bools, threshold: float) -> dict[str, Any]:
    """Coverage, precision (None without rows) and its 95 % Wilson interval at or above ``threshold``."""
    sure = confidence >= threshold
    rows, hits = int(sure.sum()), int(correct[sure].sum())
    return {
        "coverage": rows / len(correct) if len(correct) else 0.0,
        "precision": hits / rows if rows else None,
        "interval": wilson_interval(hits, rows),
    }


@dataclass(frozen=True)
class Outcomes:
    """Of held-out rows: how sure the model is of each ``(N,)``, and whether it is right ``(N,)``."""

    confidence: Floats
    correct: Bools

    def outcome(self, threshold: float) -> dict[str, Any]:
        """`outcome` of these rows."""
        return outcome(self.confidence, self.correct, threshold)


@dataclass(frozen=True)
class Held:
    """Held-out rows with a known label: class ids ``y_true (N,)``, ``y_pred (N,)``, ``confidence (N,)``."""

    y_true: Ids
    y_pred: Ids
    confidence: Floats

    @classmethod
    def of(cls, y_true: Ids, probabilities: Floats) -> Held:
        """The rows of ``probabilities (N, K)`` whose class id is not -1."""
        known = y_true >= 0
        probs = probabilities[known]
        return cls(y_true[known], probs.argmax(axis=1), probs.max(axis=1))

    @property
    def correct(self) -> Bools:
        """Whether each prediction is right."""
        return np.asarray(self.y_true == self.y_pred)

    def outcome(self, threshold: float) -> dict[str, Any]:
        """`outcome` of these rows."""
        return self.outcomes.outcome(threshold)

    @property
    def outcomes(self) -> Outcomes:
        """Confidence and whether it is right, without the classes."""
        return Outcomes(self.confidence, self.correct)


def by_class(
    held: Held, threshold: float, label_names: Sequence[str], proof: Held, precision: float
) -> list[dict[str, Any]]:
    """What the threshold does for the predictions of each class, and what a threshold of its own could.

    ``coverage`` is the share of the rows predicted to be of the class that need no review, ``precision`` how
    many of those are right, ``rows`` their number. ``own_threshold`` is what `promise` proves from the rows
    of ``proof`` predicted to be of the class; each by itself, so of ten such promises one may be broken.
    """
    found = []
    for k, label in enumerate(label_names):
        mine = held.y_pred == k
        result = outcome(held.confidence[mine], held.correct[mine], threshold)
        theirs = proof.y_pred == k
        own = review_threshold(proof.confidence[theirs], proof.correct[theirs], precision)
        found.append(
            {
                "label": label,
                "coverage": result["coverage"],
                "precision": result["precision"],
                "rows": int((held.confidence[mine] >= threshold).sum()),
                "own_threshold": own if own <= 1 else None,
            }
        )
    return found


def automation_sentence(
    coverage: float, kept: Promise, precision: float, expected: float, needed: int | None = None
) -> str:
    """What can be left to the model, in one sentence; ``coverage`` is that of the rows that count.

    ``needed`` are the rows of `rows_to_prove`.
    """
    target = f"{100 * precision:g} % precision"
    if kept.threshold <= 1:
        if coverage >= 1:
            return f"All texts can be automated at {target}."
        return f"{_share(coverage)} of the texts can be automated at {target}; the rest goes to a person."
    sentence = f"The {kept.rows:,} validation rows prove no share of the texts to be right at {target}"
    if expected < 0.005:
        return f"{sentence}; every text goes to a person."
    rows = "more" if needed is None or needed <= kept.rows else f"about {_rounded(needed):,}"
    return (
        f"{sentence}, so every text goes to a person; the confidences suggest about {_share(expected)}; "
        f"{rows} validation rows could prove a part of it (--validation-fraction)."
    )


def _rounded(rows: int) -> int:
    """To two digits: an estimate is no more exact."""
    unit = int(10 ** max(0, len(str(rows)) - 2))
    return -(-rows // unit) * unit


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def _thresholds(precision: float) -> NDArray[np.float64]:
    """The thresholds to test: from ``precision`` down in even steps of log-odds, and last 0."""
    steps = np.arange(logit(precision), logit(_LEAST_THRESHOLD), -_STEP)
    return np.append(expit(steps), 0.0)


def _spent(thresholds: NDArray[np.float64], precision: float) -> NDArray[np.float64]:
    """The share of delta that each threshold gets by itself."""
    spent = np.zeros(len(thresholds))
    for odds, share in _STARTS:
        spent[np.argmin(np.abs(thresholds - expit(logit(precision) + np.log(odds))))] += share
    return spent


def _fallback(p_values: NDArray[np.float64], levels: NDArray[np.float64]) -> Bools:
    """Which hypotheses are rejected in their fixed order; each rejection hands its level on to the next."""
    rejected, level = np.zeros(len(p_values), bool), 0.0
    for i, (p_value, own) in enumerate(zip(p_values.tolist(), levels.tolist(), strict=True)):
        level += own
        rejected[i] = level > 0 and p_value <= level
        if not rejected[i]:
            level = 0.0
    return rejected


def _hits(confidence: Floats, correct: Bools, thresholds: NDArray[np.float64]) -> Ids:
    """How many right rows are at or above each threshold."""
    of_right = np.sort(confidence[correct])
    return np.asarray(len(of_right) - np.searchsorted(of_right, thresholds, side="left"))
