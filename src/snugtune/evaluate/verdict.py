"""Is the model better than the baseline, and is it ready? The rules, as ``docs/verdict.md`` tells them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from snugtune.evaluate.metrics import resampled_scores, resamples

Ids = NDArray[np.int64]
Level = Literal["ready", "ready_with_review", "not_ready"]
Against = Literal["better", "same", "worse"]

SIGNIFICANCE = 0.05
"""Two-sided level at which a difference from the baseline counts."""

FEWEST_ROWS = 100
"""Held-out rows below which nothing is called ready: an accuracy would be known to ten points at best."""

READY_COVERAGE = 0.95
"""Share that needs no review from which on the model is "ready"."""

WORTHWHILE_COVERAGE = 0.1
"""Share that needs no review below which a model is "not ready": nearly every text would be read anyway."""

WELL_CALIBRATED = 0.05
"""Calibration error from which on the report says not to take confidences at their word."""

_SAMPLES = 2000
_PAIR_SHARE = 0.1  # a pair of classes with so many of the mistakes is named
_WEAK_F1 = 0.5  # classes below it are counted ...
_FEW_ROWS = 20  # ... as too small to be learnt if they have fewer training rows than this


@dataclass(frozen=True)
class Comparison:
    """Model against baseline on the same rows, differences as model minus baseline, with 95 % intervals."""

    accuracy: float
    accuracy_interval: tuple[float, float]
    f1_macro: float
    f1_macro_interval: tuple[float, float]
    p_value: float
    only_model_right: int
    only_baseline_right: int

    @property
    def against(self) -> Against:
        """Better or worse only where chance explains the difference in accuracy at less than 5 %."""
        return against_of(self.accuracy, self.p_value)

    def as_dict(self) -> dict[str, Any]:
        """As ``verdict.difference`` of ``run.json``."""
        return {
            "accuracy": self.accuracy,
            "interval": list(self.accuracy_interval),
            "p_value": self.p_value,
            "test": "mcnemar_exact",
            "f1_macro": self.f1_macro,
            "f1_macro_interval": list(self.f1_macro_interval),
            "only_model_right": self.only_model_right,
            "only_baseline_right": self.only_baseline_right,
        }


def compare(y_true: Ids, y_model: Ids, y_baseline: Ids, *, seed: int = 0) -> Comparison:
    """Model and baseline on the same rows: class ids ``(N,)`` each; rows with ``y_true == -1`` do not count.

    The p-value is McNemar's, exact: of the rows that only one of the two has right, the model's share is
    binomial with probability one half if both are as good (Dietterich 1998, sec. 3.1, recommends the test).
    Intervals are of a paired percentile bootstrap over rows.
    """
    known = y_true >= 0
    y, model, baseline = y_true[known], y_model[known], y_baseline[known]
    right_model, right_baseline = model == y, baseline == y
    only_model = int((right_model & ~right_baseline).sum())
    only_baseline = int((right_baseline & ~right_model).sum())
    discordant = only_model + only_baseline
    p_value = float(binomtest(only_model, discordant).pvalue) if discordant else 1.0
    accuracy, f1, accuracies, f1s = _differences(y, model, baseline, seed)
    return Comparison(
        accuracy=accuracy,
        accuracy_interval=interval_of(accuracies),
        f1_macro=f1,
        f1_macro_interval=interval_of(f1s),
        p_value=p_value,
        only_model_right=only_model,
        only_baseline_right=only_baseline,
    )


def verdict(
    comparison: Comparison,
    automation: dict[str, Any],
    metrics: dict[str, Any],
    class_rows: Ids,
    *,
    part: str,
    alarm: str | None = None,
) -> dict[str, Any]:
    """The verdict of a run as ``run.json`` holds it: level, comparison, share for review, reasons and advice.

    ``metrics`` are those of ``part`` ("test", or "validation" where there are no test rows), ``automation``
    is the block of that name, ``class_rows (K,)`` are training rows, ``alarm`` tells of a collapsed model.
    """
    review_share = 1 - outcome(automation)["coverage"]
    faults = _faults(comparison, automation, metrics, alarm)
    return {
        "level": level_of(review_share, faults),
        "against_baseline": comparison.against,
        "difference": comparison.as_dict(),
        "review_share": review_share,
        "reasons": [*faults, *_findings(comparison, automation, metrics, part)],
        "advice": _advice(comparison, automation, metrics, class_rows),
    }


def against_of(difference: float, p_value: float) -> Against:
    """What ``difference`` (model less baseline) says, if chance explains it at less than 5 %."""
    if p_value >= SIGNIFICANCE:
        return "same"
    return "better" if difference > 0 else "worse"


def level_of(review_share: float, faults: Sequence[str]) -> Level:
    """The level, from the share that needs review and what speaks against any use."""
    if faults:
        return "not_ready"
    return "ready" if review_share <= 1 - READY_COVERAGE + 1e-9 else "ready_with_review"


def outcome(automation: dict[str, Any]) -> dict[str, Any]:
    """What the threshold did on the rows that count: test rows where there are some."""
    result: dict[str, Any] = automation["test"] or automation["validation"]
    return result


def _faults(
    comparison: Comparison, automation: dict[str, Any], metrics: dict[str, Any], alarm: str | None
) -> list[str]:
    """Why the model is not ready, each in a sentence; empty if it is."""
    faults = [alarm] if alarm else []
    if few := too_few_rows(metrics):
        faults.append(few)
    if comparison.against == "worse":
        faults.append(
            f"The TF-IDF baseline is more accurate by {_points(-comparison.accuracy)} points "
            f"(p = {comparison.p_value:.2g})."
        )
    return faults + automation_faults(automation)


def too_few_rows(metrics: dict[str, Any]) -> str | None:
    """A sentence if so few rows were scored that they prove nothing."""
    if metrics["rows"] >= FEWEST_ROWS:
        return None
    return f"Only {metrics['rows']:,} held-out rows could be scored; below {FEWEST_ROWS} they prove nothing."


def automation_faults(automation: dict[str, Any]) -> list[str]:
    """What speaks against leaving texts to the model, each in a sentence."""
    faults = []
    coverage = outcome(automation)["coverage"]
    if coverage < WORTHWHILE_COVERAGE:
        faults.append(
            f"At {_percent(automation['precision_target'])} precision {_percent(coverage)} of the texts can "
            f"be left to the model; below {_percent(WORTHWHILE_COVERAGE)} nearly all are read anyway."
        )
    tested = automation["test"]
    if tested and tested["coverage"] and tested["interval"][1] < automation["precision_target"]:
        faults.append(
            f"{_percent(tested['precision'])} of the test rows that needed no review were right, where "
            f"{_percent(automation['precision_target'])} were promised; chance does not explain it."
        )
    return faults


def _findings(
    comparison: Comparison, automation: dict[str, Any], metrics: dict[str, Any], part: str
) -> list[str]:
    low, high = metrics["intervals"]["accuracy"]
    reasons = [
        f"{_percent(metrics['accuracy'])} of {metrics['rows']:,} {part} rows are right "
        f"(95 % interval {_percent(low)} to {_percent(high)}); macro F1 is {metrics['f1_macro']:.3f}.",
        automation["sentence"],
    ]
    low, high = comparison.accuracy_interval
    interval = f"95 % interval {100 * low:+.1f} to {100 * high:+.1f} points, p = {comparison.p_value:.2g}"
    if comparison.against == "better":
        reasons.append(
            f"It beats the TF-IDF baseline by {_points(comparison.accuracy)} points of accuracy ({interval})."
        )
    elif comparison.against == "same":
        reasons.append(
            f"Its accuracy differs from the TF-IDF baseline's by {100 * comparison.accuracy:+.1f} points, "
            f"which may be chance ({interval})."
        )
    return reasons + doubtful_confidence(metrics)


def doubtful_confidence(metrics: dict[str, Any]) -> list[str]:
    """A sentence if confidences are far from the share of right predictions."""
    if metrics["ece"] <= WELL_CALIBRATED:
        return []
    return [f"Confidences are off by {_points(metrics['ece'])} points on average (calibration error)."]


def _advice(
    comparison: Comparison, automation: dict[str, Any], metrics: dict[str, Any], class_rows: Ids
) -> list[str]:
    advice = against_advice(comparison.against) + automation_advice(automation)
    if metrics["ece"] > WELL_CALIBRATED:
        advice.append("Compare confidences with one another, but do not take them for probabilities.")
    advice.extend(_where_to_look(metrics, class_rows))
    return advice


def against_advice(against: Against) -> list[str]:
    """What to do where the model does not beat the baseline."""
    advice = []
    if against == "worse":
        advice.append("Use the baseline, or train longer, with more rows or a larger --model.")
    elif against == "same":
        advice.append(
            "The baseline does as well and costs next to nothing; more rows, more epochs or a larger --model "
            "may tell the two apart."
        )
    return advice


def automation_advice(automation: dict[str, Any], aid: str = "the second and third label") -> list[str]:
    """Who should look at what; ``aid`` is what saves searching where every prediction is looked at."""
    advice = []
    coverage = outcome(automation)["coverage"]
    if 0 < coverage < READY_COVERAGE:
        advice.append(
            f"Leave predictions at or above a confidence of {automation['threshold']:.3f} to the model and "
            f"let a person look at the other {_percent(1 - coverage)}: needs_review marks them."
        )
    elif not coverage:
        advice.append(
            f"Let a person confirm every prediction, a lower --precision-target aside; {aid} save searching."
        )
    return advice


def _where_to_look(metrics: dict[str, Any], class_rows: Ids) -> list[str]:
    """Pairs of classes with many of the mistakes, small classes, and labels training never saw."""
    advice = []
    mistakes = round(metrics["rows"] * (1 - metrics["accuracy"]))
    pairs = metrics.get("confused_pairs", [])
    if pairs and pairs[0]["rows"] >= max(_PAIR_SHARE * mistakes, 5):
        a, b = pairs[0]["labels"]
        advice.append(
            f"{pairs[0]['rows']:,} of {mistakes:,} mistakes are between {a!r} and {b!r}: check that the two "
            "are told apart the same way in all rows, or merge them."
        )
    advice.extend(small_classes(metrics, class_rows))
    if unseen := metrics["rows_unseen_label"]:
        advice.append(f"{unseen:,} rows carry labels unseen in training, which it can never predict.")
    return advice


def small_classes(metrics: dict[str, Any], class_rows: Ids) -> list[str]:
    """A sentence if labels of few training rows are not told well."""
    weak = [
        row["label"]
        for row, rows in zip(metrics["per_class"], class_rows.tolist(), strict=True)
        if row["support"] and row["f1"] < _WEAK_F1 and rows < _FEW_ROWS
    ]
    if weak:
        return [
            f"{len(weak):,} labels with fewer than {_FEW_ROWS} training rows have an F1 below {_WEAK_F1:g} "
            f"({_listed(weak)}): add rows of them, or merge them into others."
        ]
    return []


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(map(repr, labels[:3])) + (", ..." if len(labels) > 3 else "")


def _differences(
    y: Ids, model: Ids, baseline: Ids, seed: int
) -> tuple[float, float, NDArray[np.float64], NDArray[np.float64]]:
    """Differences of accuracy and macro F1, and those of bootstrap samples ``(B,)`` each."""
    if not len(y):
        return 0.0, 0.0, np.zeros(1), np.zeros(1)
    # Rows with the same three ids are interchangeable: a multinomial draw over such cells costs less.
    cells, counts = np.unique(np.stack([y, model, baseline], axis=1), axis=0, return_counts=True)
    K = int(cells.max()) + 1

    def differences(drawn: Ids) -> NDArray[np.float64]:
        ours, theirs = (resampled_scores(cells[:, [0, side]], drawn, K) for side in (1, 2))
        return ours - theirs

    accuracy, f1 = differences(counts[None].astype(np.int64))[:, 0].tolist()
    accuracies, f1s = np.concatenate([differences(d) for d in resamples(counts, _SAMPLES, seed)], axis=1)
    return accuracy, f1, accuracies, f1s


def interval_of(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrap values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 1 else "100 %"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"
