"""Suspected labels: by hand, against cleanlab and scikit-learn, and on labels flipped on purpose."""

import numpy as np
import pytest
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_self_confidence_for_each_label
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from snugtune.evaluate import label_quality as module
from snugtune.evaluate.baseline import TfidfBaseline
from snugtune.evaluate.label_quality import (
    SCORE_SCALE,
    confident_issues,
    confident_thresholds,
    discriminant_scores,
    grouped_folds,
    judge_labels,
    label_quality,
    out_of_fold,
    self_confidence,
)

WORDS = ["card", "stolen", "fee", "charged", "loan", "rate", "transfer", "late"]


def random_probabilities(n, K, seed):
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(K), rng.integers(0, K, n - K)]
    logits = rng.normal(size=(n, K)) + 2.0 * np.eye(K)[y]
    wrong = rng.random(n) < 0.1
    y = np.where(wrong, rng.integers(0, K, n), y)
    y[:K] = np.arange(K)
    p = np.exp(logits)
    return y, p / p.sum(axis=1, keepdims=True)


def test_the_confident_joint_by_hand():
    y = np.array([0, 0, 0, 1, 1])
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.45, 0.55]])
    # Mean self-confidence: (.9 + .8 + .1) / 3 = .6 and (.7 + .55) / 2 = .625.
    assert confident_thresholds(y, p) == pytest.approx([0.6, 0.625])
    # Row 2 reaches only class 1's; row 4 reaches neither.
    assert confident_issues(y, p).tolist() == [False, False, True, False, False]
    found = label_quality(y, p)
    assert not found.suspected.any()  # of row 2 the label is too credible
    assert found.quality == pytest.approx([0.9, 0.8, 0.1, 0.7, 0.55])
    assert found.suggested.tolist() == [0, 0, 1, 1, 1]
    assert found.ranked().tolist() == [2, 4, 3, 1, 0]
    p[2] = [0.04, 0.96]
    assert label_quality(y, p).suspects().tolist() == [2]


def test_mistakes_of_models_that_often_err_are_no_wrong_labels():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 2000)
    # Honest models that know little: the truth is drawn by their own probabilities.
    p = rng.dirichlet(np.full(5, 2.0), 2000)
    y = (rng.random((2000, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, 4)
    assert confident_issues(y, p).mean() > 0.2
    assert label_quality(y, p).suspected.mean() < 0.03


def test_rows_that_cannot_be_judged_are_never_suspected():
    y = np.array([0, 0, 0, 1])
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [1.0, 0.0]])
    found = label_quality(y, p, judged=np.array([True, True, True, False]))
    assert found.quality[3] == 1.0
    assert not found.suspected.any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("K", [2, 3, 12])
def test_as_cleanlab_finds_them(K, seed):
    y, p = random_probabilities(400, K, seed)
    ours = confident_issues(y, p)
    theirs = find_label_issues(y, p, filter_by="confident_learning", n_jobs=1)
    # Of several classes a row is confident of, cleanlab counts the most probable of all, the paper (eq. 1)
    # the most probable of those.
    above = p >= confident_thresholds(y, p) - 1e-6
    differs = (above.sum(axis=1) > 1) & ~above[np.arange(len(y)), p.argmax(axis=1)]
    assert (ours == theirs)[~differs].all()
    assert differs.mean() < 0.05
    assert 0 < ours.sum() < len(y) / 3
    assert self_confidence(y, p) == pytest.approx(get_self_confidence_for_each_label(y, p))


