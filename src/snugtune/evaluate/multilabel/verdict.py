"""The verdict where texts carry label sets: micro F1 against the baseline, by a paired bootstrap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.evaluate.multilabel.metrics import Sets, resampled_scores, scored_rows
from snugtune.evaluate.multilabel.thresholds import set_score
from snugtune.evaluate.verdict import (
    Against,
    against_advice,
    against_of,
    automation_advice,
    automation_faults,
    doubtful_confidence,
    interval_of,
    level_of,
    outcome,
    small_classes,
    too_few_rows,
)

Bools = NDArray[np.bool_]
_SAMPLES = 2000


@dataclass(frozen=True)
class SetComparison:
    """Model less baseline on the same rows, with 95 % intervals; ``accuracy`` is that of exact sets."""

    f1_micro: float
    f1_micro_interval: tuple[float, float]
    accuracy: float
    accuracy_interval: tuple[float, float]
    f1_macro: float
    f1_macro_interval: tuple[float, float]
    p_value: float

    @property
    def against(self) -> Against:
        """Better or worse only where chance explains the difference in micro F1 at less than 5 %."""
        return against_of(self.f1_micro, self.p_value)

    def as_dict(self) -> dict[str, Any]:
        """As ``verdict.difference`` of ``run.json``."""
        return {
            "f1_micro": self.f1_micro,
            "f1_micro_interval": list(self.f1_micro_interval),
            "p_value": self.p_value,
            "test": "paired_bootstrap",
            "accuracy": self.accuracy,
            "interval": list(self.accuracy_interval),
            "f1_macro": self.f1_macro,
            "f1_macro_interval": list(self.f1_macro_interval),
        }


def compare_sets(y_true: Sets, model: Bools, baseline: Bools, *, seed: int = 0) -> SetComparison:
    """Model and baseline on the same rows: labels (N, K) each; rows of unseen labels do not count.

    The p-value of the difference in micro F1 is twice the smaller share of bootstrap samples of rows on
    either side of zero (Efron & Tibshirani 1993, ch. 15.4), one sample added to each side, so that it is
    never below what so many samples can tell.
    """
    known = scored_rows(y_true)
    y, ours, theirs = y_true[known], model[known], baseline[known]
    drawn = resampled_scores(y, [ours, theirs], _SAMPLES, seed)
    accuracy, micro, macro = drawn[0] - drawn[1]
    side = min(int((micro <= 0).sum()), int((micro >= 0).sum()))

    def difference(objective: Any) -> float:
        return set_score(y, ours, objective) - set_score(y, theirs, objective)

    return SetComparison(
        f1_micro=difference("f1_micro"), f1_micro_interval=interval_of(micro),
        accuracy=difference("accuracy"), accuracy_interval=interval_of(accuracy),
        f1_macro=difference("f1_macro"), f1_macro_interval=interval_of(macro),
        p_value=min(1.0, 2 * (side + 1) / (_SAMPLES + 1)),
    )  # fmt: skip


def set_verdict(
    comparison: SetComparison,
    automation: dict[str, Any],
    metrics: dict[str, Any],
    label_rows: NDArray[np.int64],
    *,
    part: str,
    alarm: str | None = None,
) -> dict[str, Any]:
    """The verdict as ``run.json`` holds it, by the rules of `snugtune.evaluate.verdict.verdict`.

    ``label_rows`` (K,) are training rows of each label.
    """
    faults = [alarm] if alarm else []
    if few := too_few_rows(metrics):
        faults.append(few)
    if comparison.against == "worse":
        faults.append(
            f"The TF-IDF baseline has {-100 * comparison.f1_micro:.1f} points more of micro F1 "
            f"(p = {comparison.p_value:.2g})."
        )
    faults += automation_faults(automation)
    review_share = 1 - outcome(automation)["coverage"]
    return {
        "level": level_of(review_share, faults),
        "against_baseline": comparison.against,
        "difference": comparison.as_dict(),
        "review_share": review_share,
        "reasons": [*faults, *_findings(comparison, automation, metrics, part)],
        "advice": [
            *against_advice(comparison.against),
            *automation_advice(automation, aid="label_confidences and next_label"),
            *small_classes(metrics, label_rows),
        ],
    }


def no_label_alarm(y_true: Sets, given: Bools) -> str | None:
    """One sentence if no label is ever given, or the same ones to every row: the model has collapsed."""
    if len(given) < 10 or not (y_true > 0).any():
        return None
    if not given.any():
        return f"None of {len(given):,} texts is given a label: the model has collapsed; train longer."
    if (given == given[0]).all() and not (y_true == y_true[0]).all():
        return (
            f"All {len(given):,} texts are given the same labels: the model has collapsed; lower the "
            "learning rate or train longer."
        )
    return None


def _findings(
    comparison: SetComparison, automation: dict[str, Any], metrics: dict[str, Any], part: str
) -> list[str]:
    low, high = metrics["intervals"]["f1_micro"]
    reasons = [
        f"Micro F1 on {metrics['rows']:,} {part} rows is {metrics['f1_micro']:.3f} (95 % interval {low:.3f} "
        f"to {high:.3f}), macro F1 {metrics['f1_macro']:.3f}; {100 * metrics['accuracy']:.1f} % of the rows "
        "have exactly the right labels.",
        automation["sentence"],
    ]
    low, high = comparison.f1_micro_interval
    interval = f"95 % interval {100 * low:+.1f} to {100 * high:+.1f} points, p = {comparison.p_value:.2g}"
    if comparison.against == "better":
        reasons.append(
            f"It beats the TF-IDF baseline by {100 * comparison.f1_micro:.1f} points of micro F1 "
            f"({interval})."
        )
    elif comparison.against == "same":
        reasons.append(
            f"Its micro F1 differs from the TF-IDF baseline's by {100 * comparison.f1_micro:+.1f} points, "
            f"which may be chance ({interval})."
        )
    return reasons + doubtful_confidence(metrics)
