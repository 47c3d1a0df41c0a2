"""From logits to calibrated probabilities and a threshold, the same after a round trip through JSON."""

import json

import numpy as np
import pytest

from snugtune.evaluate.calibration import REVIEW_EVERYTHING
from snugtune.evaluate.decision import Decision, decide


def views(rows, seed, K=5):
    rng = np.random.default_rng(seed)
    y_true = rng.integers(0, K, rows)
    signal = 2.0 * np.eye(K)[y_true]
    return signal + rng.normal(size=(rows, K)), signal + rng.normal(size=(rows, K)), y_true


def test_a_baseline_that_errs_differently_is_mixed_in_and_helps_on_other_rows():
    decision = decide(*views(1500, 0), precision=0.9)
    logits, scores, y_true = views(1500, 1)
    alone = decide(logits, None, y_true, precision=0.9).probabilities(logits)
    mixed = decision.probabilities(logits, scores)
    assert decision.uses_baseline
    assert (mixed.argmax(1) == y_true).mean() > (alone.argmax(1) == y_true).mean() + 0.02


def test_without_a_baseline_the_model_alone_is_calibrated():
    logits, _, y_true = views(800, 2)
    decision = decide(3 * logits, None, y_true, precision=0.9)
    assert not decision.uses_baseline
    probabilities = decision.probabilities(3 * logits)
    np.testing.assert_array_equal(probabilities.argmax(1), logits.argmax(1))
    confidence, accuracy = probabilities.max(1).mean(), (logits.argmax(1) == y_true).mean()
    assert confidence == pytest.approx(accuracy, abs=0.03)


def test_it_survives_json():
    decision = decide(*views(1500, 0), precision=0.9)
    again = Decision.from_dict(json.loads(json.dumps(decision.as_dict())))
    logits, scores, _ = views(10, 3)
    np.testing.assert_array_equal(again.probabilities(logits, scores), decision.probabilities(logits, scores))
    assert again == decision


def test_a_mixture_asks_for_the_scores_it_needs():
    decision = decide(*views(1500, 0), precision=0.9)
    with pytest.raises(ValueError, match="baseline"):
        decision.probabilities(views(10, 3)[0])


def test_noise_earns_no_exemption_from_review():
    rng = np.random.default_rng(0)
    decision = decide(rng.normal(size=(300, 4)), None, rng.integers(0, 4, 300), precision=0.95)
    assert decision.confidence_threshold == REVIEW_EVERYTHING
