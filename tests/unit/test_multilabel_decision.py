"""Thresholds, calibration, the baseline's share and the confidence of a whole label set."""

import json

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from snugtune.evaluate.multilabel.assessment import judge_sets, outcomes, score_sets
from snugtune.evaluate.multilabel.decision import (
    LabelSetDecision,
    SigmoidMap,
    decide_label_sets,
    fit_sigmoid,
    set_probability,
)
from snugtune.evaluate.multilabel.thresholds import (
    BORROWED,
    GRID,
    POOLED,
    best_common_score,
    choose_thresholds,
    fit_thresholds,
    give_labels,
    set_score,
)

NAMES = [f"label {k}" for k in range(6)]
PREVALENCES = np.array([0.4, 0.3, 0.2, 0.1, 0.05, 0.02])


def drawn(rows, seed, noise=1.0):
    """Labels that follow calibrated probabilities, and the log-odds of those."""
    rng = np.random.default_rng(seed)
    log_odds = np.log(PREVALENCES / (1 - PREVALENCES)) + 2.5 * noise * rng.normal(size=(rows, 6))
    return log_odds, (rng.random((rows, 6)) < expit(log_odds)).astype(np.int8)


def test_labels_at_or_above_their_thresholds_are_given():
    p = np.array([[0.5, 0.2], [0.4, 0.3], [0.1, 0.2]])
    thresholds = np.array([0.5, 0.3])
    assert give_labels(p, thresholds, at_least_one=False).tolist() == [[1, 0], [0, 1], [0, 0]]
    assert give_labels(p, thresholds, at_least_one=True).tolist() == [[1, 0], [0, 1], [0, 1]]


def test_thresholds_of_many_rows_are_half_of_f1_and_the_best_there_are():
    log_odds, y = drawn(15_000, 0)
    p = expit(log_odds)
    thresholds = fit_thresholds(p, y, 0.0)
    for k in range(6):
        best = f1_score(y[:, k], p[:, k] >= thresholds[k])
        assert thresholds[k] == pytest.approx(best / 2, abs=0.08)
        assert best >= max(f1_score(y[:, k], p[:, k] >= t) for t in GRID[::6]) - 1e-9


def test_few_rows_borrow_from_the_others():
    log_odds, y = drawn(20_000, 0)
    p = expit(log_odds)
    common = fit_thresholds(p, y, POOLED)
    assert (common == common[0]).all()
    # The rarest label with five positive rows, all of them sure: by itself it would ask for as much.
    few = np.r_[np.flatnonzero(y[:, 5])[:5], np.flatnonzero(y[:, 5] == 0)[:200]]
    p[few[:5], 5] = 0.9
    alone, borrowing = (fit_thresholds(p[few], y[few], m)[5] for m in (0.0, 100.0))
    pooled = fit_thresholds(p[few], y[few], POOLED)[5]
    assert abs(borrowing - pooled) < abs(alone - pooled)


def test_of_equally_good_thresholds_the_middle_one_is_taken():
    y = np.array([[1], [1], [0], [0]] * 10, np.int8)
    p = np.array([[0.9], [0.8], [0.1], [0.15]] * 10)
    (threshold,) = fit_thresholds(p, y, 0.0)
    assert 0.3 < threshold < 0.6


def test_no_positive_row_asks_for_the_most():
    assert (fit_thresholds(np.full((5, 2), 0.5), np.zeros((5, 2), np.int8), POOLED) == GRID[-1]).all()


