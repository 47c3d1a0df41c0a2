"""From a text's probabilities to what goes over the wire: the same decisions that ``predict`` writes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.data.label_sets import join_label_sets
from snugtune.predict.predictor import Predictor
from snugtune.serve.engine import Answer


def predictions(answer: Answer, *, raw_scores: bool) -> list[dict[str, Any]]:
    """Every label with its score, the highest first: probabilities, or the model's logits."""
    scores = answer.logits if raw_scores else answer.probabilities
    names = answer.engine.predictor.labels.names
    values = scores.tolist()
    return [{"score": values[k], "label": names[k]} for k in _order(scores)]


def classified(text: str, answer: Answer, *, top_k: int, threshold: float | None) -> dict[str, Any]:
    """The decision on ``text``; ``threshold`` None is the run's own."""
    predictor = answer.engine.predictor
    labels, confidence = _given(predictor, answer.probabilities)
    limit = predictor.confidence_threshold if threshold is None else threshold
    names, values = predictor.labels.names, answer.probabilities.tolist()
    separator = predictor.labels.separator
    label = labels[0] if separator is None else join_label_sets([labels], separator)[0]
    return {
        "label": label,
        "labels": labels,
        "confidence": confidence,
        "needs_review": confidence < limit or not text.strip(),
        "top": [{"label": names[k], "probability": values[k]} for k in _order(answer.probabilities)[:top_k]],
    }


def _given(predictor: Predictor, probabilities: NDArray[np.float64]) -> tuple[list[str], float]:
    if predictor.several:
        predicted = predictor.label_sets(probabilities[None])
        (names,) = predictor.labels.decode_sets(predicted.labels)
        return list(names), float(predicted.confidence[0])
    best = int(probabilities.argmax())
    return [predictor.labels.names[best]], float(probabilities[best])


def _order(scores: NDArray[Any]) -> list[int]:
    order: list[int] = np.argsort(-scores, kind="stable").tolist()
    return order
