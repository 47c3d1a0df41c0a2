"""A finished run scored on a table it has not seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snugtune.data.columns import choose_columns, join_texts
from snugtune.data.table import read_table
from snugtune.errors import UserInputError
from snugtune.evaluate.metrics import classification_metrics
from snugtune.predict.predictor import Predictor


def evaluate_table(
    predictor: Predictor,
    source: str | Path,
    *,
    text: Sequence[str] | None = None,
    label: str | None = None,
    **reading: Any,
) -> dict[str, Any]:
    """Metrics on the rows of ``source`` that have a text and a label the model knows.

    Without a label column only the predicted mix and the share for review are told. Labels unseen in
    training are counted under ``unseen_labels``, and their rows are not scored.

    Raises:
        UserInputError: the table cannot be read, a named column is missing, or no row has a text.
    """
    frame = read_table(source, **reading).frame
    known = label or (predictor.label_column if predictor.label_column in frame.columns else None)
    columns = choose_columns(
        frame, source=str(source), text=text or predictor.text_columns, label=known, need_label=False
    )
    texts = join_texts(frame, columns.text)
    rows = np.array([i for i, value in enumerate(texts) if value.strip()], dtype=np.int64)
    if not len(rows):
        raise UserInputError(f"{source} has no row with a text in {', '.join(columns.text)}; check --text.")
    probabilities = predictor.probabilities([texts[i] for i in rows])
    predicted = Counter(predictor.labels.names[i] for i in probabilities.argmax(1))
    result: dict[str, Any] = {
        "rows": len(rows),
        "rows_without_text": frame.height - len(rows),
        "review_share": float((probabilities.max(1) < predictor.confidence_threshold).mean()),
        "predicted": dict(predicted.most_common()),
    }
    if columns.label is None:
        return result
    given = ["" if value is None else str(value).strip() for value in frame[columns.label].to_list()]
    labels = [given[i] for i in rows]
    y_true = predictor.labels.encode(labels)
    result["unseen_labels"] = {k: n for k, n in predictor.labels.unseen(labels).items() if k}
    if (y_true < 0).all():
        raise UserInputError(
            f"No label in column '{columns.label}' of {source} was seen in training; check --label."
        )
    result["metrics"] = classification_metrics(y_true, probabilities, predictor.labels.names)
    return result
