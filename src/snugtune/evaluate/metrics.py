"""Classification metrics with their uncertainty, as values that can be written to JSON as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.errors import UserInputError
from snugtune.evaluate.calibration import expected_calibration_error

UNSEEN = -1
"""Class id of a row whose label is blank or was never seen in training."""

_MIN_ROWS_FOR_ALARM = 10  # fewer rows than this may well all belong to one class
_Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal
_CHUNK_CELLS = 4_000_000  # resampled cells held at a time: 32 MB

Floats = NDArray[np.floating[Any]]
Counts = NDArray[np.int64]


def classification_metrics(
    y_true: NDArray[np.int64],
    pred_probs: Floats,
    label_names: Sequence[str],
    *,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every metric of the report, from class ids ``y_true (N,)`` and ``pred_probs (N, K)``.

    Rows with ``y_true == -1`` (blank label, or one unseen in training) cannot be right; they are not scored
    but counted in ``rows_unseen_label``. Macro averages run over the classes that occur in ``y_true`` or in
    the predictions, as in scikit-learn. ``confusion`` lists the mistakes as ``[true_id, pred_id, count]``,
    most frequent first. ``intervals`` holds 95 % percentile bootstrap intervals over rows (Efron & Tibshirani
    1993, An Introduction to the Bootstrap, ch. 13); it is empty if no bootstrap samples are asked for. Those
    of a class in ``per_class`` are Wilson's, which hold for few rows, too.

    Raises:
        ValueError: shapes disagree, an id is out of range or a probability is not finite.
        UserInputError: no row has a known label.
    """
    rows = RowScores.of(y_true, pred_probs, label_names)
    return row_metrics(rows, label_names, bootstrap_samples=bootstrap_samples, seed=seed)


@dataclass(frozen=True)
class RowScores:
    """All that the metrics need of rows with a known label: N numbers each instead of N x K.

    Class ids ``y_true`` and ``y_pred`` (N,), the probabilities of the predicted class (``confidence``) and of
    the true one (``of_truth``); and how many rows have a label unseen in training.
    """

    y_true: NDArray[np.int64]
    y_pred: NDArray[np.int64]
    confidence: Floats
    of_truth: Floats
    unseen: int

    @classmethod
    def of(cls, y_true: NDArray[np.int64], pred_probs: Floats, label_names: Sequence[str]) -> RowScores:
        """From class ids ``(N,)`` (-1: unseen) and ``pred_probs (N, K)``.

        Raises:
            ValueError: shapes disagree, an id is out of range or a probability is not finite.
        """
        _check_inputs(y_true, pred_probs, label_names)
        scored = np.flatnonzero(y_true != UNSEEN)
        truth = y_true[scored]
        return cls(
            truth,
            pred_probs.argmax(axis=1)[scored].astype(np.int64),
            pred_probs.max(axis=1)[scored],
            pred_probs[scored, truth],
            len(y_true) - len(scored),
        )

    @classmethod
    def joined(cls, parts: Sequence[RowScores]) -> RowScores:
        """The rows of all ``parts`` (at least one), in their order."""
        return cls(
            np.concatenate([part.y_true for part in parts]),
            np.concatenate([part.y_pred for part in parts]),
            np.concatenate([part.confidence for part in parts]),
            np.concatenate([part.of_truth for part in parts]),
            sum(part.unseen for part in parts),
        )

    def __len__(self) -> int:
        return len(self.y_true)


