"""Where the model is good and where it is not: by text length, class size, pair of classes and confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.evaluate.calibration import bin_of, expected_calibration_error
from snugtune.evaluate.metrics import ClassCounts, macro_f1, wilson_interval
from snugtune.evaluate.selective import Held

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]

MAX_PAIRS = 50
MAX_EXAMPLES = 3
MAX_POINTS = 200
_LENGTH_BINS = 5
_SIZE_EDGES = (1, 5, 10, 20, 50, 100, 200, 500)  # training rows at which a new group of classes begins


def confused_pairs(
    y_true: Ids, pred_probs: Floats, label_names: Sequence[str], rows: Ids
) -> list[dict[str, Any]]:
    """The pairs of classes taken for each other most, both directions together.

    ``y_true (N,)``, ``pred_probs (N, K)``; ``rows (N,)`` is what a row is called in ``predictions.parquet``.
    Each pair names its most confident mistakes as examples.
    """
    y_pred, confidence = pred_probs.argmax(axis=1), pred_probs.max(axis=1)
    wrong = np.flatnonzero((y_true >= 0) & (y_true != y_pred))
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    ends = np.sort(np.stack([y_true[wrong], y_pred[wrong]], axis=1), axis=1)
    pairs, which, counts = np.unique(ends, axis=0, return_inverse=True, return_counts=True)
    found = []
    for i in np.argsort(-counts, kind="stable")[:MAX_PAIRS]:
        mistakes = wrong[which.ravel() == i]
        a, b = pairs[i].tolist()
        a_as_b = int((y_true[mistakes] == a).sum())
        found.append(
            {
                "labels": [label_names[a], label_names[b]],
                "rows": len(mistakes),
                "a_as_b": a_as_b,
                "b_as_a": len(mistakes) - a_as_b,
                "examples": rows[mistakes[:MAX_EXAMPLES]].tolist(),
            }
        )
    return found


def by_length(y_true: Ids, y_pred: Ids, lengths: Ids) -> list[dict[str, Any]]:
    """Accuracy in groups of about equally many rows, from short to long texts (``lengths`` in tokens)."""
    scored = y_true >= 0
    return length_groups((y_true == y_pred)[scored], lengths[scored])


def length_groups(correct: NDArray[np.bool_], lengths: Ids) -> list[dict[str, Any]]:
    """`by_length` of scored rows, from whether each is right ``(N,)``."""
    if not len(lengths):
        return []
    # Rows of one length stay together, so groups may be fewer and unequal.
    edges = np.unique(np.quantile(lengths, np.arange(1, _LENGTH_BINS) / _LENGTH_BINS, method="inverted_cdf"))
    which = np.searchsorted(edges, lengths, side="left")
    groups = (np.flatnonzero(which == group) for group in np.unique(which))
    return [
        {
            "from": int(lengths[members].min()),
            "to": int(lengths[members].max()),
            "rows": len(members),
            "accuracy": float(correct[members].mean()),
            "interval": wilson_interval(int(correct[members].sum()), len(members)),
        }
        for members in groups
    ]


def by_class_size(y_true: Ids, y_pred: Ids, class_rows: Ids) -> list[dict[str, Any]]:
    """Accuracy and macro F1 of groups of classes, from small to large (``class_rows (K,)`` in training).

    Macro F1 is over the classes of the group that occur in ``y_true`` or ``y_pred``.
    """
    scored = y_true >= 0
    counts = ClassCounts.of(y_true[scored], y_pred[scored], len(class_rows))
    return size_groups(counts, class_rows)


def size_groups(counts: ClassCounts, class_rows: Ids) -> list[dict[str, Any]]:
    """`by_class_size` from counts by class.

    Where texts carry several labels, ``accuracy`` is the share of a group's labels that are given.
    """
    which = np.searchsorted(_SIZE_EDGES, class_rows, side="right")
    found = []
    for group in np.unique(which):
        members = np.flatnonzero(which == group)
        rows = int(counts.support[members].sum())
        if not rows:
            continue
        f1 = macro_f1(counts.hits[members], counts.support[members], counts.predicted[members])
        found.append(
            {
                "from": int(class_rows[members].min()),
                "to": int(class_rows[members].max()),
                "classes": len(members),
                "rows": rows,
                "accuracy": float(counts.hits[members].sum() / rows),
                "f1_macro": float(f1),
            }
        )
    return found


def reliability(y_true: Ids, pred_probs: Floats, *, bins: int = 15) -> dict[str, Any]:
    """Expected calibration error, and mean confidence and accuracy of each non-empty bin of it."""
    held = Held.of(y_true, pred_probs)
    return reliability_of(held.confidence, held.correct, bins=bins)


def reliability_of(confidence: Floats, correct: NDArray[np.bool_], *, bins: int = 15) -> dict[str, Any]:
    """`reliability` of scored rows, from the confidence of each and whether it is right: ``(N,)`` both."""
    which = bin_of(confidence, bins)
    members = [np.flatnonzero(which == i) for i in np.unique(which)]
    return {
        "ece": expected_calibration_error(confidence, correct, bins=bins),
        "bins": [
            {
                "confidence": float(confidence[rows].mean()),
                "accuracy": float(correct[rows].mean()),
                "rows": len(rows),
            }
            for rows in members
        ],
    }


def risk_coverage(y_true: Ids, pred_probs: Floats) -> list[dict[str, float]]:
    """Coverage and precision at or above each of at most 200 thresholds, coverage descending.

    The risk-coverage curve of El-Yaniv & Wiener (2010), with precision as one minus the selective risk.
    """
    held = Held.of(y_true, pred_probs)
    return risk_coverage_of(held.confidence, held.correct)


def risk_coverage_of(confidence: Floats, correct: NDArray[np.bool_]) -> list[dict[str, float]]:
    """`risk_coverage` of scored rows, from the confidence of each and whether it is right: ``(N,)`` both."""
    if not len(correct):
        return []
    order = np.argsort(-confidence, kind="stable")
    ranked, hits = confidence[order], np.cumsum(correct[order])
    taken = np.unique(np.ceil(np.linspace(1 / MAX_POINTS, 1, MAX_POINTS) * len(ranked)).astype(np.int64))
    # Rows of equal confidence are taken together.
    taken = np.unique(np.searchsorted(-ranked, -ranked[taken - 1], side="right"))[::-1]
    return [
        {
            "threshold": float(ranked[n - 1]),
            "coverage": float(n / len(ranked)),
            "precision": float(hits[n - 1] / n),
        }
        for n in taken.tolist()
    ]
