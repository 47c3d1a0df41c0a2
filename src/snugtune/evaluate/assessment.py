"""All that is said of held-out rows: the metrics of a part with its slices, and what can be automated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.evaluate.decision import Decided
from snugtune.evaluate.metrics import classification_metrics
from snugtune.evaluate.selective import (
    GUARANTEE,
    Held,
    Outcomes,
    Promise,
    automation_sentence,
    by_class,
    expected_coverage,
    rows_to_prove,
)
from snugtune.evaluate.slices import (
    by_class_size,
    by_length,
    confused_pairs,
    reliability,
    risk_coverage,
)

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Held-out rows: class ids ``y (N,)``, their names in ``predictions.parquet``, lengths in tokens."""

    y: Ids
    rows: Ids
    lengths: Ids


def part_metrics(
    part: Rows, uncalibrated: Floats, probabilities: Floats, label_names: Sequence[str], class_rows: Ids
) -> dict[str, Any]:
    """``metrics.PART`` of ``run.json``.

    ``uncalibrated`` and ``probabilities`` are ``(N, K)``: the model's own, and the decision's; ``class_rows
    (K,)`` counts training rows.

    Raises:
        UserInputError: no row has a known label.
    """
    y_pred = probabilities.argmax(axis=1)
    return {
        **classification_metrics(part.y, probabilities, label_names),
        "confused_pairs": confused_pairs(part.y, probabilities, label_names, part.rows),
        "slices": {
            "by_length": by_length(part.y, y_pred, part.lengths),
            "by_class_size": by_class_size(part.y, y_pred, class_rows),
        },
        "reliability": {
            "before": reliability(part.y, uncalibrated),
            "after": reliability(part.y, probabilities),
        },
        "risk_coverage": risk_coverage(part.y, probabilities),
    }


@dataclass(frozen=True)
class Candidate:
    """The model, or the baseline: how it decides, and its probabilities of the test rows if there are any."""

    decided: Decided
    test: Floats | None = None


def automation(
    model: Candidate,
    baseline: Candidate,
    y_validation: Ids,
    y_test: Ids | None,
    label_names: Sequence[str],
) -> dict[str, Any]:
    """``automation`` of ``run.json``: what can be left to the model at the precision asked for.

    The baseline's threshold comes from the same validation rows by the same test.
    """
    decision = model.decided.decision
    proof, test = Held.of(y_validation, model.decided.held_out), _tested(model, y_test)
    return automation_block(
        _judged(model, y_validation, y_test),
        _judged(baseline, y_validation, y_test),
        precision_target=decision.precision_target,
        delta=decision.delta,
        classes=by_class(
            test or proof, decision.confidence_threshold, label_names, proof, decision.precision_target
        ),
    )


@dataclass(frozen=True)
class Judged:
    """A promise, what was said of validation rows by a decision fitted without them, and of test rows."""

    promise: Promise
    validation: Outcomes
    test: Outcomes | None


def automation_block(
    model: Judged, baseline: Judged, *, precision_target: float, delta: float, classes: list[dict[str, Any]]
) -> dict[str, Any]:
    """``automation`` of ``run.json``, with ``classes`` as its ``by_class``."""
    kept, threshold = model.promise, model.promise.threshold
    outcome = None if model.test is None else model.test.outcome(threshold)
    expected = expected_coverage(model.validation.confidence, precision_target)
    coverage = kept.coverage if outcome is None else outcome["coverage"]
    needed = None if threshold <= 1 else rows_to_prove(model.validation.confidence, precision_target)
    return {
        "precision_target": precision_target,
        "delta": delta,
        "guarantee": GUARANTEE,
        "threshold": threshold,
        "validation": {
            "coverage": kept.coverage,
            "precision": kept.precision,
            "lower_bound": kept.lower_bound,
        },
        "test": outcome,
        "expected_coverage": expected,
        "rows_to_prove": needed,
        "baseline": _of_baseline(baseline),
        "by_class": classes,
        "sentence": automation_sentence(coverage, kept, precision_target, expected, needed),
    }


def _of_baseline(baseline: Judged) -> dict[str, Any]:
    kept = baseline.promise
    return {
        "threshold": kept.threshold,
        "validation": {"coverage": kept.coverage, "precision": kept.precision},
        "test": None if baseline.test is None else baseline.test.outcome(kept.threshold),
    }


def _judged(candidate: Candidate, y_validation: Ids, y_test: Ids | None) -> Judged:
    decided, test = candidate.decided, _tested(candidate, y_test)
    assert decided.decision.promise is not None
    return Judged(
        decided.decision.promise,
        Held.of(y_validation, decided.held_out).outcomes,
        None if test is None else test.outcomes,
    )


def _tested(candidate: Candidate, y_test: Ids | None) -> Held | None:
    """The test rows with a known label; None where there are none."""
    if candidate.test is None or y_test is None:
        return None
    held = Held.of(y_test, candidate.test)
    return held if len(held.y_true) else None