def test_borrowing_is_chosen_by_what_it_brings_out_of_fold():
    log_odds, y = drawn(3000, 1)
    p = expit(log_odds)
    # Labels whose probabilities mean different things want thresholds of their own.
    bent = p ** np.array([1, 2, 3, 0.5, 1, 2])
    chosen = choose_thresholds(bent, y, "f1_macro", at_least_one=False)
    assert chosen.borrowed in BORROWED
    pooled = give_labels(bent, fit_thresholds(bent, y, POOLED), at_least_one=False)
    assert set_score(y, chosen.out_of_fold, "f1_macro") > set_score(y, pooled, "f1_macro")
    few = choose_thresholds(p[:15], y[:15], "f1_macro", at_least_one=False)
    assert few.borrowed is None


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_handful_of_rows_is_enough_to_go_on(rows):
    log_odds, y = drawn(rows, 0)
    decided = decide_label_sets(log_odds, log_odds, y, precision=0.9, objective="f1_micro", at_least_one=True)
    assert decided.decision.confidence_threshold > 1
    assert decided.held_out.labels.any(axis=1).all()


@pytest.mark.parametrize("objective", ["accuracy", "f1_macro", "f1_micro"])
def test_scores_are_scikit_learns(objective):
    log_odds, y = drawn(200, 0)
    given = log_odds > 0
    expected = (
        (given == (y > 0)).all(axis=1).mean()
        if objective == "accuracy"
        else f1_score(y, given, average=objective.removeprefix("f1_"))
    )
    assert set_score(y, given, objective) == pytest.approx(expected)
    by_hand = max(set_score(y, expit(log_odds) >= t, objective) for t in GRID)
    assert best_common_score(expit(log_odds), y, objective) == pytest.approx(by_hand)


def test_the_map_of_highest_likelihood_is_logistic_regression():
    log_odds, y = drawn(20_000, 2)
    found = fit_sigmoid(3.0 * log_odds - 1.0, y)
    assert found.temperature == pytest.approx(3.0, rel=0.05)
    assert found.offset == pytest.approx(1 / 3, abs=0.05)
    theirs = LogisticRegression(C=1e9).fit((3.0 * log_odds - 1.0).reshape(-1, 1), y.ravel())
    assert 1 / found.temperature == pytest.approx(float(theirs.coef_[0, 0]), rel=1e-2)


def test_separable_rows_leave_the_map_finite():
    y = np.array([[1, 0], [0, 1]] * 4, np.int8)
    found = fit_sigmoid(20.0 * y - 10.0, y)
    assert np.isfinite([found.temperature, found.offset]).all()
    with pytest.raises(ValueError, match="diverged"):
        fit_sigmoid(np.array([[np.nan, 0.0]]), y[:1])


def decide(rows=2000, seed=0, **settings):
    log_odds, y = drawn(rows, seed, noise=2.0)
    rng = np.random.default_rng(seed + 100)
    model, baseline = (log_odds + s * rng.normal(size=y.shape) for s in (1.0, 1.5))
    options = {"precision": 0.8, "objective": "f1_micro", "at_least_one": False, **settings}
    return decide_label_sets(model, baseline, y, **options), model, baseline, y


def test_two_views_of_the_same_are_pooled_and_a_useless_one_is_not():
    decided, model, baseline, y = decide()
    decision = decided.decision
    assert 0.1 < decision.weight < 0.6
    alone = decide_label_sets(
        model, np.random.default_rng(77).normal(size=y.shape), y, precision=0.8, objective="f1_micro",
        at_least_one=False,
    )  # fmt: skip
    assert alone.decision.weight == 0
    pooled = decision.predict(decision.probabilities(model, baseline))
    by_itself = alone.decision.predict(alone.decision.probabilities(model))
    assert set_score(y, pooled.labels, "f1_micro") > set_score(y, by_itself.labels, "f1_micro")
    with pytest.raises(ValueError, match="baseline"):
        decision.probabilities(model)


def test_a_decision_survives_json():
    decision = decide()[0].decision
    again = LabelSetDecision.from_dict(json.loads(json.dumps(decision.as_dict(), allow_nan=False)))
    assert again == decision
    assert decision.model != SigmoidMap()


