"""A finished run scored on a table it has not seen."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from snugtune.data.cells import label_cells
from snugtune.data.columns import Columns, level_cells
from snugtune.data.label_sets import read_label_sets, split_cell
from snugtune.errors import UserInputError
from snugtune.evaluate.drift import DriftTally
from snugtune.evaluate.levels import Level, all_level_scores
from snugtune.evaluate.metrics import UNSEEN, RowScores, row_metrics
from snugtune.evaluate.multilabel.assessment import outcomes
from snugtune.evaluate.multilabel.metrics import label_set_metrics, scored_rows
from snugtune.predict.alike import writer_like
from snugtune.predict.predictor import ROWS_PER_BATCH, Batch, Predictor, replace_columns
from snugtune.predict.summary import Summary
from snugtune.predict.table import survey
from snugtune.predict.write import check_output, write_tables
from snugtune.progress import Observer
from snugtune.table_url import hide_password

CORRECT = "correct"
"""What a per-row output adds to what ``predict`` adds; empty for rows that are not scored."""

CONFUSIONS = 10
"""The most frequent mistakes that are listed by name."""


def evaluate_table(
    predictor: Predictor,
    source: str | Path,
    *,
    text: Sequence[str] | None = None,
    label: str | Sequence[str] | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    rows_per_batch: int = ROWS_PER_BATCH,
    observer: Observer | None = None,
    reference: dict[str, Any] | None = None,
    summary: bool = True,
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
        label: label column (or columns, where a text may carry several labels), likewise.
        output: if given, the table is written there with the predicted columns and ``CORRECT`` added.
        overwrite: replace a file that is already there.
        rows_per_batch: rows read and held at a time.
        observer: is told of the phases and the rows done.
        reference: what `read_reference` found in the run's folder.
        summary: put a sheet of counts and charts into a workbook ``output``.
        **reading: ``sheet``, ``encoding`` and ``delimiter``, as for ``read_table``.

    Raises:
        UserInputError: the table cannot be read, a named column is missing, no row has a text, or the
            output cannot be written.
    """
    observer, source = observer or Observer(), hide_password(str(source))
    if output is not None:
        output = hide_password(str(output))
        check_output(output, overwrite=overwrite)
    texts, added = tuple(text or predictor.text_columns), (*predictor.added_names, CORRECT)
    found = survey(
        source, text=texts, output=output, more_columns=added if output is not None else (),
        observer=observer, **reading,
    )  # fmt: skip
    trained_on = Columns((), predictor.label_column)
    if label is None and set(trained_on.labels) <= set(found.columns):
        label = trained_on.label
    writer = None
    if output is not None:
        counts = Summary(texts, ignored=added, separator=predictor.labels.separator) if summary else None
        writer = writer_like(source, output, added, summary=counts, overwrite=overwrite, **reading)
    observer.phase("predict", found.rows)
    tally = (_SetTally if predictor.several else _Tally)(
        predictor, None if reference is None else DriftTally(reference)
    )
    frames = tally.frames(
        predictor.batches(
            source, text=text, label=label, rows_per_batch=rows_per_batch, observer=observer, **reading
        )
    )
    if output is not None:
        write_tables(frames, output, writer=writer)
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
class _LevelRows:
    """What is kept of rows to score the levels above their labels: ids, and cells by column."""

    y_true: list[NDArray[np.int64]] = field(default_factory=list)
    y_pred: list[NDArray[np.int64]] = field(default_factory=list)
    cells: dict[str, list[str]] = field(default_factory=dict)

    def add(
        self,
        batch: Batch,
        rows: NDArray[np.int64],
        y_true: NDArray[np.int64],
        y_pred: NDArray[np.int64],
        levels: Sequence[Level],
    ) -> None:
        there = [one.column for one in levels if one.column in batch.frame.columns]
        if not there:
            return
        self.y_true.append(y_true)
        self.y_pred.append(y_pred)
        for column, cells in level_cells(batch.frame, there, source="the table").items():
            self.cells.setdefault(column, []).extend(cells[i] for i in rows.tolist())

    def scores(self, levels: Sequence[Level]) -> list[dict[str, Any]]:
        if not self.y_true:
            return []
        return all_level_scores(levels, np.concatenate(self.y_true), np.concatenate(self.y_pred), self.cells)


