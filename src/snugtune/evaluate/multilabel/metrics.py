"""Metrics of predicted label sets with their uncertainty; those scikit-learn has are its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.metrics import (
    average_precision_score,
    hamming_loss,
    label_ranking_average_precision_score,
    precision_recall_fscore_support,
)

from snugtune.errors import UserInputError
from snugtune.evaluate.calibration import expected_calibration_error
from snugtune.evaluate.metrics import ClassCounts, macro_f1, per_class

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
Sets = NDArray[np.int8]
"""Label sets (N, K): 1 where a label applies, else 0; a row of -1 has only labels unseen in training."""

_CHUNK_CELLS = 4_000_000  # row weights held at a time: 32 MB


@dataclass(frozen=True)
class PredictedSets:
    """What is said of N texts: ``probabilities`` (N, K) of the labels, the ``labels`` given (N, K), and the
    ``confidence`` (N,) that they are exactly right.
    """

    probabilities: Floats
    labels: Bools
    confidence: Floats

    def rows(self, chosen: Bools) -> PredictedSets:
        """Those of some rows."""
        return PredictedSets(self.probabilities[chosen], self.labels[chosen], self.confidence[chosen])

    def exact(self, y_true: Sets) -> Bools:
        """Whether the labels of each row are exactly those of ``y_true`` (N, K)."""
        return np.asarray((self.labels == (y_true > 0)).all(axis=1))


def scored_rows(y_true: Sets) -> Bools:
    """Rows (N,) with a label seen in training, or with none at all."""
    return np.asarray((y_true >= 0).all(axis=1))


def label_set_metrics(
    y_true: Sets,
    predicted: PredictedSets,
    label_names: Sequence[str],
    *,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every metric of the report, from label sets ``y_true`` (N, K) and what was predicted of these rows.

    ``accuracy`` is scikit-learn's for label sets: the share of rows whose labels are all right (subset
    accuracy). Macro averages run over the labels that occur in ``y_true`` or in the predictions. ``log_loss``
    is that of one label's yes or no. ``ece`` is that of the confidence. Intervals are as in
    `classification_metrics`.

    Raises:
        ValueError: shapes disagree or a probability is not finite.
        UserInputError: no row has a label seen in training.
    """
    _check(y_true, predicted, label_names)
    scored = scored_rows(y_true)
    if not scored.any():
        raise UserInputError(
            f"None of the {len(y_true)} rows has a label seen in training, so nothing can be scored; "
            "check the labels of this table against those of the training table."
        )
    truth, told = y_true[scored], predicted.rows(scored)
    exact, counts = told.exact(truth), set_counts(truth, told.labels)
    return {
        "rows": len(truth),
        "rows_unseen_label": int((~scored).sum()),
        "accuracy": float(exact.mean()),
        "hamming_loss": float(hamming_loss(truth, told.labels)),
        **_averages(truth, told.labels, counts),
        "lrap": float(label_ranking_average_precision_score(truth, told.probabilities)),
        **_average_precisions(truth, told.probabilities),
        "log_loss": sigmoid_log_loss(truth, told.probabilities),
        "ece": expected_calibration_error(told.confidence, exact),
        "labels_per_row": {
            "true": float(truth.sum(axis=1).mean()),
            "predicted": float(told.labels.sum(1).mean()),
        },
        "intervals": _intervals(truth, told.labels, bootstrap_samples, seed),
        "per_class": _per_label(truth, told.probabilities, counts, label_names),
    }


def set_counts(y_true: Sets, y_pred: NDArray[Any]) -> ClassCounts:
    """Per label (K,): rows in which it is given rightly, applies, and is given."""
    true, pred = y_true > 0, y_pred > 0
    return ClassCounts(*(cells.sum(axis=0).astype(np.int64) for cells in (true & pred, true, pred)))


def sigmoid_log_loss(y_true: Sets, probabilities: Floats) -> float:
    """Mean negative log-likelihood of a label's yes or no, in nats; clipped at float64's epsilon."""
    of_truth = np.where(y_true > 0, probabilities, 1 - probabilities).astype(np.float64)
    return float(-np.log(of_truth.clip(np.finfo(np.float64).eps, 1.0)).mean())


