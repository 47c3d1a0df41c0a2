"""From logits to calibrated probabilities and a threshold, the same after a round trip through JSON."""

import json

import numpy as np
import pytest

from snugtune.evaluate.decision import Decision, decide
from snugtune.evaluate.mixing import Mixture
from snugtune.evaluate.selective import REVIEW_EVERYTHING


def views(rows, seed, K=5):
    rng = np.random.default_rng(seed)
    y_true = rng.integers(0, K, rows)
    signal = 2.0 * np.eye(K)[y_true]
    return signal + rng.normal(size=(rows, K)), signal + rng.normal(size=(rows, K)), y_true


def test_a_baseline_that_errs_differently_is_mixed_in_and_helps_on_other_rows():
    decision = decide(*views(1500, 0), precision=0.9).decision
    logits, scores, y_true = views(1500, 1)
    alone = decide(logits, None, y_true, precision=0.9).decision.probabilities(logits)
    mixed = decision.probabilities(logits, scores)
    assert decision.uses_baseline
    assert (mixed.argmax(1) == y_true).mean() > (alone.argmax(1) == y_true).mean() + 0.02


def test_without_a_baseline_the_model_alone_is_calibrated():
    logits, _, y_true = views(800, 2)
    decision = decide(3 * logits, None, y_true, precision=0.9).decision
    assert not decision.uses_baseline
    probabilities = decision.probabilities(3 * logits)
    np.testing.assert_array_equal(probabilities.argmax(1), logits.argmax(1))
    confidence, accuracy = probabilities.max(1).mean(), (logits.argmax(1) == y_true).mean()
    assert confidence == pytest.approx(accuracy, abs=0.03)


def test_it_survives_json():
    decision = decide(*views(1500, 0), precision=0.9).decision
    again = Decision.from_dict(json.loads(json.dumps(decision.as_dict())))
    logits, scores, _ = views(10, 3)
    np.testing.assert_array_equal(again.probabilities(logits, scores), decision.probabilities(logits, scores))
    assert again == decision


def test_a_mixture_asks_for_the_scores_it_needs():
    decision = decide(*views(1500, 0), precision=0.9).decision
    with pytest.raises(ValueError, match="baseline"):
        decision.probabilities(views(10, 3)[0])


def test_noise_earns_no_exemption_from_review():
    rng = np.random.default_rng(0)
    decision = decide(rng.normal(size=(300, 4)), None, rng.integers(0, 4, 300), precision=0.95).decision
    assert decision.confidence_threshold == REVIEW_EVERYTHING


def test_records_without_calibration_are_read():
    mixture = Mixture(temperature_a=2.0)
    old = {"mixture": mixture.as_dict(), "confidence_threshold": 0.8, "precision_target": 0.95}
    logits = views(10, 0)[0]
    again = Decision.from_dict(old)
    np.testing.assert_allclose(again.probabilities(logits), mixture.apply(logits, np.zeros_like(logits)))
    assert (again.confidence_threshold, again.promise) == (0.8, None)


def test_rows_are_judged_by_a_decision_fitted_without_them():
    decided = decide(*views(1500, 0), precision=0.9)
    logits, scores, y_true = views(1500, 0)
    fitted_with_them = decided.decision.probabilities(logits, scores)
    assert decided.held_out.shape == fitted_with_them.shape
    assert np.abs(decided.held_out - fitted_with_them).max() > 0
    promise = decided.decision.promise
    taken = decided.held_out.max(1) >= decided.decision.confidence_threshold
    assert promise.coverage == pytest.approx(taken.mean())
    assert promise.precision == pytest.approx((decided.held_out.argmax(1) == y_true)[taken].mean())


def skewed(rows, seed, K=8):
    rng = np.random.default_rng(seed)
    prior = np.arange(1, K + 1) ** -2.0
    prior /= prior.sum()
    y_true = rng.choice(K, rows, p=prior)
    evidence = 1.5 * np.eye(K)[y_true] + rng.normal(size=(rows, K))
    return evidence * 1.5 + np.log(prior), y_true, prior


def test_rare_classes_gain_where_macro_f1_is_wanted():
    from sklearn.metrics import f1_score

    logits, y_true, prior = skewed(4000, 0)
    adjusted = decide(
        logits, None, y_true, precision=0.9, class_rows=(1e6 * prior).astype(int), adjust_for="macro_f1"
    ).decision
    plain = decide(logits, None, y_true, precision=0.9).decision
    assert adjusted.mixture.tau > 0
    fresh, y_fresh, _ = skewed(4000, 1)
    macro = [
        f1_score(y_fresh, decision.probabilities(fresh).argmax(1), average="macro", zero_division=0)
        for decision in (adjusted, plain)
    ]
    assert macro[0] > macro[1] + 0.01
    # Adjusted or not, confidences are those of the world as it is.
    probabilities = adjusted.probabilities(fresh)
    accuracy = (probabilities.argmax(1) == y_fresh).mean()
    assert probabilities.max(1).mean() == pytest.approx(accuracy, abs=0.03)


def test_nothing_is_adjusted_for_accuracy():
    logits, y_true, prior = skewed(2000, 0)
    decision = decide(
        logits, None, y_true, precision=0.9, class_rows=(1e6 * prior).astype(int), adjust_for="accuracy"
    ).decision
    assert decision.mixture.tau == 0
