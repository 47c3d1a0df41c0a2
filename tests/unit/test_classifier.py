"""snugtune.Classifier keeps scikit-learn's contract."""

import gc
import json

import numpy as np
import polars as pl
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

import snugtune
import tiny
from snugtune import classifier as classifier_module
from snugtune.classifier import TABLE_SETTINGS, Classifier, _check_labels
from snugtune.config import FitConfig, make_config
from snugtune.data.labels import LabelSet
from snugtune.errors import ConfigError, UserInputError

TEXTS, LABELS = tiny.texts_and_labels(24)


class Keywords:
    """Stands in for a predictor: knows the label of each training text, else is even-handed."""

    def __init__(self, run):
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        self.labels, self.known = LabelSet(tuple(record["labels"])), record["known"]

    def probabilities(self, texts):
        K = len(self.labels.names)
        rows = np.full((len(texts), K), 0.1)
        for row, text in zip(rows, texts, strict=True):
            row[self.labels.label2id[self.known.get(text.split()[-1], self.labels.names[0])]] = 1.0
        return rows / rows.sum(1, keepdims=True)


@pytest.fixture
def fits(monkeypatch):
    """Replace training by a table of last words; lists the configurations fitted."""
    seen = []

    def fit(config, out, observer=None):
        table = pl.read_parquet(config.train)
        if table["label"].n_unique() < 2:
            raise UserInputError(f"All rows of {config.train} carry the same label.")
        out.mkdir()
        known = {text.split()[-1]: label for text, label in table.rows()}
        record = {
            "labels": sorted(set(known.values())), "known": known, "config": config.model_dump(mode="json"),
        }  # fmt: skip
        (out / "run.json").write_text(json.dumps(record), encoding="utf-8")
        seen.append((config, out))
        return out

    monkeypatch.setattr(classifier_module, "fit", fit)
    monkeypatch.setattr(classifier_module.Predictor, "load", staticmethod(Keywords))
    return seen


def few(*labels):
    """Two texts of each label that end in the label's own word."""
    return [f"about word{i}" for i, _ in enumerate(labels)] * 2, list(labels) * 2


def test_it_is_a_lazy_public_name():
    assert snugtune.Classifier is Classifier
    assert "Classifier" in snugtune.__all__


def test_parameters_are_the_settings_of_a_fit_but_those_of_tables():
    parameters = Classifier(r=8).get_params()
    assert set(parameters) == set(FitConfig.model_fields) - TABLE_SETTINGS
    assert parameters["r"] == 8
    assert parameters["test_fraction"] == 0.0
    assert Classifier().learning_rate == FitConfig.model_fields["learning_rate"].default


def test_a_rank_that_was_given_is_trained_and_another_is_the_methods():
    def rank(**settings):
        return make_config({"train": "x", **clone(Classifier(**settings))._given()}).r

    assert rank() == 16
    assert rank(method="vera") == 256
    assert rank(method="vera", r=16) == 16
    assert rank(r=8) == 8


def test_clone_set_params_and_repr():
    first = Classifier("some/model", r=4, target_modules=("query", "value"))
    second = clone(first)
    assert second is not first
    assert second.get_params() == first.get_params()
    assert second.set_params(r=2).r == 2
    assert first.r == 4
    assert "r=4" in repr(first)
    assert is_classifier(first)
    with pytest.raises(ValueError, match="rank"):
        first.set_params(rank=3)
    with pytest.raises(TypeError, match="unknown settings: learning_rat, train"):
        Classifier(learning_rat=1, train="a.csv")


@pytest.mark.parametrize(
    "labels",
    [
        ["b", "a", "c"],
        [10, 9, -1],
        [True, False],
        [2.0, -1.0, 10.0],
        np.array([3, 1, 2], dtype=np.int8),
        np.array([1.0, 2.0], dtype=np.float32),
        np.array(["x", "y"], dtype=object),
        [" x", "Y", "y"],
    ],
)
def test_classes_keep_the_users_own_values(fits, tmp_path, labels):
    values = np.asarray(labels)
    texts = [f"about word{i}" for i in range(len(values))]
    fitted = Classifier().fit(texts * 2, np.concatenate([values, values]))
    assert fitted.classes_.tolist() == sorted(set(values.tolist()))
    assert fitted.classes_.dtype == values.dtype
    assert fitted.predict(texts).tolist() == values.tolist()
    probabilities = fitted.predict_proba(texts)
    assert np.allclose(probabilities.sum(1), 1)
    assert fitted.classes_[probabilities.argmax(1)].tolist() == values.tolist()
    assert fitted.score(texts, values) == 1.0
    fitted.save(tmp_path / "kept")
    loaded = Classifier.load(tmp_path / "kept")
    assert loaded.classes_.tolist() == fitted.classes_.tolist()
    assert loaded.classes_.dtype == fitted.classes_.dtype
    assert np.array_equal(loaded.predict_proba(texts), probabilities)


def test_series_are_fine(fits):
    texts, labels = few("a", "b")
    fitted = Classifier().fit(pl.Series(texts), pl.Series(labels))
    assert fitted.predict(pl.Series(texts)).tolist() == labels
    pandas = pytest.importorskip("pandas")
    fitted = Classifier().fit(pandas.Series(texts), pandas.Series(labels, dtype="category"))
    assert fitted.predict(pandas.Series(texts)).tolist() == labels