def test_the_confidence_is_the_share_of_exactly_right_sets():
    decided, *_ = decide()
    fresh, y = drawn(4000, 7, noise=2.0)
    rng = np.random.default_rng(107)
    model, baseline = (fresh + s * rng.normal(size=y.shape) for s in (1.0, 1.5))
    told = decided.decision.predict(decided.decision.probabilities(model, baseline))
    held = outcomes(told, y)
    for low, high in ((0.0, 0.4), (0.4, 0.7), (0.7, 1.0)):
        rows = (held.confidence >= low) & (held.confidence < high)
        assert rows.sum() > 50
        assert held.correct[rows].mean() == pytest.approx(held.confidence[rows].mean(), abs=0.06)


def test_the_promise_holds_on_fresh_rows():
    """Of 20 draws of validation rows, no more break it than delta and chance allow."""
    target, kept, coverages = 0.7, 0, []
    for seed in range(20):
        decided, *_ = decide(400, seed, precision=target)
        fresh, y = drawn(4000, 1000 + seed, noise=2.0)
        rng = np.random.default_rng(1100 + seed)
        model, baseline = (fresh + s * rng.normal(size=y.shape) for s in (1.0, 1.5))
        told = decided.decision.predict(decided.decision.probabilities(model, baseline))
        found = outcomes(told, y).outcome(decided.decision.confidence_threshold)
        kept += found["precision"] is None or found["precision"] >= target
        coverages.append(found["coverage"])
    assert kept >= 15
    assert np.mean(coverages) > 0.1


def test_the_probability_of_a_set_is_the_product_of_its_labels():
    p = np.array([[0.9, 0.2], [0.5, 0.5]])
    labels = np.array([[True, False], [False, False]])
    assert set_probability(p, labels) == pytest.approx([0.9 * 0.8, 0.25])


def test_the_blocks_of_run_json_are_complete_and_consistent():
    decided, model, baseline, y = decide(500, precision=0.6)
    theirs = decide_label_sets(baseline, None, y, precision=0.6, objective="f1_micro", at_least_one=False)
    lengths = np.random.default_rng(0).integers(3, 50, len(y))
    rows = y.sum(axis=0).astype(np.int64)
    scored = {
        name: score_sets(y, lengths, model, baseline, (decided.decision, theirs.decision), NAMES, rows)
        for name in ("validation", "test")
    }
    automation, verdict = judge_sets(decided, theirs, scored, rows)
    for value in (automation, verdict, scored["test"].metrics):
        json.dumps(value, allow_nan=False)
    metrics = scored["test"].metrics
    told = scored["test"].model
    taken = told.confidence >= automation["threshold"]
    assert taken.any()
    assert automation["test"]["coverage"] == pytest.approx(taken.mean())
    assert automation["test"]["precision"] == pytest.approx(told.exact(y)[taken].mean())
    assert metrics["reliability"]["after"]["ece"] < metrics["reliability"]["before"]["ece"]
    assert sum(row["rows"] for row in metrics["slices"]["by_length"]) == len(y)
    assert sum(row["rows"] for row in metrics["slices"]["by_class_size"]) == y.sum()
    validation_only, _ = judge_sets(decided, theirs, {"validation": scored["validation"]}, rows)
    assert validation_only["test"] is None


def test_thresholds_for_the_sigmoid_of_the_models_own_logits():
    rng = np.random.default_rng(3)
    logits = (2 * rng.standard_normal((400, 5))).astype(np.float32)
    y = (rng.random(logits.shape) < expit(0.5 * logits - 1)).astype(np.int8)
    decision = decide_label_sets(
        logits, None, y, precision=0.9, objective="f1_macro", at_least_one=False
    ).decision  # fmt: skip
    given = decision.predict(decision.probabilities(logits)).labels
    own = np.array(decision.sigmoid_thresholds())
    assert np.abs(own - decision.thresholds).max() > 0.02
    assert ((expit(logits.astype(float)) >= own) == given).mean() > 0.999
