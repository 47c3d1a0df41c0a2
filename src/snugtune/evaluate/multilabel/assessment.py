"""All that is said of held-out rows where texts carry label sets, for the model and for the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from snugtune.evaluate.assessment import Judged, automation_block
from snugtune.evaluate.multilabel.decision import DecidedSets, LabelSetDecision, set_probability
from snugtune.evaluate.multilabel.metrics import (
    PredictedSets,
    Sets,
    label_set_metrics,
    scored_rows,
    set_counts,
)
from snugtune.evaluate.multilabel.thresholds import give_labels
from snugtune.evaluate.multilabel.verdict import compare_sets, no_label_alarm, set_verdict
from snugtune.evaluate.selective import Outcomes
from snugtune.evaluate.slices import length_groups, reliability_of, risk_coverage_of, size_groups

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class ScoredSets:
    """A part: its label sets ``y`` (N, K), what model and baseline say of them, and the metrics of both.

    ``alarm`` is a sentence if the model has collapsed.
    """

    y: Sets
    model: PredictedSets
    baseline: PredictedSets
    metrics: dict[str, Any]
    baseline_metrics: dict[str, Any]
    alarm: str | None


def score_sets(
    y_true: Sets,
    lengths: NDArray[np.int64],
    logits: Floats,
    baseline_scores: Floats,
    decisions: tuple[LabelSetDecision, LabelSetDecision],
    label_names: Sequence[str],
    label_rows: NDArray[np.int64],
) -> ScoredSets:
    """Score a part by the ``decisions`` of model and baseline: ``logits`` and ``baseline_scores`` (N, K).

    ``y_true`` (N, K) are its label sets, ``lengths`` (N,) those of the texts in tokens, ``label_rows`` (K,)
    training rows of each label.

    Raises:
        UserInputError: no row has a label seen in training.
    """
    ours, theirs = decisions
    model = ours.predict(ours.probabilities(logits, baseline_scores))
    baseline = theirs.predict(theirs.probabilities(baseline_scores))
    known = scored_rows(y_true)
    y, told = y_true[known], model.rows(known)
    exact, counts = told.exact(y), set_counts(y, told.labels)
    metrics = {
        **label_set_metrics(y_true, model, label_names),
        "slices": {
            "by_length": length_groups(exact, lengths[known]),
            "by_class_size": size_groups(counts, label_rows),
        },
        "reliability": {
            "before": _uncalibrated(logits[known], y, ours),
            "after": reliability_of(told.confidence, exact),
        },
        "risk_coverage": risk_coverage_of(told.confidence, exact),
    }
    alarm = no_label_alarm(y, told.labels)
    theirs_metrics = label_set_metrics(y_true, baseline, label_names)
    return ScoredSets(y_true, model, baseline, metrics, theirs_metrics, alarm)


def judge_sets(
    model: DecidedSets,
    baseline: DecidedSets,
    scored: Mapping[str, ScoredSets],
    label_rows: NDArray[np.int64],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """``automation`` and ``verdict`` of ``run.json``: on test rows, or on validation where there are none."""
    part = "test" if "test" in scored else "validation"
    shown, test = scored[part], scored.get("test")
    automation = automation_block(
        _judged(model, None if test is None else outcomes(test.model, test.y)),
        _judged(baseline, None if test is None else outcomes(test.baseline, test.y)),
        precision_target=model.decision.precision_target,
        delta=model.decision.delta,
        classes=[],
    )
    compared = compare_sets(shown.y, shown.model.labels, shown.baseline.labels)
    return automation, set_verdict(
        compared, automation, shown.metrics, label_rows, part=part, alarm=shown.alarm
    )


def _judged(decided: DecidedSets, test: Outcomes | None) -> Judged:
    assert decided.decision.promise is not None
    return Judged(decided.decision.promise, decided.outcomes, test)


def outcomes(predicted: PredictedSets, y_true: Sets) -> Outcomes:
    """Of the rows with a label seen in training, or with none: confidence, and whether the set is right."""
    known = scored_rows(y_true)
    told = predicted.rows(known)
    return Outcomes(told.confidence, told.exact(y_true[known]))


def _uncalibrated(logits: Floats, y: Sets, decision: LabelSetDecision) -> dict[str, Any]:
    """Reliability of the model by itself: labels at a half, and their probabilities multiplied."""
    probabilities = np.asarray(expit(logits.astype(np.float64)))
    half = np.full(y.shape[1], 0.5)
    labels = give_labels(probabilities, half, at_least_one=decision.at_least_one)
    told = PredictedSets(probabilities, labels, set_probability(probabilities, labels))
    return reliability_of(told.confidence, told.exact(y))