@dataclass
class _Tally:
    """What is kept of the rows that have a text."""

    predictor: Predictor
    drift: DriftTally | None
    read: int = 0
    """Rows of the batches before this one."""
    rows: int = 0
    without_text: int = 0
    without_label: int = 0
    review: int = 0
    label_column: str | tuple[str, ...] | None = None
    predicted: Counter[str] = field(default_factory=Counter)
    unseen: Counter[str] = field(default_factory=Counter)
    scores: list[RowScores] = field(default_factory=list)
    levels: _LevelRows = field(default_factory=_LevelRows)

    def frames(self, batches: Iterator[Batch]) -> Iterator[pl.DataFrame]:
        """Count each batch and pass it on with the predicted columns and ``CORRECT`` added."""
        for batch in batches:
            yield self._count(batch)
            self.read += batch.frame.height

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
        return result | self._scored()

    def _scored(self) -> dict[str, Any]:
        """The metrics of all rows; empty if none can be scored."""
        scores, names = RowScores.joined(self.scores), self.predictor.labels.names
        if not len(scores):
            return {}
        metrics = row_metrics(scores, names)
        if self.predictor.levels:
            metrics["levels"] = self.levels.scores(self.predictor.levels)
        return {
            "metrics": metrics,
            "automated": self._automated(scores),
            "confusions": [
                {"label": names[true], "predicted": names[predicted], "rows": count}
                for true, predicted, count in metrics["confusion"][:CONFUSIONS]
            ],
        }

    def _count(self, batch: Batch) -> pl.DataFrame:
        added = self.predictor.added_columns(batch.texts, batch.probabilities)
        filled = np.array([bool(text.strip()) for text in batch.texts])
        self.rows += int(filled.sum())
        self.without_text += int((~filled).sum())
        self.review += int(added["needs_review"].to_numpy()[filled].sum())
        labels = self._labels(added["predicted_label"].filter(pl.Series(filled)).to_list())
        self.predicted.update(labels)
        if self.drift is not None:
            texts = [text for text, is_filled in zip(batch.texts, filled, strict=True) if is_filled]
            self.drift.add(texts, added["confidence"].to_numpy()[filled], labels)
        correct = self._score(batch, filled)
        return replace_columns(batch.frame, added.with_columns(correct))

    def _labels(self, cells: Sequence[str]) -> list[str]:
        """The labels in the predicted cells."""
        return list(cells)

    def _score(self, batch: Batch, filled: NDArray[np.bool_]) -> pl.Series:
        """Keep what the metrics need; whether each row is right, null where it is not scored."""
        correct: list[bool | None] = [None] * len(filled)
        self.label_column = batch.columns.label
        if self.label_column is not None:
            given = self._given(batch)
            rows = np.array(
                [i for i, one in enumerate(given) if one is not None and filled[i]], dtype=np.int64
            )
            y_true, unseen = self.predictor.labels.encode_given([given[i] for i in rows])
            self.without_label += int(filled.sum()) - len(rows)
            self.unseen.update(unseen)
            right = self._keep(batch, rows, y_true)
            for i, is_right in zip(rows.tolist(), right, strict=True):
                correct[i] = is_right
        return pl.Series(CORRECT, correct, dtype=pl.Boolean)

    def _given(self, batch: Batch) -> Sequence[Any]:
        """What each row is labelled; None where it is not."""
        # Only tables whose first row of data is row 1 hold cells that may be no text.
        row_of = partial(add, self.read + 1)
        cells = label_cells(batch.frame[batch.columns.labels[0]], row_of=row_of)
        return [cell or None for cell in cells]

    def _keep(self, batch: Batch, rows: NDArray[np.int64], y_true: NDArray[Any]) -> list[bool | None]:
        """Keep what the metrics need of ``rows``; whether each is right, None where its label is unseen."""
        probabilities = batch.probabilities[rows]
        self.scores.append(
            RowScores.of(y_true, probabilities.astype(np.float32), self.predictor.labels.names)
        )
        y_pred = probabilities.argmax(1)
        self.levels.add(batch, rows, y_true, y_pred, self.predictor.levels)
        pairs = zip(y_true.tolist(), y_pred.tolist(), strict=True)
        return [None if true == UNSEEN else true == predicted for true, predicted in pairs]

    def _automated(self, scores: RowScores) -> dict[str, Any]:
        """Of the scored rows: the share that needs no review, and how many of those are right."""
        sure = scores.confidence >= np.float32(self.predictor.confidence_threshold)
        right = scores.y_true[sure] == scores.y_pred[sure]
        return {
            "share": float(sure.mean()),
            "accuracy": float(right.mean()) if len(right) else None,
        }


@dataclass
class _SetTally(_Tally):
    """The same where a text may carry several labels: their ranking needs the probabilities of all."""

    y_true: list[NDArray[np.int8]] = field(default_factory=list)
    probabilities: list[NDArray[np.float32]] = field(default_factory=list)

    def _labels(self, cells: Sequence[str]) -> list[str]:
        return [name for cell in cells for name in split_cell(cell, self._separator)]

    def _given(self, batch: Batch) -> Sequence[Any]:
        return read_label_sets(batch.frame, batch.columns, self._separator, source="the table")

    def _keep(self, batch: Batch, rows: NDArray[np.int64], y_true: NDArray[Any]) -> list[bool | None]:
        probabilities = batch.probabilities[rows]
        self.y_true.append(y_true)
        self.probabilities.append(probabilities.astype(np.float32))
        exact = self.predictor.label_sets(probabilities).exact(y_true)
        pairs = zip(scored_rows(y_true), exact, strict=True)
        return [bool(is_right) if scored else None for scored, is_right in pairs]

    def _scored(self) -> dict[str, Any]:
        y_true = np.concatenate(self.y_true)
        if not scored_rows(y_true).any():
            return {}
        predicted = self.predictor.label_sets(np.concatenate(self.probabilities).astype(np.float64))
        told = outcomes(predicted, y_true).outcome(self.predictor.confidence_threshold)
        return {
            "metrics": label_set_metrics(y_true, predicted, self.predictor.labels.names),
            "automated": {"share": told["coverage"], "accuracy": told["precision"]},
            "confusions": [],
        }

    @property
    def _separator(self) -> str:
        separator = self.predictor.labels.separator
        assert separator is not None
        return separator
