"""The baseline learns, says so in probabilities, and is the same model after a save and a load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.svm import LinearSVC

from snugtune.errors import ArtifactError, UserInputError
from snugtune.evaluate import baseline as module
from snugtune.evaluate.baseline import ABSENT_SCORE, Classifier, TfidfBaseline, baseline_metrics

TOPICS = (
    ("card", "fee", "charged"),
    ("loan", "house", "mortgage"),
    ("score", "report", "bureau"),
    ("wire", "transfer", "abroad"),
)


def corpus(rows: int, seed: int, topics: int = 4) -> tuple[list[str], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, topics, rows)
    noise = [f"word{i}" for i in range(60)]
    texts = [" ".join([*rng.choice(TOPICS[k], 2), *rng.choice(noise, 6)]) for k in y]
    return texts, y


@pytest.mark.parametrize("classifier", ["svc", "logistic"])
@pytest.mark.parametrize("topics", [2, 4])
def test_it_learns_and_survives_a_round_trip(classifier: Classifier, topics: int, tmp_path: Path) -> None:
    texts, y = corpus(300, seed=0, topics=topics)
    unseen, truth = corpus(200, seed=1, topics=topics)
    fitted = TfidfBaseline(classifier=classifier, char_ngrams=True).fit(texts, y, topics)
    fitted.calibrate(unseen, truth)
    assert (fitted.decision(unseen).argmax(axis=1) == truth).mean() > 0.95
    fitted.save(tmp_path / "baseline")
    loaded = TfidfBaseline.load(tmp_path / "baseline")
    np.testing.assert_allclose(loaded.decision(unseen), fitted.decision(unseen), atol=1e-5)
    np.testing.assert_allclose(loaded.probabilities(unseen), fitted.probabilities(unseen), atol=1e-4)
    assert loaded.temperature == fitted.temperature != 1.0


def test_saved_files_hold_no_pickle(tmp_path: Path) -> None:
    texts, y = corpus(50, seed=0)
    TfidfBaseline().fit(texts, y, 4).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baseline.json", "baseline.safetensors"]


def test_classes_without_rows_score_last() -> None:
    texts, y = corpus(200, seed=0, topics=3)
    fitted = TfidfBaseline().fit(texts, y * 2, 6)  # classes 1, 3 and 5 are absent
    scores = fitted.decision(texts)
    assert scores.shape == (200, 6)
    assert (scores[:, [1, 3, 5]] == ABSENT_SCORE).all()
    assert (scores[:, [0, 2, 4]] > ABSENT_SCORE / 2).all()
    temperature = fitted.calibrate(texts, y * 2)
    absent = np.append(y * 2, 1)
    assert fitted.calibrate([*texts, texts[0]], absent) == temperature


def test_rows_without_label_are_left_out() -> None:
    texts, y = corpus(100, seed=0)
    with_blank = TfidfBaseline().fit([*texts, "card loan"], np.append(y, -1), 4)
    np.testing.assert_array_equal(
        with_blank.decision(texts), TfidfBaseline().fit(texts, y, 4).decision(texts)
    )


def test_one_class_only(tmp_path: Path) -> None:
    fitted = TfidfBaseline().fit(["card fee", "wire fee"], np.array([1, 1]), 3)
    fitted.save(tmp_path)
    for model in (fitted, TfidfBaseline.load(tmp_path)):
        assert model.decision(["anything"]).argmax(axis=1).tolist() == [1]


def test_no_text_gives_no_rows() -> None:
    texts, y = corpus(50, seed=0)
    assert TfidfBaseline().fit(texts, y, 4).probabilities([]).shape == (0, 4)


def test_probabilities_are_calibrated() -> None:
    texts, y = corpus(600, seed=0)
    rng = np.random.default_rng(0)
    noisy = np.where(rng.random(600) < 0.3, rng.integers(0, 4, 600), y)  # right labels: .775
    fitted = TfidfBaseline(C=0.1).fit(texts[:300], noisy[:300], 4)
    fitted.calibrate(texts[300:], noisy[300:])
    probs = fitted.probabilities(texts[300:])
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    accuracy = (probs.argmax(axis=1) == noisy[300:]).mean()
    assert probs.max(axis=1).mean() == pytest.approx(accuracy, abs=0.08)


def test_rare_words_are_dropped_only_from_large_tables() -> None:
    texts, y = corpus(1200, seed=0)
    texts[0] += " singular"
    large = TfidfBaseline().fit(texts, y, 4)
    small = TfidfBaseline().fit(texts[:500], y[:500], 4)
    assert "singular" not in large._vectorizers[0].vocabulary_
    assert "singular" in small._vectorizers[0].vocabulary_


def test_large_table_of_unique_words_still_fits() -> None:
    texts = [f"only{i}" for i in range(1000)]
    y = np.arange(1000) % 2
    assert (TfidfBaseline().fit(texts, y, 2).decision(texts).argmax(axis=1) == y).all()


def test_saved_weights_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_WEIGHTS", 80)
    texts, y = corpus(100, seed=0)
    assert TfidfBaseline(char_ngrams=True).fit(texts, y, 4)._weights.shape == (4, 20)


def test_single_characters_are_words() -> None:
    fitted = TfidfBaseline().fit(["卡", "款", "卡", "款"], np.array([0, 1, 0, 1]), 2)
    assert fitted.decision(["款", "卡"]).argmax(axis=1).tolist() == [1, 0]


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(UserInputError, match="2 training texts hold no word"):
        TfidfBaseline().fit(["!!!", "  "], np.array([0, 1]), 2)


def test_rows_without_labels_are_refused() -> None:
    with pytest.raises(UserInputError, match="no labelled row"):
        TfidfBaseline().fit(["card"], np.array([-1]), 2)


@pytest.mark.parametrize(("y", "message"), [([0], "one length"), ([0, 2], r"-1\.\.1")])
def test_programming_errors_are_named(y: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TfidfBaseline().fit(["card", "loan"], np.array(y), 2)


def test_foreign_or_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="Cannot read the baseline"):
        TfidfBaseline.load(tmp_path)
    TfidfBaseline().fit(["card", "loan"], np.array([0, 1]), 2).save(tmp_path)
    (tmp_path / "baseline.json").write_text('{"format": "other"}')
    with pytest.raises(ArtifactError, match="not a baseline of format"):
        TfidfBaseline.load(tmp_path)
    (tmp_path / "baseline.safetensors").write_bytes(b"cut off")
    with pytest.raises(ArtifactError, match="Cannot read the baseline"):
        TfidfBaseline.load(tmp_path)


def test_rows_that_outnumber_words_are_told_in_the_time_of_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """There scikit-learn would turn to the primal problem, whose answer is the same and takes far longer."""
    rng = np.random.default_rng(0)
    X = csr_matrix(rng.random((300, 20)) * (rng.random((300, 20)) < 0.3))
    y = np.argmax(X[:, :3].toarray() + 0.1 * rng.random((300, 3)), axis=1)
    made = []
    monkeypatch.setattr(
        module, "LinearSVC", lambda **settings: (made.append(LinearSVC(**settings)), made[-1])[1]
    )
    _, weights, bias = module.fit_linear("svc", 1.0, X, y)
    (model,) = made
    primal = LinearSVC(C=1.0, dual=False, tol=1e-6).fit(X, y)
    assert model.dual is True
    np.testing.assert_allclose(weights, primal.coef_, atol=5e-3)
    np.testing.assert_allclose(bias, primal.intercept_, atol=5e-3)


def test_metrics_of_the_baseline() -> None:
    texts, y = corpus(200, seed=0)
    fitted = TfidfBaseline().fit(texts, y, 4)
    metrics = baseline_metrics(fitted, texts, y, list("abcd"), bootstrap_samples=10)
    assert metrics["name"] == "TF-IDF + linear SVM"
    assert metrics["accuracy"] == (fitted.decision(texts).argmax(axis=1) == y).mean()