def row_metrics(
    rows: RowScores, label_names: Sequence[str], *, bootstrap_samples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """``classification_metrics`` of rows whose scores are known.

    Raises:
        UserInputError: there are none.
    """
    if not len(rows):
        raise UserInputError(
            f"None of the {rows.unseen} rows has a label seen in training, so nothing can be scored; "
            "check the label column of this table against the training table."
        )
    truth, y_pred = rows.y_true, rows.y_pred
    counts = ClassCounts.of(truth, y_pred, len(label_names))
    return {
        "rows": len(truth),
        "rows_unseen_label": rows.unseen,
        "accuracy": float((truth == y_pred).mean()),
        **_averages(counts),
        "log_loss": _log_loss(rows.of_truth),
        "ece": expected_calibration_error(rows.confidence, truth == y_pred),
        "intervals": _intervals(truth, y_pred, len(label_names), bootstrap_samples, seed),
        "per_class": per_class(counts, label_names),
        "confusion": [cell for cell in confusion_matrix_sparse(truth, y_pred) if cell[0] != cell[1]],
    }


def confusion_matrix_sparse(y_true: NDArray[np.int64], y_pred: NDArray[np.int64]) -> list[list[int]]:
    """The non-empty cells of the confusion matrix as ``[true_id, pred_id, count]``, most frequent first."""
    cells, counts = _cells(y_true, y_pred)
    order = np.lexsort((cells[:, 1], cells[:, 0], -counts))
    return [
        [int(true), int(pred), int(count)]
        for (true, pred), count in zip(cells[order], counts[order], strict=True)
    ]


def single_class_alarm(y_pred: NDArray[np.int64], K: int) -> str | None:
    """One sentence if every prediction is the same one of ``K`` classes: the sign of a collapsed model."""
    if K < 2 or len(y_pred) < _MIN_ROWS_FOR_ALARM or (y_pred != y_pred[0]).any():
        return None
    return (
        f"All {len(y_pred):,} predictions are class {int(y_pred[0])} of {K}: the model has collapsed; "
        "lower the learning rate or train longer."
    )


def log_loss(y_true: NDArray[np.int64], pred_probs: Floats) -> float:
    """Mean negative log-likelihood in nats; probabilities are clipped at float64's epsilon."""
    return _log_loss(pred_probs[np.arange(len(y_true)), y_true])


def _log_loss(of_truth: Floats) -> float:
    return float(-np.log(of_truth.astype(np.float64).clip(np.finfo(np.float64).eps, 1.0)).mean())


def macro_f1(hits: NDArray[Any], support: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.float64]:
    """Macro F1 from counts of shape ``(..., K)``; classes neither true nor predicted do not count."""
    total = support + predicted
    return _ratio(_ratio(2 * hits, total).sum(axis=-1), (total > 0).sum(axis=-1))


@dataclass(frozen=True)
class ClassCounts:
    """Per class ``(K,)``: rows predicted rightly, rows that are of it, rows predicted to be of it."""

    hits: Counts
    support: Counts
    predicted: Counts

    @classmethod
    def of(cls, y_true: NDArray[np.int64], y_pred: NDArray[np.int64], K: int) -> ClassCounts:
        """Count class ids ``(N,)``."""
        hits = y_true[y_true == y_pred]
        return cls(*(np.bincount(ids, minlength=K).astype(np.int64) for ids in (hits, y_true, y_pred)))

    def scores(self) -> dict[str, NDArray[np.float64]]:
        """Precision, recall and F1 per class ``(K,)``; 0 where a denominator is 0."""
        return {
            "precision": _ratio(self.hits, self.predicted),
            "recall": _ratio(self.hits, self.support),
            "f1": _ratio(2 * self.hits, self.support + self.predicted),
        }


def _check_inputs(y_true: NDArray[np.int64], pred_probs: Floats, label_names: Sequence[str]) -> None:
    expected = (len(y_true), len(label_names))
    if y_true.ndim != 1 or pred_probs.shape != expected:
        raise ValueError(f"pred_probs must have shape (N, K) = {expected}, got {pred_probs.shape}.")
    if len(y_true) and not UNSEEN <= y_true.min() <= y_true.max() < len(label_names):
        raise ValueError(
            f"y_true must lie in -1..{len(label_names) - 1}, got {y_true.min()}..{y_true.max()}."
        )
    if not np.isfinite(pred_probs).all():
        raise ValueError("pred_probs must be finite, got NaN or infinity: the model has diverged.")


def _averages(counts: ClassCounts) -> dict[str, float]:
    present = counts.support + counts.predicted > 0
    # With one label per row, every wrong row is one false positive and one false negative.
    accuracy = float(counts.hits.sum() / counts.support.sum())
    averages: dict[str, float] = {}
    for name, score in counts.scores().items():
        averages[f"{name}_macro"] = float(score[present].mean())
        averages[f"{name}_weighted"] = float(np.average(score, weights=counts.support))
        averages[f"{name}_micro"] = accuracy
    return averages


def per_class(counts: ClassCounts, label_names: Sequence[str]) -> list[dict[str, Any]]:
    """``per_class`` of a part's metrics: scores of each class with their intervals."""
    scores = {name: score.tolist() for name, score in counts.scores().items()}
    hits, support, predicted = (array.tolist() for array in (counts.hits, counts.support, counts.predicted))
    return [
        {
            "label": label,
            **{name: score[k] for name, score in scores.items()},
            "support": support[k],
            "predicted": predicted[k],
            "intervals": _class_intervals(hits[k], support[k], predicted[k]),
        }
        for k, label in enumerate(label_names)
    ]


def wilson_interval(hits: int, rows: int) -> list[float]:
    """95 % score interval of a rate, ``[low, high]`` (Wilson 1927); ``[0, 1]`` for no rows.

    Unlike the bootstrap it says something of a class with three rows, all of them right.
    """
    if not rows:
        return [0.0, 1.0]
    rate, z2 = hits / rows, _Z_95**2
    middle = (rate + z2 / (2 * rows)) / (1 + z2 / rows)
    reach = _Z_95 * math.sqrt(rate * (1 - rate) / rows + z2 / (4 * rows**2)) / (1 + z2 / rows)
    return [0.0 if hits == 0 else middle - reach, 1.0 if hits == rows else middle + reach]


def _class_intervals(hits: int, support: int, predicted: int) -> dict[str, list[float]]:
    """Of precision, recall and F1.

    F1 is ``2 J / (1 + J)`` of the share J of hits among the rows that are of the class or predicted to be:
    J's interval, transformed (the indirect Wilson interval of Lam, Gopal & Qian 2023, arXiv:2309.14621).
    """
    overlap = wilson_interval(hits, support + predicted - hits)
    return {
        "precision": wilson_interval(hits, predicted),
        "recall": wilson_interval(hits, support),
        "f1": [2 * share / (1 + share) for share in overlap],
    }


def _intervals(
    y_true: NDArray[np.int64], y_pred: NDArray[np.int64], K: int, samples: int, seed: int
) -> dict[str, list[float]]:
    if samples < 1:
        return {}
    cells, counts = _cells(y_true, y_pred)
    resampled = [resampled_scores(cells, drawn, K) for drawn in resamples(counts, samples, seed)]
    accuracy, f1 = np.concatenate(resampled, axis=1)
    return {
        "accuracy": np.quantile(accuracy, [0.025, 0.975]).tolist(),
        "f1_macro": np.quantile(f1, [0.025, 0.975]).tolist(),
    }


def _cells(y_true: NDArray[np.int64], y_pred: NDArray[np.int64]) -> tuple[Counts, Counts]:
    """Non-empty cells ``(M, 2)`` of the confusion matrix, sorted, and their counts ``(M,)``."""
    if not len(y_true):
        return np.empty((0, 2), np.int64), np.empty(0, np.int64)
    cells, counts = np.unique(np.stack([y_true, y_pred], axis=1), axis=0, return_counts=True)
    return cells, counts.astype(np.int64)


def resamples(counts: Counts, samples: int, seed: int) -> Iterator[Counts]:
    """Cell counts ``(B, M)`` of bootstrap samples, in chunks.

    Drawing N rows with replacement is a multinomial draw over the cells; it costs the same for any N.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // len(counts))
    for start in range(0, samples, chunk):
        yield rng.multinomial(counts.sum(), counts / counts.sum(), size=min(chunk, samples - start))


def resampled_scores(cells: Counts, drawn: Counts, K: int) -> NDArray[np.float64]:
    """Accuracy and macro F1 ``(2, B)`` of the resampled confusion matrices ``drawn (B, M)``."""
    right = cells[:, 0] == cells[:, 1]
    hits = _sum_by_class(drawn[:, right], cells[right, 0], K)
    support, predicted = (_sum_by_class(drawn, cells[:, side], K) for side in (0, 1))
    return np.stack([hits.sum(axis=1) / support.sum(axis=1), macro_f1(hits, support, predicted)])


def _sum_by_class(drawn: Counts, ids: Counts, K: int) -> NDArray[np.float64]:
    """Sum columns of ``drawn (B, M)`` by the class ``ids (M,)`` of each: ``(B, K)``."""
    bins = np.arange(len(drawn))[:, None] * K + ids
    sums = np.bincount(bins.ravel(), weights=drawn.ravel(), minlength=len(drawn) * K)
    return np.asarray(sums, np.float64).reshape(len(drawn), K)


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """``part / whole``, and 0 where ``whole`` is 0."""
    ratio = np.zeros(np.shape(whole), np.float64)
    np.divide(part, whole, out=ratio, where=np.asarray(whole) > 0)
    return ratio
