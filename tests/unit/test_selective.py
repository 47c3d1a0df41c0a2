"""The review threshold: proofs against SciPy's, edge cases by hand, and the promise on fresh rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from snugtune.evaluate.selective import (
    REVIEW_EVERYTHING,
    Held,
    automation_sentence,
    by_class,
    expected_coverage,
    outcome,
    precision_lower_bound,
    promise,
    review_threshold,
    rows_to_prove,
)


@pytest.mark.parametrize(("hits", "rows"), [(0, 5), (5, 5), (90, 100)])
def test_lower_bound_is_scipys_clopper_pearson(hits: int, rows: int) -> None:
    interval = binomtest(hits, rows, alternative="greater").proportion_ci(
        confidence_level=0.9, method="exact"
    )
    assert precision_lower_bound(hits, rows, 0.1) == pytest.approx(interval.low)


def test_threshold_separates_good_rows_from_bad_ones() -> None:
    confidence = np.concatenate([np.linspace(0.8, 1, 1000), np.linspace(0.2, 0.5, 1000)])
    correct = np.arange(2000) < 1000
    kept = promise(confidence, correct)
    taken = confidence >= kept.threshold
    # 1000 right rows bear some wrong ones: the bound, not the plain precision, must still meet the target.
    assert 1000 <= taken.sum() < 1053
    assert precision_lower_bound(int(correct[taken].sum()), int(taken.sum()), 0.1) >= 0.95
    assert kept.coverage == taken.mean()
    assert kept.precision == correct[taken].mean()
    assert kept.lower_bound >= 0.95


def test_everything_is_taken_when_everything_is_right() -> None:
    confidence = np.random.default_rng(0).uniform(0.2, 1, 500)
    kept = promise(confidence, np.ones(500, bool))
    # The highest of the thresholds that take all rows, not the lowest.
    assert 0.19 < kept.threshold <= confidence.min()
    assert kept.coverage == 1


@pytest.mark.parametrize("rows", [0, 1, 44])
def test_too_few_rows_prove_nothing(rows: int) -> None:
    assert review_threshold(np.full(rows, 0.99), np.ones(rows, bool)) == REVIEW_EVERYTHING


def test_fewest_rows_that_can_prove_the_target() -> None:
    # The first test has 95 % of delta: .095 ** (1 / 46) = .9501.
    assert promise(np.full(46, 0.99), np.ones(46, bool)).coverage == 1
    assert promise(np.full(45, 0.99), np.ones(45, bool)).coverage == 0


def test_an_early_mistake_does_not_end_the_search() -> None:
    confidence = np.linspace(0.999, 0.5, 1000)
    correct = np.ones(1000, bool)
    correct[:3] = False
    assert promise(confidence, correct).coverage > 0.95


def test_review_everything_is_above_any_confidence_and_json_safe() -> None:
    threshold = review_threshold(np.linspace(0, 1, 500), np.zeros(500, bool))
    assert threshold == REVIEW_EVERYTHING > np.float32(1.0000001)
    assert json.loads(json.dumps(threshold, allow_nan=False)) == threshold


def test_rows_of_equal_confidence_are_taken_together() -> None:
    # The first hundred by position are right, but nothing tells them from the wrong ones.
    assert review_threshold(np.full(200, 0.9), np.arange(200) < 100) == REVIEW_EVERYTHING


def test_order_of_rows_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    confidence = rng.random(3000).round(2)
    correct = rng.random(3000) < 0.7 + 0.3 * confidence
    shuffled = rng.permutation(3000)
    threshold = review_threshold(confidence, correct, 0.9)
    assert threshold < 1
    assert threshold == review_threshold(confidence[shuffled], correct[shuffled], 0.9)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
def test_promise_is_broken_no_more_often_than_delta(sharpness: float) -> None:
    # Sharpness 1 is calibrated, .5 and 2 are not: the promise holds, at most coverage suffers.
    rng, broken, answered = np.random.default_rng(5), 0, 0
    for _ in range(300):
        right = rng.beta(4, 1, 1000)
        confidence = right**sharpness
        threshold = review_threshold(confidence, rng.random(1000) < right, 0.9, delta=0.1)
        if threshold <= 1:
            least = threshold ** (1 / sharpness)
            # The mean of a Beta(4, 1) above t: 4/5 (1 - t^5) / (1 - t^4).
            broken += 0.8 * (1 - least**5) / (1 - least**4) < 0.9
            answered += 1
    assert answered > {0.5: 120, 1.0: 250, 2.0: 250}[sharpness]
    assert broken / 300 < 0.1 + 3 * np.sqrt(0.1 * 0.9 / 300)


def test_promise_holds_on_fresh_rows_in_a_hundred_resplits() -> None:
    # Labels that are wrong whatever the confidence, as in real tables: no coverage comes for free.
    rng = np.random.default_rng(6)
    right = 0.97 * rng.beta(2, 0.7, 20_000)
    confidence, correct = right, rng.random(20_000) < right
    kept, coverages = 0, []
    for _ in range(100):
        order = rng.permutation(20_000)
        seen, fresh = order[:1000], order[1000:]
        threshold = review_threshold(confidence[seen], correct[seen], 0.9)
        found = outcome(confidence[fresh], correct[fresh], threshold)
        coverages.append(found["coverage"])
        kept += found["precision"] is None or found["precision"] >= 0.9
    assert kept >= 90
    assert np.median(coverages) > 0.35


@pytest.mark.parametrize(("precision", "delta"), [(1.0, 0.1), (0.0, 0.1), (0.9, 0.0)])
def test_impossible_promises_are_refused(precision: float, delta: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        review_threshold(np.ones(3), np.ones(3, bool), precision, delta=delta)


def test_expected_coverage_by_hand() -> None:
    # Means from the top: .9, .8, .7.
    assert expected_coverage(np.array([0.5, 0.9, 0.7]), 0.75) == pytest.approx(2 / 3)
    assert expected_coverage(np.array([0.5]), 0.75) == 0
    assert expected_coverage(np.empty(0), 0.75) == 0


@pytest.mark.parametrize(("ability", "target"), [(2.0, 0.9), (1.0, 0.8)])
def test_as_many_rows_as_are_said_to_be_needed_prove_a_share_every_other_time(ability, target) -> None:
    rng = np.random.default_rng(0)

    def rows(n: int) -> tuple[np.ndarray, np.ndarray]:
        confidence = rng.beta(ability, 2.0, n)
        return confidence, rng.random(n) < confidence

    needed = rows_to_prove(rows(100_000)[0], target)
    assert needed is not None
    proven = {
        factor: np.mean([promise(*rows(int(factor * needed)), target).threshold <= 1 for _ in range(200)])
        for factor in (0.1, 1, 8)
    }
    assert proven[0.1] < 0.25
    assert 0.3 < proven[1] < 0.8
    assert proven[8] > 0.95


def test_rows_needed_by_hand() -> None:
    # Without a mistake, .9 ** k is at most 5 % of delta for the first time, at the second start: k = 51; at
    # the first, at most 95 % of it: k = 23. A tenth of the rows is taken.
    confidence = np.r_[np.ones(10), np.full(90, 0.1)]
    assert rows_to_prove(confidence, 0.9) == 230
    assert rows_to_prove(np.full(10, 0.5), 0.9) is None
    assert rows_to_prove(np.full(10, 0.9), 0.9) is None
    assert rows_to_prove(np.empty(0), 0.9) is None


def test_each_class_has_its_share_and_its_own_threshold() -> None:
    rng = np.random.default_rng(0)
    predicted = np.arange(600) % 2
    truth = np.where((predicted == 1) & (rng.random(600) < 0.5), 0, predicted)
    held = Held(truth, predicted, np.where(predicted == 0, 0.97, 0.6))
    sure, doubtful = by_class(held, 0.9, ["sure", "doubtful"], held, 0.95)
    assert sure == {
        "label": "sure",
        "coverage": 1.0,
        "precision": 1.0,
        "rows": 300,
        "own_threshold": sure["own_threshold"],
    }
    assert 0.9 < sure["own_threshold"] <= 0.97
    assert (doubtful["coverage"], doubtful["precision"], doubtful["own_threshold"]) == (0.0, None, None)


def test_sentences() -> None:
    kept = promise(np.full(100, 0.99), np.ones(100, bool))
    assert automation_sentence(0.71, kept, 0.95, 0.8) == (
        "71 % of the texts can be automated at 95 % precision; the rest goes to a person."
    )
    assert automation_sentence(1.0, kept, 0.95, 1.0) == "All texts can be automated at 95 % precision."
    nothing = promise(np.full(20, 0.99), np.ones(20, bool))
    assert "20 validation rows" in automation_sentence(0.0, nothing, 0.95, 0.03)
    assert "3.0 %" in automation_sentence(0.0, nothing, 0.95, 0.03)
    assert automation_sentence(0.0, nothing, 0.95, 0.0).endswith("every text goes to a person.")
    assert "; about 3,500 validation rows could prove" in automation_sentence(0.0, nothing, 0.95, 0.03, 3410)
    assert "; more validation rows could prove" in automation_sentence(0.0, nothing, 0.95, 0.03, 20)


DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.long
@pytest.mark.realdata
@pytest.mark.parametrize("target", [0.9, 0.95])
def test_the_promise_holds_for_the_baseline_on_banking77(target: float) -> None:
    from snugtune.evaluate.baseline import TfidfBaseline
    from snugtune.evaluate.calibration import log_softmax
    from snugtune.evaluate.scaling import choose_calibration

    if not (DATA / "banking77").is_dir():
        pytest.skip("the data set banking77 is not here")
    scores, y = _scores_of_banking77(TfidfBaseline())
    rng, kept, coverages = np.random.default_rng(0), 0, []
    for _ in range(100):
        # The table stands for the population: rows drawn from it with replacement are fresh ones.
        drawn = rng.integers(0, len(y), 1000)
        calibrated = choose_calibration(log_softmax(scores[drawn]), y[drawn], keep_order=True)
        seen = Held.of(y[drawn], np.exp(calibrated.out_of_fold))
        everyone = Held.of(y, np.exp(calibrated.calibration.apply(log_softmax(scores))))
        found = everyone.outcome(review_threshold(seen.confidence, seen.correct, target))
        coverages.append(found["coverage"])
        kept += found["precision"] is None or found["precision"] >= target
    assert kept >= 90
    assert np.median(coverages) > {0.9: 0.9, 0.95: 0.7}[target]


def _scores_of_banking77(baseline):  # type: ignore[no-untyped-def]
    import polars as pl

    train, test = (pl.read_csv(DATA / "banking77" / f"{part}.csv") for part in ("train", "test"))
    names = sorted(set(train["category"]))
    ids = {name: i for i, name in enumerate(names)}
    y_train, y_test = ([ids[name] for name in table["category"]] for table in (train, test))
    baseline.fit(train["text"].to_list(), np.array(y_train), len(names))
    return baseline.decision(test["text"].to_list()), np.array(y_test)