def test_settings_reach_the_fit(fits):
    Classifier(r=4, seed=7).fit(*few("a", "b"))
    config, _ = fits[0]
    assert (config.r, config.seed, config.test_fraction, config.test) == (4, 7, 0.0, None)
    with pytest.raises(ConfigError, match="r=0"):
        Classifier(r=0).fit(*few("a", "b"))


def test_the_run_lives_as_long_as_the_estimator(fits, tmp_path):
    fitted = Classifier().fit(*few("a", "b"))
    (_, first), folder = fits[0], fitted.run_
    assert first == folder
    assert not (folder.parent / "table.parquet").exists()
    fitted.save(tmp_path / "kept")
    fitted.fit(*few("a", "c"))
    gc.collect()
    assert not folder.parent.exists()
    folder = fitted.run_
    assert folder.exists()
    del fitted
    gc.collect()
    assert not folder.parent.exists()
    assert (tmp_path / "kept" / "run.json").exists()


def test_save_refuses_a_folder_that_is_taken(fits, tmp_path):
    fitted = Classifier().fit(*few("a", "b"))
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine.txt").write_text("mine")
    with pytest.raises(UserInputError, match="kept"):
        fitted.save(tmp_path / "kept")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "mine.txt"]


def test_a_run_of_the_command_line_loads(fits, tmp_path):
    fitted = Classifier(r=4).fit(*few("b", "a"))
    fitted.save(tmp_path / "run")
    (tmp_path / "run" / "classifier.json").unlink()
    loaded = Classifier.load(tmp_path / "run")
    assert loaded.classes_.tolist() == ["a", "b"]
    assert loaded.r == 4


@pytest.mark.parametrize(
    ("X", "y", "words"),
    [
        ("a text", ["a"], "not a single text"),
        (["a", "b"], ["x"], "X has 2 texts and y 1 labels"),
        (["a", None], ["x", "y"], r"X\[1\] is None"),
        (["a", 3], ["x", "y"], r"X\[1\] is 3"),
        (np.array([["a"], ["b"]]), ["x", "y"], r"one-dimensional.*\(2, 1\)"),
        (["a", "b"], ["x", None], r"y\[1\] is None"),
        (["a", "b"], ["x", float("nan")], r"y\[1\] is nan"),
        (["a", "b"], [1.0, 0.5], r"y\[1\] is 0.5"),
        (["a", "b"], ["x", 1], "mixes labels of the types int, str"),
        (["a", "b"], [("x",), ("y",)], r"y\[0\] is \('x',\)"),
        (["a", "b"], ["x", " "], "empty label"),
        (["a", "b"], ["x", "x "], "differ only in surrounding blanks"),
        (["a", "b"], ["x", "x"], "All rows of The given data carry the same label"),
    ],
)
def test_bad_input_is_one_sentence(fits, X, y, words):
    with pytest.raises(UserInputError, match=words):
        Classifier().fit(X, y)


def test_unfitted_says_so(tmp_path):
    for call in (lambda c: c.predict(["a"]), lambda c: c.predict_proba(["a"]), lambda c: c.save(tmp_path)):
        with pytest.raises(NotFittedError):
            call(Classifier())


def test_cross_validation_and_grid_search(fits):
    texts = [f"{text} word{label}" for text, label in zip(TEXTS, LABELS, strict=True)]
    assert cross_val_score(Classifier(), texts, LABELS, cv=3).tolist() == [1.0, 1.0, 1.0]
    assert len(fits) == 3
    search = GridSearchCV(Classifier(), {"learning_rate": [1e-3, 1e-2]}, cv=2).fit(texts, LABELS)
    assert {config.learning_rate for config, _ in fits[3:]} == {1e-3, 1e-2}
    assert search.best_score_ == 1.0


@pytest.mark.slow
def test_the_real_fit(tmp_path):
    model = tiny.write_model(tmp_path / "model")
    texts, labels = tiny.texts_and_labels(90)
    y = [tiny.LABELS.index(label) for label in labels]
    estimator = Classifier(str(model), method="head", num_train_epochs=3)
    scores = cross_val_score(estimator, texts, y, cv=2)
    assert scores.min() > 0.6
    fitted = estimator.fit(texts, y)
    assert fitted.classes_.tolist() == [0, 1, 2]
    probabilities = fitted.predict_proba(texts)
    assert probabilities.shape == (90, 3)
    fitted.save(tmp_path / "kept")
    assert np.allclose(Classifier.load(tmp_path / "kept").predict_proba(texts), probabilities, atol=1e-6)


@pytest.mark.parametrize(("X", "y"), [(None, ["a"]), (["a"], None), (5, ["a"]), (["a"], 5)])
def test_what_is_no_list_is_told_in_one_sentence(X, y):
    with pytest.raises(UserInputError, match=r"must be a list of (texts|labels), not (None|5)\."):
        Classifier().fit(X, y)


def test_whole_numbers_of_numpy_are_whole_numbers():
    assert _check_labels([np.int64(3), np.int64(4)]).tolist() == [3, 4]
