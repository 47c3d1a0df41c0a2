"""The whole job as a scikit-learn classifier: ``Classifier().fit(texts, labels).predict(more_texts)``."""

from __future__ import annotations

import inspect
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError

from snugtune.config import FitConfig, make_config
from snugtune.errors import UserInputError
from snugtune.files import staged_folder, write_json
from snugtune.predict.predictor import Predictor
from snugtune.progress import Observer
from snugtune.supervise import fit

TABLE_SETTINGS = {
    "train", "test", "text", "label", "label_levels", "label_separator", "problem_type", "sheet",
    "test_sheet", "encoding", "delimiter",
}  # fmt: skip
"""Settings of ``FitConfig`` that say what a table holds and where; here texts and labels are handed over."""

OWN_DEFAULTS = {"test_fraction": 0.0, "merge_label_variants": False, "r": None}
"""Whoever calls ``fit`` and ``score`` splits the data, and classes are what they are given as. The rank is
the method's own until it is given: which of both it was could not be told from a number."""

_FILE = "classifier.json"
_LABEL_TYPES = (str, bool, int, float)


@cache
def _defaults() -> dict[str, Any]:
    fields = {
        name: field.get_default(call_default_factory=True)
        for name, field in FitConfig.model_fields.items()
        if name not in TABLE_SETTINGS
    }
    return {**fields, **OWN_DEFAULTS}


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A fine-tuned text classifier with the interface of scikit-learn's.

    Args:
        model: ``"minilm"``, a folder, or a name on the Hugging Face Hub.
        **settings: the settings of ``FitConfig`` under their names, such as ``num_train_epochs``,
            ``learning_rate``, ``r`` or ``seed``. They are the estimator's parameters: ``get_params``,
            ``set_params``, ``clone`` and grid search know each of them. A tenth of the rows given to
            ``fit`` is held back to choose the best weights and to calibrate (``validation_fraction``).

    Attributes:
        classes_: the labels in sorted order, as they were given: (K,).
        predictor_: the ``Predictor`` of the run.

    Raises:
        TypeError: a setting is unknown.
    """

    def __init__(self, model: str = "minilm", **settings: Any) -> None:
        unknown = sorted(set(settings) - set(_defaults()))
        if unknown:
            raise TypeError(f"Classifier() got unknown settings: {', '.join(unknown)}.")
        for name, value in {**_defaults(), "model": model, **settings}.items():
            setattr(self, name, value)

    def fit(self, X: Iterable[str], y: Iterable[Any], *, observer: Observer | None = None) -> Classifier:
        """Train on N texts and their labels (strings, whole numbers or booleans).

        The run is kept in a temporary folder until the estimator goes; ``save`` keeps it for good.

        Raises:
            UserInputError: lengths differ, a text is not a string, a label is missing or of another type,
                or the rows cannot be learned from (for instance a single class).
            ConfigError: a setting is out of range.
        """
        texts, labels = _check_texts(X), _check_labels(y)
        if len(texts) != len(labels):
            raise UserInputError(f"X has {len(texts):,} texts and y {len(labels):,} labels; give as many.")
        classes, ids = np.unique(labels, return_inverse=True)
        names = _class_names(classes)
        folder = _TemporaryFolder()
        table = folder.path / "table.parquet"
        pl.DataFrame({"text": texts, "label": [names[i] for i in ids]}).write_parquet(table)
        config = make_config({**self._given(), "train": str(table), "text": ("text",), "label": "label"})
        try:
            run = fit(config, folder.path / "run", observer=observer)
        except UserInputError as error:
            raise type(error)(str(error).replace(str(table), "The given data")) from None
        finally:
            table.unlink()
        predictor = Predictor.load(run)
        known = set(predictor.labels.names)  # min_class_count may have left some out
        self._take(predictor, classes[[name in known for name in names]], folder)
        _write_classes(self.classes_, run)
        return self

    def _given(self) -> dict[str, Any]:
        """The parameters that are not a fit's own defaults, some of which depend on the method."""
        fields = FitConfig.model_fields
        parameters = self.get_params()
        rank = parameters.pop("r")
        given = {name: value for name, value in parameters.items() if value != fields[name].default}
        return given if rank is None else given | {"r": rank}

    def predict_proba(self, X: Iterable[str]) -> NDArray[np.float64]:
        """Calibrated probabilities (N, K), columns in the order of ``classes_``.

        Raises:
            UserInputError: a text is not a string.
            NotFittedError: there was no ``fit`` yet.
        """
        self._check_fitted()
        probabilities: NDArray[np.float64] = self.predictor_.probabilities(_check_texts(X))
        return probabilities[:, self._order]

    def predict(self, X: Iterable[str]) -> NDArray[Any]:
        """The most probable label of each text, as it was given to ``fit``: (N,).

        Raises:
            UserInputError: a text is not a string.
            NotFittedError: there was no ``fit`` yet.
        """
        best = self.predict_proba(X).argmax(1)
        chosen: NDArray[Any] = self.classes_[best]
        return chosen

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Copy the run folder to ``folder``, which appears once complete; the command line reads it too.

        Raises:
            UserInputError: the folder is taken or cannot be written.
            NotFittedError: there was no ``fit`` yet.
        """
        self._check_fitted()
        with staged_folder(folder, overwrite=overwrite, marker="run.json") as staging:
            shutil.copytree(self.run_, staging, dirs_exist_ok=True)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Classifier:
        """A classifier from what ``save`` or ``snugtune fit`` wrote; its settings are those of that run.

        Raises:
            UserInputError: ``folder`` is not a finished run.
        """
        folder = Path(folder)
        predictor = Predictor.load(folder)
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        config = {name: value for name, value in record["config"].items() if name in _defaults()}
        self = cls(**config)
        self._take(predictor, _read_classes(folder, predictor), folder)
        return self

    def _repr_html_(self) -> str:
        """For notebooks: the settings that differ from the usual, and once it is fitted, the run."""
        from snugtune.report.inline import classifier_html
        from snugtune.report.page import read_run_files

        usual, own = _defaults(), self.get_params()
        settings = [(name, str(own[name])) for name in own if name != "model" and own[name] != usual[name]]
        fitted = hasattr(self, "predictor_")
        run = read_run_files(self.run_) if fitted else None
        classes = len(self.classes_) if fitted else 0
        return classifier_html(str(self.model), settings, run, classes).html

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """What IPython asks for first; scikit-learn's own would be its diagram."""
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def _take(self, predictor: Predictor, classes: NDArray[Any], run: Path | _TemporaryFolder) -> None:
        """Become fitted; ``run`` as a temporary folder lives as long as this estimator."""
        self.predictor_ = predictor
        self.classes_ = classes
        self._order = [predictor.labels.label2id[name] for name in _class_names(classes)]
        self._folder = run
        self.run_ = run if isinstance(run, Path) else run.path / "run"

    def _check_fitted(self) -> None:
        if not hasattr(self, "predictor_"):
            raise NotFittedError("This Classifier is not fitted yet; call fit or load first.")


