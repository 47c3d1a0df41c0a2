"""The verdict's rules one by one, and its tests against SciPy's and a plain bootstrap."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from snugtune.evaluate.metrics import classification_metrics
from snugtune.evaluate.verdict import compare, verdict

NAMES = ["a", "b", "c"]
CLASS_ROWS = np.array([100, 100, 100])


def predictions(rows=400, accuracy=0.9, seed=0, K=3):
    """Class ids, and predictions of them that are right with probability ``accuracy``."""
    rng = np.random.default_rng(seed)
    y_true = rng.integers(0, K, rows)
    return y_true, np.where(rng.random(rows) < accuracy, y_true, (y_true + 1) % K)


def block(coverage=0.7, precision=0.97, interval=(0.95, 0.99), tested=True):
    outcome = {"coverage": coverage, "precision": precision, "interval": list(interval)}
    return {
        "precision_target": 0.95, "threshold": 0.8,
        "validation": outcome, "test": outcome if tested else None,
        "sentence": "70 % of the texts can be automated at 95 % precision; the rest goes to a person.",
    }  # fmt: skip


def judged(model=0.9, baseline=0.8, rows=400, automation=None, alarm=None, **more):
    y_true, y_model = predictions(rows, model, 0)
    rng = np.random.default_rng(1)
    y_baseline = np.where(rng.random(rows) < baseline, y_true, (y_true + 2) % 3)
    metrics = classification_metrics(y_true, np.eye(3)[y_model], NAMES) | more
    return verdict(
        compare(y_true, y_model, y_baseline),
        automation or block(),
        metrics,
        CLASS_ROWS,
        part="test",
        alarm=alarm,
    )


def test_mcnemar_is_scipys_binomial_test_on_the_rows_that_differ() -> None:
    y_true = np.zeros(100, int)
    model, baseline = np.zeros(100, int), np.zeros(100, int)
    model[:5], baseline[10:25] = 1, 1
    found = compare(y_true, model, baseline)
    assert (found.only_model_right, found.only_baseline_right) == (15, 5)
    assert found.p_value == pytest.approx(binomtest(15, 20, 0.5).pvalue)
    assert found.accuracy == pytest.approx(0.1)


def test_intervals_are_those_of_a_paired_bootstrap_over_rows() -> None:
    y_true, model = predictions(300, 0.9, 0)
    baseline = predictions(300, 0.8, 0)[1]
    found = compare(np.append(y_true, -1), np.append(model, 0), np.append(baseline, 0))
    rng, accuracies, f1s = np.random.default_rng(9), [], []
    for _ in range(1500):
        drawn = rng.integers(0, 300, 300)
        y, a, b = y_true[drawn], model[drawn], baseline[drawn]
        accuracies.append((a == y).mean() - (b == y).mean())
        f1s.append(f1_score(y, a, average="macro") - f1_score(y, b, average="macro"))
    assert found.accuracy_interval == pytest.approx(np.quantile(accuracies, [0.025, 0.975]), abs=0.012)
    assert found.f1_macro_interval == pytest.approx(np.quantile(f1s, [0.025, 0.975]), abs=0.012)
    expected = f1_score(y_true, model, average="macro") - f1_score(y_true, baseline, average="macro")
    assert found.f1_macro == pytest.approx(expected)


def test_the_same_predictions_are_the_same() -> None:
    y_true, model = predictions()
    found = compare(y_true, model, model)
    assert (found.against, found.p_value, found.accuracy_interval) == ("same", 1.0, (0.0, 0.0))
    assert compare(np.array([-1]), np.array([0]), np.array([0])).against == "same"


@pytest.mark.parametrize(
    ("model", "baseline", "against"), [(0.9, 0.8, "better"), (0.8, 0.9, "worse"), (0.9, 0.9, "same")]
)
def test_against_the_baseline(model, baseline, against) -> None:
    assert judged(model, baseline)["against_baseline"] == against


def test_levels() -> None:
    assert judged()["level"] == "ready_with_review"
    assert judged()["review_share"] == pytest.approx(0.3)
    assert judged(automation=block(coverage=0.95))["level"] == "ready"
    assert judged(automation=block(coverage=0.05))["level"] == "not_ready"
    assert judged(0.8, 0.9)["level"] == "not_ready"
    assert judged(0.9, 0.9)["level"] == "ready_with_review"
    assert judged(rows=60)["level"] == "not_ready"
    assert judged(alarm="All 400 predictions are class 1 of 3.")["level"] == "not_ready"


def test_a_promise_broken_beyond_chance_is_a_fault() -> None:
    broken = judged(automation=block(precision=0.9, interval=(0.87, 0.93)))
    assert broken["level"] == "not_ready"
    assert "90.0 %" in broken["reasons"][0]
    assert judged(automation=block(precision=0.94, interval=(0.92, 0.96)))["level"] == "ready_with_review"


def test_validation_counts_where_there_are_no_test_rows() -> None:
    assert judged(automation=block(coverage=0.96, tested=False))["level"] == "ready"


def test_reasons_begin_with_the_faults_and_advice_names_what_to_do() -> None:
    worse = judged(0.8, 0.9)
    assert worse["reasons"][0].startswith("The TF-IDF baseline is more accurate by")
    assert worse["advice"][0].startswith("Use the baseline")
    review = judged()["advice"]
    assert any("needs_review" in sentence and "30.0 %" in sentence for sentence in review)
    nothing = judged(automation=block(coverage=0.0, precision=None, interval=(0.0, 1.0)))
    assert any(sentence.startswith("Let a person confirm") for sentence in nothing["advice"])
    json.dumps([worse, nothing], allow_nan=False)


def test_advice_names_pairs_small_classes_and_unseen_labels() -> None:
    y_true, y_model = predictions(400, 0.9)
    metrics = classification_metrics(y_true, np.eye(3)[y_model], NAMES)
    metrics["confused_pairs"] = [{"labels": ["a", "b"], "rows": 20}]
    metrics["rows_unseen_label"] = 7
    metrics["per_class"] = copy.deepcopy(metrics["per_class"])
    metrics["per_class"][2]["f1"] = 0.2
    told = verdict(compare(y_true, y_model, y_model), block(), metrics, np.array([100, 100, 5]), part="test")
    advice = " ".join(told["advice"])
    assert "'a' and 'b'" in advice
    assert "1 labels with fewer than 20 training rows" in advice
    assert "7 rows carry labels unseen" in advice


def test_poor_calibration_is_told() -> None:
    assert any("Confidences are off by 8.0 points" in reason for reason in judged(ece=0.08)["reasons"])
    assert not any("Confidences" in reason for reason in judged(ece=0.02)["reasons"])


def test_chance_is_called_better_or_worse_no_more_often_than_said() -> None:
    called = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        y_true = np.zeros(300, int)
        model, baseline = (rng.random((2, 300)) > 0.8).astype(int)
        called += compare(y_true, model, baseline, seed=seed).against != "same"
    assert called / 200 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