def resampled_scores(
    y_true: Sets, predictions: Sequence[NDArray[Any]], samples: int, seed: int
) -> NDArray[np.float64]:
    """Accuracy, micro F1 and macro F1 of each of P ``predictions`` (N, K) in bootstrap samples: (P, 3, B).

    All of them see the same rows in each sample.
    """
    found = [_Resampled(y_true, y_pred) for y_pred in predictions]
    draws = (weights for weights in _row_weights(len(y_true), samples, seed))
    return np.concatenate([np.stack([one.scores(weights) for one in found]) for weights in draws], axis=2)


class _Resampled:
    """One prediction as sparse indicators, so that a sample's counts are a product with its row weights."""

    def __init__(self, y_true: Sets, y_pred: NDArray[Any]) -> None:
        true, pred = y_true > 0, y_pred > 0
        self.exact = (true == pred).all(axis=1).astype(np.float64)
        self.hits, self.true, self.pred = (
            csr_array(cells.astype(np.float64)) for cells in (true & pred, true, pred)
        )

    def scores(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Accuracy, micro F1 and macro F1 (3, B) of the samples ``weights`` (B, N)."""
        hits, support, predicted = (weights @ cells for cells in (self.hits, self.true, self.pred))
        total = support.sum(axis=1) + predicted.sum(axis=1)
        micro = 2 * hits.sum(axis=1) / np.maximum(total, 1)
        return np.stack(
            [weights @ self.exact / weights.sum(axis=1), micro, macro_f1(hits, support, predicted)]
        )


def _row_weights(rows: int, samples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each row is drawn in each bootstrap sample: (B, N), in chunks."""
    rng, chunk = np.random.default_rng(seed), max(1, _CHUNK_CELLS // rows)
    for start in range(0, samples, chunk):
        size = min(chunk, samples - start)
        yield rng.multinomial(rows, np.full(rows, 1 / rows), size=size).astype(np.float64)


def _averages(truth: Sets, y_pred: Bools, counts: ClassCounts) -> dict[str, float]:
    present = np.flatnonzero(counts.support + counts.predicted)
    averages: dict[str, float] = {}
    for kind in ("macro", "weighted", "micro", "samples"):
        labels = present if kind == "macro" and len(present) else None
        scores = precision_recall_fscore_support(
            truth, y_pred, average=kind, labels=labels, zero_division=0.0
        )[:3]
        averages |= {
            f"{name}_{kind}": float(s) for name, s in zip(("precision", "recall", "f1"), scores, strict=True)
        }
    return averages


def _average_precisions(truth: Sets, probabilities: Floats) -> dict[str, float | None]:
    present = truth.any(axis=0)
    if not present.any():
        return {"average_precision_macro": None, "average_precision_micro": None}
    return {
        f"average_precision_{kind}": float(
            average_precision_score(truth[:, present], probabilities[:, present], average=kind)
        )
        for kind in ("macro", "micro")
    }


def _per_label(
    truth: Sets, probabilities: Floats, counts: ClassCounts, label_names: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {
            **row,
            "average_precision": float(average_precision_score(truth[:, k], probabilities[:, k]))
            if row["support"]
            else None,
        }
        for k, row in enumerate(per_class(counts, label_names))
    ]


def _intervals(truth: Sets, y_pred: Bools, samples: int, seed: int) -> dict[str, list[float]]:
    if samples < 1:
        return {}
    (scores,) = resampled_scores(truth, [y_pred], samples, seed)
    low, high = np.quantile(scores, [0.025, 0.975], axis=1)
    names = ("accuracy", "f1_micro", "f1_macro")
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(names)}


def _check(y_true: Sets, predicted: PredictedSets, label_names: Sequence[str]) -> None:
    expected = (len(y_true), len(label_names))
    for name, cells in (
        ("y_true", y_true),
        ("probabilities", predicted.probabilities),
        ("labels", predicted.labels),
    ):
        if cells.shape != expected:
            raise ValueError(f"{name} must have shape (N, K) = {expected}, got {cells.shape}.")
    if not np.isfinite(predicted.probabilities).all():
        raise ValueError("probabilities must be finite, got NaN or infinity: the model has diverged.")