def _signature() -> inspect.Signature:
    """Of ``Classifier.__init__`` with every setting spelled out: scikit-learn reads parameters off it."""
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    model = inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=_defaults()["model"])
    others = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in _defaults().items()
        if name != "model"
    ]
    return inspect.Signature([first, model, *others])


Classifier.__init__.__signature__ = _signature()  # type: ignore[attr-defined]


class _TemporaryFolder:
    """A folder that goes with this object, or at the latest with the process."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="snugtune-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _check_texts(X: Iterable[str]) -> list[str]:
    if not isinstance(X, Iterable):
        raise UserInputError(f"X must be a list of texts, not {X!r}.")
    if isinstance(X, (str, bytes)):
        raise UserInputError("X must be a list of texts, not a single text; write [text].")
    if len(getattr(X, "shape", (0,))) != 1:
        raise UserInputError(
            f"X must be one-dimensional, one text per row, not of shape {X.shape}; "  # type: ignore[attr-defined]
            "give one column, such as frame['text']."
        )
    texts = list(X)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserInputError(f"X[{i}] is {text!r} and not a text; every text must be a string.")
    return texts


def _check_labels(y: Iterable[Any]) -> NDArray[Any]:
    """The labels as an array (N,) of one kind."""
    if not isinstance(y, Iterable):
        raise UserInputError(f"y must be a list of labels, not {y!r}.")
    values = y.tolist() if hasattr(y, "tolist") else list(y)
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    for i, value in enumerate(values):
        # Whole numbers only, as for every classifier of scikit-learn; NaN is pandas' missing label.
        if not isinstance(value, _LABEL_TYPES) or (isinstance(value, float) and not value.is_integer()):
            raise UserInputError(f"y[{i}] is {value!r}; a label is a string, a whole number or a boolean.")
    if len(kinds := sorted({type(value).__name__ for value in values})) > 1:
        raise UserInputError(f"y mixes labels of the types {', '.join(kinds)}; use one.")
    return np.asarray(y if isinstance(y, np.ndarray) else values)


def _class_names(classes: NDArray[Any]) -> list[str]:
    """What the run calls each of ``classes`` (K,)."""
    names = [str(label).strip() for label in classes.tolist()]
    if "" in names:
        raise UserInputError("y has an empty label; leave these rows out or give them a name.")
    if len(set(names)) < len(names):
        raise UserInputError("y has labels that differ only in surrounding blanks; make them one.")
    return names


def _write_classes(classes: NDArray[Any], run: Path) -> None:
    write_json(run / _FILE, {"dtype": classes.dtype.str, "classes": classes.tolist()})


def _read_classes(run: Path, predictor: Predictor) -> NDArray[Any]:
    if not (run / _FILE).exists():
        return np.array(sorted(predictor.labels.names))
    record = json.loads((run / _FILE).read_text(encoding="utf-8"))
    return np.array(record["classes"], dtype=np.dtype(record["dtype"]))
