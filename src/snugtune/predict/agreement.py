"""How far one way of computing a model's answers is from another, on the same rows, and what is let pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from snugtune.evaluate.calibration import softmax
from snugtune.evaluate.multilabel.metrics import Bools, Sets, scored_rows

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Tolerance:
    """What is let pass; each limit that is not None must hold."""

    logit_difference: float | None = None
    """Largest difference of a logit."""

    changed_labels: float | None = None
    """Share of rows that may get another label; one row may always."""

    mean_difference: float | None = None
    """Mean over rows of the total variation between the two distributions: half the sum of |p - q|; where a
    text may carry several labels, of the largest |p - q| of a label."""

    def sentence(self) -> str:
        """In words."""
        parts = []
        if self.logit_difference is not None:
            parts.append(f"no logit may differ by more than {self.logit_difference:g}")
        if self.changed_labels is not None:
            parts.append(f"at most {100 * self.changed_labels:g} % of the labels may change")
        if self.mean_difference is not None:
            parts.append(f"distributions may differ by {self.mean_difference:g} in the mean")
        return ", ".join(parts)


EXACT = Tolerance(logit_difference=1e-3)
"""For the same arithmetic in float32 by another program: ONNX Runtime orders its sums otherwise."""

ROUNDED = Tolerance(changed_labels=0.02, mean_difference=0.02)
"""For numbers of fewer bits: our choice, strict enough that one wrong layer or class breaks it."""


@dataclass(frozen=True)
class Agreement:
    """Answers compared on ``rows`` texts.

    ``accuracy`` and ``reference_accuracy`` are those of the top class of the logits on the rows with a known
    label, None without any. With ``several`` labels a text they are the share of rows whose labels are
    exactly right, and a row with another set of labels counts as changed.
    """

    rows: int
    largest_logit_difference: float
    changed_labels: int
    mean_difference: float
    accuracy: float | None
    reference_accuracy: float | None
    several: bool = False

    def within(self, tolerance: Tolerance) -> bool:
        """Whether every limit holds; never where a number is not finite."""
        limits = (
            (self.largest_logit_difference, tolerance.logit_difference),
            (max(self.changed_labels - 1, 0) and self.changed_labels / self.rows, tolerance.changed_labels),
            (self.mean_difference, tolerance.mean_difference),
        )
        finite = np.isfinite(self.largest_logit_difference) and np.isfinite(self.mean_difference)
        return bool(finite) and all(limit is None or value <= limit for value, limit in limits)

    def sentence(self) -> str:
        """In words."""
        accuracy = (
            ""
            if self.accuracy is None
            else f", accuracy {self.accuracy:.4f} (before: {self.reference_accuracy:.4f})"
        )
        return (
            f"{self.rows - self.changed_labels:,} of {self.rows:,} held-out rows keep their "
            f"label{'s' if self.several else ''}{accuracy}; logits differ by "
            f"{self.largest_logit_difference:.2g} at most, "
            f"{'probabilities' if self.several else 'distributions'} by "
            f"{self.mean_difference:.2g} in the mean"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = asdict(self)
        numbers = ("largest_logit_difference", "mean_difference")
        return found | {key: found[key] if np.isfinite(found[key]) else None for key in numbers}


def agreement(given: Logits, reference: Logits, y_true: Sequence[int | None]) -> Agreement:
    """Compare logits ``given`` with those of ``reference``, (N, K) both; ``y_true`` (N,) are class ids.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(given, reference)
    total_variation = np.abs(softmax(given) - softmax(reference)).sum(1) / 2
    top, reference_top = given.argmax(1), reference.argmax(1)
    known = [i for i, y in enumerate(y_true) if y is not None]
    y = np.array([y_true[i] for i in known], dtype=np.int64)
    return Agreement(
        rows=len(given),
        largest_logit_difference=float(np.abs(given - reference).max(initial=0.0)),
        changed_labels=int((top != reference_top).sum()),
        mean_difference=float(total_variation.mean()) if len(given) else 0.0,
        accuracy=float((top[known] == y).mean()) if known else None,
        reference_accuracy=float((reference_top[known] == y).mean()) if known else None,
    )


def set_agreement(given: Logits, reference: Logits, y_true: Sets, thresholds: Sequence[float]) -> Agreement:
    """``agreement`` where a text may carry several labels: each whose sigmoid reaches its threshold.

    ``y_true`` (N, K) are label sets (-1 where training saw none of a row's labels), ``thresholds`` (K,) those
    of ``LabelSetDecision.sigmoid_thresholds``.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(given, reference)
    probabilities, before = (expit(logits.astype(np.float64)) for logits in (given, reference))
    labels, labels_before = (told >= np.array(thresholds) for told in (probabilities, before))
    known = scored_rows(y_true)

    def exact(of: Bools) -> float | None:
        return float((of[known] == (y_true[known] > 0)).all(axis=1).mean()) if known.any() else None

    return Agreement(
        rows=len(given),
        largest_logit_difference=float(np.abs(given - reference).max(initial=0.0)),
        changed_labels=int((labels != labels_before).any(axis=1).sum()),
        mean_difference=float(np.abs(probabilities - before).max(axis=1).mean()) if len(given) else 0.0,
        accuracy=exact(labels),
        reference_accuracy=exact(labels_before),
        several=True,
    )


def _check_shapes(given: Logits, reference: Logits) -> None:
    if given.shape != reference.shape:
        raise ValueError(f"logits of shape {given.shape} and {reference.shape} cannot be compared")
