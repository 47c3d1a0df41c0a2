"""Spreadsheets of labelled texts that join the training rows: ``fit --add next.xlsx``.

They are as a rule what ``snugtune select`` or ``snugtune weak-label`` wrote, with the column ``label`` filled
in. Rows without a label are passed over. A label that the training table does not have becomes a class more,
unless it looks like a known one with a typing mistake.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from snugtune.data.cells import label_cells
from snugtune.data.columns import Columns, join_texts
from snugtune.data.label_sets import read_label_sets, split_cell
from snugtune.data.labels import LabelSet, fold, merge_variants
from snugtune.data.part import Part
from snugtune.data.reviews import Reviewed, read_reviews
from snugtune.data.table import Table, read_table, reading_beside
from snugtune.data.to_label import LABEL, TEXT
from snugtune.errors import UserInputError
from snugtune.table_url import is_table_url

SQLITE = b"SQLite format 3\x00"
"""What every SQLite file begins with: https://www.sqlite.org/fileformat.html, section 1.2."""

LIKE_A_TYPO = 0.87
"""Similarity (difflib) from which on a new label passes for a known one with a typing mistake."""


def read_additions(
    path: str, columns: Columns, labels: LabelSet, *, encoding: str | None = None
) -> list[Reviewed]:
    """Texts with labels from ``path``: decisions of the review page, or the rows of a table.

    A table has the text and label columns of the training table (``columns``), or ``text`` and ``label``.
    ``encoding`` is that of the training table; a text file that is UTF-8 needs none.

    Raises:
        UserInputError: it cannot be read, has no such columns, or no row with a text and a label.
    """
    if not is_labelled_table(path):
        return read_reviews(path)
    read = read_table(path, encoding=reading_beside(path, (), encoding=encoding, delimiter=None)["encoding"])
    texts = [text.strip() for text in _texts_of(read, columns)]
    given = _labels_of(read, columns, labels)
    found = [Reviewed(text, of) for text, of in zip(texts, given, strict=True) if text and of is not None]
    if not found:
        raise UserInputError(f"{path} has no row with both a text and a label; fill in its column {LABEL!r}.")
    return found


def is_labelled_table(path: str) -> bool:
    """Whether ``path`` is a table and not a file of reviews, which a person may have renamed."""
    if is_table_url(path) or path.startswith("hf://"):
        return True
    if not Path(path).is_file() or Path(path).suffix.lower() == ".db":
        return Path(path).is_dir() or Path(path).suffix.lower() not in (".db", "")
    with Path(path).open("rb") as file:
        return file.read(len(SQLITE)) != SQLITE


def _text_columns(read: Table, columns: Columns) -> tuple[str, ...]:
    if all(name in read.frame.columns for name in columns.text):
        return columns.text
    if TEXT in read.frame.columns:
        return (TEXT,)
    raise UserInputError(
        f"{read.source} has neither the text column {columns.text[0]!r} of the training table nor a column "
        f"{TEXT!r}; rename its text column."
    )


def _texts_of(read: Table, columns: Columns) -> list[str]:
    return join_texts(read.frame, _text_columns(read, columns), source=read.source, row_of=read.row_of)


def _labels_of(read: Table, columns: Columns, labels: LabelSet) -> list[tuple[str, ...] | None]:
    """The labels of each row, known spellings in the training table's way; None where none is given."""
    there = all(name in read.frame.columns for name in columns.labels)
    if not there and LABEL not in read.frame.columns:
        raise UserInputError(
            f"{read.source} has neither the label column {columns.labels[0]!r} of the training table nor a "
            f"column {LABEL!r}; rename its label column."
        )
    named = columns if there else Columns((), LABEL)
    is_list = read.frame.schema[named.labels[0]] == pl.List
    if labels.separator is not None and (len(named.labels) > 1 or is_list):
        return read_label_sets(read.frame, named, labels.separator, source=read.source, row_of=read.row_of)
    spelled = {fold(name): name for name in (*labels.aliases, *labels.names)}
    cells = label_cells(read.frame[named.labels[0]], source=read.source, row_of=read.row_of)
    of_rows = [_split(cell, labels.separator) for cell in cells]
    exact = set(labels.names)
    return [
        of and tuple(name if name in exact else spelled.get(fold(name), name) for name in of)
        for of in of_rows
    ]


def _split(cell: str, separator: str | None) -> tuple[str, ...] | None:
    if not cell:
        return None
    return (cell,) if separator is None else split_cell(cell, separator) or None


def new_labels(path: str, found: Sequence[Reviewed], labels: LabelSet) -> list[str]:
    """The labels in ``found`` that are none of ``labels``, sorted.

    Raises:
        UserInputError: one of them looks like a known one with a typing mistake.
    """
    new = sorted(labels.unseen([label for one in found for label in one.labels]))
    folded = {fold(name): name for name in labels.names}
    for label in new:
        close = difflib.get_close_matches(fold(label), folded, n=1, cutoff=LIKE_A_TYPO)
        if close:
            raise UserInputError(
                f"{path} gives the label {label!r}; did you mean {folded[close[0]]!r}? If it is a category "
                "of its own, put a row of it into the training table."
            )
    return new


def merge_new_variants(
    added: Mapping[str, Sequence[Reviewed]], labels: LabelSet
) -> tuple[dict[str, list[Reviewed]], dict[str, str]]:
    """What was ``added``, by file, with one spelling for each label that is none of ``labels``.

    Spellings are merged as those of a table, over all files. The second value is the kept spelling of each
    merged one.
    """
    unseen = labels.unseen([label for found in added.values() for one in found for label in one.labels])
    merged = merge_variants(Counter(unseen))
    kept = {other: name for name, others in merged.items() for other in others}

    def spelled(one: Reviewed) -> Reviewed:
        return replace(one, labels=tuple(dict.fromkeys(kept.get(label, label) for label in one.labels)))

    return {path: [spelled(one) for one in found] for path, found in added.items()}, kept


def with_more_labels(labels: LabelSet, new: Sequence[str], aliases: Mapping[str, str]) -> LabelSet:
    """``labels`` and the ``new`` ones, in order; ``aliases`` are merged spellings of new ones."""
    known = {other: name for other, name in aliases.items() if name in new}
    return replace(labels, names=tuple(sorted({*labels.names, *new})), aliases={**labels.aliases, **known})


def moved(y: NDArray[Any], before: LabelSet, after: LabelSet) -> NDArray[Any]:
    """Labels ``y`` as in `Part`, of classes ``before``, as those of ``after``, which has them all."""
    place = np.array([after.label2id[name] for name in before.names], dtype=np.int64)
    if y.ndim == 1:
        return np.where(y >= 0, place[y], -1)
    wide = np.zeros((len(y), len(after.names)), dtype=y.dtype)
    wide[:, place] = y
    wide[(y < 0).any(axis=1)] = -1
    return wide


def moved_part(part: Part, before: LabelSet, after: LabelSet) -> Part:
    """``part`` with its labels `moved`."""
    return replace(part, y=moved(part.y, before, after))
