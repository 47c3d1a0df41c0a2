"""A finished run scored on a table it has not seen."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from snugtune.errors import UserInputError
from snugtune.evaluate.drift import DriftTally
from snugtune.evaluate.metrics import UNSEEN, RowScores, row_metrics
from snugtune.predict.predictor import ADDED_COLUMNS, ROWS_PER_BATCH, Batch, Predictor, replace_columns
from snugtune.predict.table import survey
from snugtune.predict.write import check_output, write_tables
from snugtune.progress import Observer

PER_ROW_COLUMNS = (*ADDED_COLUMNS, "correct")
"""What a per-row output adds: ``correct`` is empty for rows that are not scored."""

CONFUSIONS = 10
"""The most frequent mistakes that are listed by name."""


def evaluate_table(
    predictor: Predictor,
    source: str | Path,
    *,
    text: Sequence[str] | None = None,
    label: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    rows_per_batch: int = ROWS_PER_BATCH,
    observer: Observer | None = None,
    reference: dict[str, Any] | None = None,
    **reading: Any,
) -> dict[str, Any]:
    """Metrics on the rows of ``source`` that have a text and a label the model knows.

    The table is read batch by batch: of each row a few numbers are held, neither text nor probabilities.
    Without a label column, or if no label of it was seen in training, there are no ``metrics``: only the
    predicted mix and the share for review are told. Rows without a label, and those of labels unseen in
    training (``unseen_labels``), are counted and not scored. ``drift`` tells how the texts and what is
    predicted of them differ from the run's own held-out rows; it needs no labels, and is None without a
    ``reference``.

    Args:
        predictor: a finished run.
        source: whatever ``read_table`` reads.
        text: text columns, if named otherwise than in training.
        label: label column, likewise.
        output: if given, the table is written there with ``PER_ROW_COLUMNS`` added.
        overwrite: replace a file that is already there.
        rows_per_batch: rows read and held at a time.
        observer: is told of the phases and the rows done.
        reference: what `read_reference` found in the run's folder.
        **reading: ``sheet``, ``encoding`` and ``delimiter``, as for ``read_table``.

    Raises:
        UserInputError: the table cannot be read, a named column is missing, no row has a text, or the
            output cannot be written.
    """
    observer = observer or Observer()
    if output is not None:
        check_output(output, overwrite=overwrite)
    found = survey(
        source, text=text or predictor.text_columns, output=output,
        more_columns=PER_ROW_COLUMNS if output is not None else (), observer=observer, **reading,
    )  # fmt: skip
    if label is None and predictor.label_column in found.columns:
        label = predictor.label_column
    observer.phase("predict", found.rows)
    tally = _Tally(predictor, None if reference is None else DriftTally(reference))
    frames = tally.frames(
        predictor.batches(
            source, text=text, label=label, rows_per_batch=rows_per_batch, observer=observer, **reading
        )
    )
    if output is not None:
        write_tables(frames, output)
    else:
        for _ in frames:
            pass
    if not tally.rows:
        raise UserInputError(f"{source} has no row with a text; check --text.")
    observer.phase("evaluate")
    return tally.result()


def read_reference(run: str | Path) -> dict[str, Any] | None:
    """What drift is measured against: ``reference.json`` of the folder ``run``; older runs have none.

    Raises:
        UserInputError: the file is there and cannot be read, or is of a later version.
    """
    path = Path(run) / "reference.json"
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        DriftTally(found)
    except (OSError, ValueError, KeyError, TypeError, zlib.error):
        raise UserInputError(
            f"{path} is damaged or of another version; remove it to go without the comparison."
        ) from None
    return found


@dataclass
class _Tally:
    """What is kept of the rows that have a text."""

    predictor: Predictor
    drift: DriftTally | None
    rows: int = 0
    without_text: int = 0
    without_label: int = 0
    review: int = 0
    label_column: str | None = None
    predicted: Counter[str] = field(default_factory=Counter)
    unseen: Counter[str] = field(default_factory=Counter)
    scores: list[RowScores] = field(default_factory=list)

    def frames(self, batches: Iterator[Batch]) -> Iterator[pl.DataFrame]:
        """Count each batch and pass it on with ``PER_ROW_COLUMNS`` added."""
        for batch in batches:
            yield self._count(batch)

    def result(self) -> dict[str, Any]:
        """Counts, and metrics if a row can be scored; JSON-ready."""
        result: dict[str, Any] = {
            "rows": self.rows,
            "rows_without_text": self.without_text,
            "label_column": self.label_column,
            "review_share": self.review / self.rows,
            "predicted": dict(self.predicted.most_common()),
            "drift": None if self.drift is None else self.drift.result(),
        }
        if self.label_column is None:
            return result
        result["rows_without_label"] = self.without_label
        result["unseen_labels"] = dict(self.unseen.most_common())
        scores, names = RowScores.joined(self.scores), self.predictor.labels.names
        if not len(scores):
            return result
        result["metrics"] = row_metrics(scores, names)
        result["automated"] = self._automated(scores)
        result["confusions"] = [
            {"label": names[true], "predicted": names[predicted], "rows": count}
            for true, predicted, count in result["metrics"]["confusion"][:CONFUSIONS]
        ]
        return result

    def _count(self, batch: Batch) -> pl.DataFrame:
        added = self.predictor.added_columns(batch.texts, batch.probabilities)
        filled = np.array([bool(text.strip()) for text in batch.texts])
        self.rows += int(filled.sum())
        self.without_text += int((~filled).sum())
        self.review += int(added["needs_review"].to_numpy()[filled].sum())
        labels = added["predicted_label"].filter(pl.Series(filled)).to_list()
        self.predicted.update(labels)
        if self.drift is not None:
            texts = [text for text, is_filled in zip(batch.texts, filled, strict=True) if is_filled]
            self.drift.add(texts, batch.probabilities[filled].max(1, initial=0.0), labels)
        correct = self._score(batch, filled)
        return replace_columns(batch.frame, added.with_columns(correct))

    def _score(self, batch: Batch, filled: NDArray[np.bool_]) -> pl.Series:
        """Keep what the metrics need; whether each row is right, null where it is not scored."""
        correct: list[bool | None] = [None] * len(filled)
        self.label_column = batch.columns.label
        if self.label_column is not None:
            values = batch.frame[self.label_column].to_list()
            given = ["" if value is None else str(value).strip() for value in values]
            rows = np.array([i for i, name in enumerate(given) if name and filled[i]], dtype=np.int64)
            labels = [given[i] for i in rows]
            y_true = self.predictor.labels.encode(labels)
            self.without_label += int(filled.sum()) - len(rows)
            self.unseen.update(self.predictor.labels.unseen(labels))
            of_rows = batch.probabilities[rows].astype(np.float32)
            self.scores.append(RowScores.of(y_true, of_rows, self.predictor.labels.names))
            y_pred = batch.probabilities[rows].argmax(1)
            for i, true, predicted in zip(rows.tolist(), y_true.tolist(), y_pred.tolist(), strict=True):
                correct[i] = None if true == UNSEEN else true == predicted
        return pl.Series("correct", correct, dtype=pl.Boolean)

    def _automated(self, scores: RowScores) -> dict[str, Any]:
        """Of the scored rows: the share that needs no review, and how many of those are right."""
        sure = scores.confidence >= np.float32(self.predictor.confidence_threshold)
        right = scores.y_true[sure] == scores.y_pred[sure]
        return {
            "share": float(sure.mean()),
            "accuracy": float(right.mean()) if len(right) else None,
        }
