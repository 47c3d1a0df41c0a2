"""From the files the user names to cleaned, encoded, split data: what every later step works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from snugtune.config import FitConfig
from snugtune.data.columns import Columns, choose_columns, join_texts
from snugtune.data.duplicates import near_duplicate_groups
from snugtune.data.labels import CleaningPolicy, CleanResult, LabelSet, clean
from snugtune.data.split import PARTS, Split, split_rows
from snugtune.data.table import read_table
from snugtune.errors import UserInputError
from snugtune.progress import Observer

MAX_VALIDATION_ROWS = 10_000
"""Past it the validation score is known to half a point, and each look at it costs training time."""


@dataclass(frozen=True)
class Part:
    """Rows of one part: where they stand in their file (0-based data rows), their texts and class ids (N,).

    A class id of -1 marks a label unseen in training.
    """

    rows: NDArray[np.int64]
    texts: list[str]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Data:
    """Cleaned, split data.

    ``first_row`` is the row, in the training file as a spreadsheet counts, of data row 0; ``overlap`` is how
    many rows of a separate test file are near-duplicates of training rows.
    """

    parts: dict[str, Part]
    labels: LabelSet
    columns: Columns
    cleaning: dict[str, Any]
    first_row: int
    overlap: int | None = None

    def file_rows(self, part: str, indices: NDArray[np.int64]) -> list[int]:
        """The rows of ``part`` at ``indices`` as the user's spreadsheet program numbers them."""
        return [int(row) + self.first_row for row in self.parts[part].rows[indices]]


def load_data(config: FitConfig, observer: Observer | None = None) -> Data:
    """Read, clean and split the tables ``config`` names, telling what was found.

    Raises:
        UserInputError: a table cannot be read, or what is left of it is no classification problem.
    """
    observer = observer or Observer()
    observer.phase("data")
    columns, cleaned, first_row = _read_clean(config)
    for sentence in cleaned.report.sentences():
        observer.say(sentence)
    labels = LabelSet(tuple(sorted(set(cleaned.labels))), cleaned.report.aliases)
    y = labels.encode(cleaned.labels)
    split = split_rows(
        y, near_duplicate_groups(cleaned.texts), seed=config.seed,
        validation=config.validation_fraction, max_validation=MAX_VALIDATION_ROWS,
        test=0.0 if config.test else config.test_fraction,
    )  # fmt: skip
    data = Data(_parts(split, cleaned, y), labels, columns, cleaned.report.as_dict(), first_row)
    _check_validation(data)
    return _with_test_file(data, config, observer) if config.test else data


def _read_clean(config: FitConfig) -> tuple[Columns, CleanResult, int]:
    table = read_table(config.train, sheet=config.sheet, encoding=config.encoding, delimiter=config.delimiter)
    columns = choose_columns(table.frame, source=table.source, text=config.text, label=config.label)
    policy = CleaningPolicy(
        duplicates=config.duplicates,
        conflicts=config.conflicts,
        merge_label_variants=config.merge_label_variants,
        min_class_count=config.min_class_count,
    )
    texts, given = join_texts(table.frame, columns.text), _label_texts(table.frame, columns)
    return columns, clean(texts, given, policy, source=table.source), table.first_row


def _label_texts(frame: pl.DataFrame, columns: Columns) -> list[str]:
    assert columns.label is not None
    return ["" if value is None else str(value).strip() for value in frame[columns.label].to_list()]


def _parts(split: Split, cleaned: CleanResult, y: NDArray[np.int64]) -> dict[str, Part]:
    chosen = {name: split.indices(name) for name in PARTS}
    return {
        name: Part(cleaned.row[rows], [cleaned.texts[i] for i in rows], y[rows])
        for name, rows in chosen.items()
    }


def _check_validation(data: Data) -> None:
    if not len(data.parts["validation"]):
        raise UserInputError(
            f"Only {len(data.parts['train'])} usable rows: too few to hold some back for validation; "
            "add rows, or raise --validation-fraction."
        )


def _with_test_file(data: Data, config: FitConfig, observer: Observer) -> Data:
    """The test file as it is: only rows with no text or no label are left out."""
    assert config.test is not None
    table = read_table(
        config.test, sheet=config.test_sheet, encoding=config.encoding, delimiter=config.delimiter
    )
    columns = choose_columns(
        table.frame, source=table.source, text=data.columns.text, label=data.columns.label
    )
    texts, given = join_texts(table.frame, columns.text), _label_texts(table.frame, columns)
    rows = np.array([i for i, text in enumerate(texts) if text.strip() and given[i]], dtype=np.int64)
    if not len(rows):
        raise UserInputError(
            f"The test file {config.test} has no row with both a text and a label; check it."
        )
    labels = [given[i] for i in rows]
    test = Part(rows, [texts[i].strip() for i in rows], data.labels.encode(labels))
    if len(rows) < len(texts):
        observer.say(
            f"{len(texts) - len(rows):,} rows of {config.test} without a text or a label are left out."
        )
    if unseen := data.labels.unseen(labels):
        observer.say(
            f"{sum(unseen.values()):,} rows of {config.test} carry {len(unseen):,} labels unseen in "
            "training; they are predicted but not scored."
        )
    if (test.y < 0).all():
        raise UserInputError(
            f"No label of the test file {config.test} occurs in {config.train}; check --label and --test."
        )
    overlap = overlapping_rows(data.parts["train"].texts, test.texts)
    if overlap:
        observer.say(
            f"{overlap:,} rows of {config.test} are near-duplicates of training rows: "
            "scores on them flatter the model."
        )
    return Data(
        {**data.parts, "test": test}, data.labels, data.columns, data.cleaning, data.first_row, overlap
    )


def overlapping_rows(train_texts: Sequence[str], test_texts: Sequence[str]) -> int:
    """How many of ``test_texts`` are near-duplicates of one of ``train_texts``."""
    groups = near_duplicate_groups([*train_texts, *test_texts])
    return int(np.isin(groups[len(train_texts) :], groups[: len(train_texts)]).sum())