@pytest.mark.parametrize("K", [2, 4])
def test_the_discriminant_is_scikit_learns(K):
    rng = np.random.default_rng(0)
    y = np.arange(200) % K
    x = rng.normal(size=(200, 6)) + rng.normal(size=(K, 6))[y] + 3.0
    others = rng.normal(size=(20, 6)) + 3.0
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(x, y).predict_log_proba(others)
    found = discriminant_scores(x.astype(np.float32), y, K, others, 0.3) * SCORE_SCALE
    ours = found - np.logaddexp.reduce(found, axis=1, keepdims=True)
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_classes_of_one_row_and_constant_features_are_no_trouble():
    x = np.ones((5, 3), dtype=np.float32)
    found = discriminant_scores(x, np.array([0, 0, 0, 0, 2]), 4, x, 0.1)
    assert np.isfinite(found).all()
    assert (found[:, [1, 3]] < found[:, [0, 2]].min()).all()


def test_folds_keep_groups_whole_and_classes_spread():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(300), 2)
    y = np.repeat(rng.integers(0, 6, 300), 2)
    folds = grouped_folds(y, groups, seed=3)
    assert (folds[::2] == folds[1::2]).all()
    for k in range(6):
        counts = np.bincount(folds[y == k], minlength=5)
        assert counts.max() - counts.min() <= 2
    assert (folds == grouped_folds(y, groups, seed=3)).all()
    assert (folds != grouped_folds(y, groups, seed=4)).any()


def test_no_row_is_judged_by_a_model_that_saw_it():
    seen = []

    def scores(train, test):
        seen.append((set(train.tolist()), set(test.tolist())))
        return np.zeros((len(test), 2))

    y, folds = np.arange(10) % 2, np.arange(10) % 5
    assert out_of_fold(y, 2, folds, scores) == pytest.approx(np.full((10, 2), 0.5))
    assert all(train.isdisjoint(test) for train, test in seen)
    assert sorted(i for _, test in seen for i in test) == list(range(10))


def table(n, seed=0, K=4):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % K
    texts = [
        " ".join(rng.permutation([*WORDS[2 * k : 2 * k + 2], *rng.choice(list("abcdefghij"), 4)])) for k in y
    ]
    features = (rng.normal(size=(n, 8)) + 3 * rng.normal(size=(K, 8))[y]).astype(np.float16)
    flipped = rng.choice(n, n // 20, replace=False)
    given = y.copy()
    given[flipped] = (y[flipped] + 1 + rng.integers(0, K - 1, len(flipped))) % K
    return texts, y, given, flipped, features


@pytest.mark.parametrize("with_features", [False, True])
def test_flipped_labels_come_first(with_features):
    texts, y, given, flipped, features = table(400)
    found = judge_labels(
        given,
        np.arange(400),
        4,
        words=TfidfBaseline().fit_features(texts, 4),
        features=features if with_features else None,
    )
    assert set(found.ranked()[: len(flipped)]) == set(flipped)
    assert set(found.suspects()) <= set(flipped)
    assert len(found.suspects()) >= 0.85 * len(flipped)
    assert (found.suggested[flipped] == y[flipped]).all()


def test_classes_too_rare_to_judge_are_left_alone():
    texts, _, given, flipped, _ = table(200)
    texts += ["something quite else", "and yet another thing"]
    found = judge_labels(
        np.r_[given, [4, 4]], np.arange(202), 5, words=TfidfBaseline().fit_features(texts, 5)
    )
    assert (found.quality[200:] == 1).all()
    assert 0 < len(found.suspects()) <= len(flipped)
    assert set(found.suspects()) <= set(flipped)


def test_large_tables_are_learned_from_in_part(monkeypatch):
    monkeypatch.setattr(module, "MAX_FIT_ROWS", 100)
    monkeypatch.setattr(module, "KEPT_OF_A_CLASS", 5)
    y = np.r_[np.zeros(900, int), np.ones(90, int), np.full(4, 2), np.full(6, 3)]
    rows = np.arange(1000)[y != 9]
    kept = module._fewer(rows, y, 0)
    assert np.bincount(y[kept]).tolist() == [90, 9, 4, 5]
    assert (np.diff(kept) > 0).all()
    assert (module._fewer(rows[:100], y, 0) == rows[:100]).all()
