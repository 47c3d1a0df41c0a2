"""The model to beat: TF-IDF and a linear classifier, trained on a CPU in seconds to minutes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from snugtune.errors import ArtifactError, UserInputError
from snugtune.evaluate.calibration import fit_temperature, softmax
from snugtune.evaluate.metrics import classification_metrics
from snugtune.files import replacing, system_errors, write_json

ABSENT_SCORE = -30.0
"""Score of a class without training rows: far below any margin, yet finite, so it can be averaged."""

_MAX_WEIGHTS = 24_000_000  # at 2 bytes each, the saved file stays below 50 MB
_ROWS_FOR_MIN_DF_2 = 1000  # with fewer rows a word seen once may be all there is to know about a class
_FORMAT = "snugtune-tfidf-1"

Classifier = Literal["svc", "logistic"]
Floats = NDArray[np.floating[Any]]


class TfidfBaseline:
    """TF-IDF of word 1-2-grams (and character 2-5-grams if asked for) with a linear classifier.

    The weights are rounded to float16 when they are fitted, so what is measured is exactly what is saved.

    Args:
        classifier: ``"svc"`` (one against the rest) or ``"logistic"`` (multinomial; slower for many classes).
        char_ngrams: add character n-grams within words: for noisy spelling and languages without spaces.
        max_features: most frequent n-grams kept, per kind; fewer if the weights would exceed 50 MB.
        C: inverse strength of the L2 penalty.
    """

    def __init__(
        self,
        *,
        classifier: Classifier = "svc",
        char_ngrams: bool = False,
        max_features: int = 50_000,
        C: float = 1.0,
    ) -> None:
        self.classifier: Classifier = classifier
        self.char_ngrams = char_ngrams
        self.max_features = max_features
        self.C = C
        self.temperature = 1.0
        self._K = 0
        self._vectorizers: list[Any] = []
        self._seen: NDArray[np.int64] = np.empty(0, np.int64)
        self._weights: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self._bias: NDArray[np.float32] = np.empty(0, np.float32)

    def fit(self, texts: Sequence[str], y: NDArray[np.int64], K: int) -> TfidfBaseline:
        """Learn from ``texts`` (N of them) of classes ``y (N,)`` out of ``K``; rows of class -1 are left out.

        Where a text may carry several labels, ``y (N, K)`` is 1 for each that applies and else 0, and each
        label is told from the rest by itself.

        Raises:
            ValueError: a class id is out of range.
            UserInputError: no row has a label, or the texts hold no word at all.
        """
        texts, y = _labelled(texts, np.asarray(y), K)
        self.temperature = 1.0
        self._seen, weights, bias = fit_linear(self.classifier, self.C, self.fit_features(texts, K), y)
        self._weights, self._bias = weights.astype(np.float16).astype(np.float32), bias.astype(np.float32)
        return self

    def fit_features(self, texts: Sequence[str], K: int) -> Any:
        """TF-IDF features (N, F), a sparse matrix, of N ``texts`` to be told into ``K`` classes.

        Raises:
            UserInputError: the texts hold no word at all.
        """
        self._K = K
        self._vectorizers = [self._fit_vectorizer(kind, texts) for kind in self._kinds()]
        return self._features(texts)

    def calibrate(self, texts: Sequence[str], y: NDArray[np.int64]) -> float:
        """Fit the temperature of `probabilities` on held-out rows and return it.

        Rows whose class has no training row say nothing about it and are ignored.
        """
        self.temperature = fit_temperature(self.decision(texts), np.where(np.isin(y, self._seen), y, -1))
        return self.temperature

    def decision(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores ``(N, K)``; classes absent from training score `ABSENT_SCORE`."""
        scores = np.full((len(texts), self._K), ABSENT_SCORE, np.float32)
        if len(texts):
            scores[:, self._seen] = self._features(texts) @ self._weights.T + self._bias
        return scores

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Probabilities ``(N, K)``: softmax of the scores over the temperature (1 before `calibrate`)."""
        return self.calibrated(self.decision(texts))

    def calibrated(self, scores: Floats) -> NDArray[np.float64]:
        """Probabilities ``(N, K)`` from the scores of `decision`."""
        return softmax(scores, self.temperature)

    def save(self, folder: str | Path) -> None:
        """Write ``baseline.json`` (settings, vocabularies) and ``baseline.safetensors`` (idf, weights)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"idf_{i}": vectorizer.idf_.astype(np.float32) for i, vectorizer in enumerate(self._vectorizers)
        }
        tensors |= {"weights": self._weights.astype(np.float16), "bias": self._bias, "seen": self._seen}
        with replacing(folder / "baseline.safetensors") as temporary, system_errors():
            save_file(tensors, temporary)
        write_json(folder / "baseline.json", {"format": _FORMAT, **self._settings(), **self._state()})

    @classmethod
    def load(cls, folder: str | Path) -> TfidfBaseline:
        """Read what `save` wrote.

        Raises:
            ArtifactError: a file is missing or is not a baseline of this version.
        """
        saved, tensors = _read(Path(folder))
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            raise ArtifactError(f"The baseline in {folder} holds what is no number; train it again.")
        baseline = cls(**{name: saved[name] for name in cls()._settings()})
        baseline._K, baseline.temperature = saved["K"], saved["temperature"]
        baseline._vectorizers = [
            _restored(baseline._vectorizer(kind), terms, tensors[f"idf_{i}"])
            for i, (kind, terms) in enumerate(zip(baseline._kinds(), saved["vocabularies"], strict=True))
        ]
        baseline._weights = tensors["weights"].astype(np.float32)
        baseline._bias, baseline._seen = tensors["bias"], tensors["seen"]
        return baseline

    def _settings(self) -> dict[str, Any]:
        names = ("classifier", "char_ngrams", "max_features", "C")
        return {name: getattr(self, name) for name in names}

    def _state(self) -> dict[str, Any]:
        vocabularies = [vectorizer.get_feature_names_out().tolist() for vectorizer in self._vectorizers]
        return {"K": self._K, "temperature": self.temperature, "vocabularies": vocabularies}

    def _kinds(self) -> tuple[str, ...]:
        return ("word", "char_wb") if self.char_ngrams else ("word",)

    def _vectorizer(self, kind: str, **options: Any) -> Any:
        ngrams = {"word": (1, 2), "char_wb": (2, 5)}[kind]
        # Unlike the default pattern, single characters count: in Chinese or Japanese they are words.
        pattern = r"(?u)\b\w+\b" if kind == "word" else None
        return TfidfVectorizer(
            analyzer=kind,
            ngram_range=ngrams,
            token_pattern=pattern,
            sublinear_tf=True,
            dtype=np.float32,
            **options,
        )

    def _fit_vectorizer(self, kind: str, texts: Sequence[str]) -> Any:
        cap = max(1, min(self.max_features, _MAX_WEIGHTS // (self._K * len(self._kinds()))))
        for min_df in (2, 1) if len(texts) >= _ROWS_FOR_MIN_DF_2 else (1,):
            try:
                return self._vectorizer(kind, max_features=cap, min_df=min_df).fit(texts)
            except ValueError:  # scikit-learn: empty vocabulary, or no term left after pruning
                continue
        raise UserInputError(
            f"The {len(texts)} training texts hold no word to learn from; check the text column."
        )

    def _features(self, texts: Sequence[str]) -> Any:
        return hstack([vectorizer.transform(texts) for vectorizer in self._vectorizers], format="csr")


def baseline_metrics(
    baseline: TfidfBaseline,
    texts: Sequence[str],
    y_true: NDArray[np.int64],
    label_names: Sequence[str],
    *,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """`classification_metrics` of a fitted baseline on N ``texts``, classes ``y_true (N,)`` and ``name``."""
    probs = baseline.probabilities(texts)
    metrics = classification_metrics(
        y_true, probs, label_names, bootstrap_samples=bootstrap_samples, seed=seed
    )
    return {"name": _NAMES[baseline.classifier], **metrics}


_NAMES: dict[Classifier, str] = {"svc": "TF-IDF + linear SVM", "logistic": "TF-IDF + logistic regression"}


def _labelled(texts: Sequence[str], y: NDArray[np.int64], K: int) -> tuple[list[str], NDArray[np.int64]]:
    if len(texts) != len(y):
        raise ValueError(f"texts and y must be of one length, got {len(texts)} and {len(y)}.")
    if y.ndim == 1 and len(y) and not -1 <= y.min() <= y.max() < K:
        raise ValueError(f"y must lie in -1..{K - 1}, got {y.min()}..{y.max()}.")
    if y.ndim == 2 and y.shape[1] != K:
        raise ValueError(f"y must have shape (N, {K}), got {y.shape}.")
    kept = np.flatnonzero(y.reshape(len(y), -1).min(axis=1, initial=0) >= 0)
    if not len(kept):
        raise UserInputError("The baseline has no labelled row to learn from; check the label column.")
    return [texts[i] for i in kept.tolist()], y[kept]


def fit_linear(
    classifier: Classifier, C: float, X: Any, y: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Class ids ``(S,)`` seen in ``y (N,)``, their weights ``(S, F)``, biases ``(S,)``; ``X`` is (N, F).

    Of label sets ``y (N, K)``, each label that occurs is told from the rest by itself.
    """
    if y.ndim == 2:
        return _fit_each_label(classifier, C, X, y)
    seen = np.unique(y)
    if len(seen) == 1:  # nothing to separate, which scikit-learn refuses
        return seen, np.zeros((1, X.shape[1])), np.zeros(1)
    model = _linear(classifier, C)
    with warnings.catch_warnings():
        # That classes are many for so few rows; a table is checked for it when it is read.
        warnings.simplefilter("ignore", UserWarning)
        model.fit(X, y)
    weights, bias = model.coef_, model.intercept_
    if len(seen) == 2:  # one row for two classes; halves, so that the softmax is the sigmoid of the margin
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return seen, np.ascontiguousarray(weights), bias  # liblinear's are in Fortran order, safetensors wants C


def _linear(classifier: Classifier, C: float) -> Any:
    if classifier == "logistic":
        return LogisticRegression(C=C, max_iter=1000)
    # The same optimum as the primal problem's, which scikit-learn would choose where rows outnumber words: on
    # CLINC150 it takes a hundred times as long.
    return LinearSVC(C=C, dual=True, random_state=0)


def _fit_each_label(
    classifier: Classifier, C: float, X: Any, y: NDArray[Any]
) -> tuple[NDArray[np.int64], Floats, Floats]:
    rows = (y > 0).sum(axis=0)
    seen = np.flatnonzero(rows)
    weights, bias = np.zeros((len(seen), X.shape[1])), np.ones(len(seen))
    for i, k in enumerate(seen.tolist()):
        if rows[k] < len(y):  # else nothing to separate: a margin of 1 says that it applies
            model = _linear(classifier, C).fit(X, y[:, k] > 0)
            weights[i], bias[i] = model.coef_[0], model.intercept_[0]
    return seen, weights, bias


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        saved = json.loads((folder / "baseline.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "baseline.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"Cannot read the baseline in {folder}: {error}; train it again.") from error
    if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
        raise ArtifactError(
            f"{folder / 'baseline.json'} is not a baseline of format {_FORMAT}; train it again."
        )
    return saved, tensors


def _restored(vectorizer: Any, terms: list[str], idf: NDArray[np.float32]) -> Any:
    vectorizer.set_params(vocabulary={term: i for i, term in enumerate(terms)})
    vectorizer.idf_ = idf
    return vectorizer
