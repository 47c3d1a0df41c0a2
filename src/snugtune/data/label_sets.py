"""Texts that carry several labels, or none: read from cells, lists or columns, and cleaned.

A row is *unlabelled*, and left out, where its label cell is blank; where each label has a column, if all of
them are blank. It is labelled, with *no* label, where a list is empty, or where columns say no and none yes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from snugtune.data.cells import RowOf, cell_texts, column_text, list_items, where
from snugtune.data.columns import Columns
from snugtune.data.labels import CleaningPolicy, CleaningReport, merge_variants, repeats
from snugtune.errors import UserInputError

LabelNames = tuple[str, ...]
"""The labels of one text, each once, in the order in which they were given."""

YES = frozenset({"1", "1.0", "true", "t", "yes", "y", "x", "✓", "✔"})
NO = frozenset({"0", "0.0", "false", "f", "no", "n", "-"})
"""What a label's own column may say, in any case; a blank cell says no beside a filled one."""

SEPARATORS = (";", "|", ",", "\n", "/")
"""What a cell with several labels is looked through for, to give a hint."""

HINT_SHARE = 0.02
"""Share of cells with a separator from which on a hint is given."""


@dataclass(frozen=True)
class CleanSets:
    """Kept rows: their indices in the input, texts and labels, and the report."""

    row: NDArray[np.int64]
    texts: list[str]
    label_sets: list[LabelNames]
    report: CleaningReport


def read_label_sets(
    frame: pl.DataFrame, columns: Columns, separator: str | None, *, source: str, row_of: RowOf | None = None
) -> list[LabelNames | None]:
    """The labels of each row of ``frame``; None for a row that is not labelled.

    ``source`` and ``row_of`` (see `snugtune.data.cells`) are for messages.

    Raises:
        UserInputError: a cell of a label's own column says neither yes nor no, or nothing tells how a single
            column holds several labels.
    """
    if len(columns.labels) > 1:
        return _from_columns(frame, columns.labels, source, row_of)
    (name,) = columns.labels
    if frame.schema[name] == pl.List:
        items = list_items(frame[name], source=source, row_of=row_of)
        return [None if cell is None else _names(cell) for cell in items]
    if separator is None:
        raise UserInputError(
            f"Nothing tells how column {name!r} of {source} holds several labels; give the sign between them "
            "with --label-separator, or one column for each label with --label A --label B."
        )
    cells = cell_texts(frame[name], source=source, row_of=row_of)
    return [split_cell(cell, separator) or None for cell in cells]


def split_cell(cell: str, separator: str) -> LabelNames:
    """The labels of a cell with ``separator`` between them (see `plain_separator`)."""
    return _names(cell.split(plain_separator(separator)))


def plain_separator(separator: str) -> str:
    """The characters that ``separator`` stands for: shells hand a line break or tab over as two."""
    return separator.replace("\\n", "\n").replace("\\t", "\t")


def _names(values: Iterable[str]) -> LabelNames:
    stripped = (value.strip() for value in values)
    return tuple(dict.fromkeys(name for name in stripped if name))


def _from_columns(
    frame: pl.DataFrame, names: Sequence[str], source: str, row_of: RowOf | None
) -> list[LabelNames | None]:
    said = [_said(frame[name], source, row_of) for name in names]
    yes, filled = (np.stack(arrays, axis=1) for arrays in zip(*said, strict=True))
    found: list[LabelNames | None] = [None] * frame.height
    for i in np.flatnonzero(filled.any(axis=1)).tolist():
        found[i] = tuple(names[k] for k in np.flatnonzero(yes[i]).tolist())
    return found


def _said(
    column: pl.Series, source: str, row_of: RowOf | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of each cell (N,): whether it says yes, and whether it says anything."""
    texts = column_text(column, source=source, row_of=row_of)
    plain = texts.fill_null("").str.strip_chars().str.to_lowercase()
    unknown = [value for value in plain.unique().to_list() if value and value not in YES | NO]
    if unknown:
        i = plain.to_list().index(min(unknown))
        raise UserInputError(
            f"Column {column.name!r} of {source}{where(i, row_of)} says {texts[i][:60]!r}, where a label's "
            "own column must say yes or no (yes, y, true, x, 1; no, n, false, -, 0). If it holds several "
            "labels in a cell, name it alone, with --label-separator."
        )
    values = plain.to_numpy()
    return np.isin(values, list(YES)), values != ""


def separator_hint(cells: Sequence[str], column: str) -> str | None:
    """One sentence if cells look like several labels each; nothing is done about it.

    They do if a separator parts some of them, and the parts are fewer than the distinct cells were: labels
    that come in combinations. Names with a comma in them, split, only become more.
    """
    counts = Counter(cell for cell in cells if cell)
    rows = sum(counts.values())
    for separator in SEPARATORS:
        with_it = sum(count for cell, count in counts.items() if separator in cell)
        if with_it < max(HINT_SHARE * rows, 2):
            continue
        parts = {name for cell in counts for name in split_cell(cell, separator)}
        if 1 < len(parts) < len(counts):
            shown = separator.replace("\n", "\\n")
            return (
                f"Hint: the {len(counts):,} different cells of column {column!r} are made of {len(parts):,} "
                f"labels with {shown!r} between them. Each cell is taken as one label; if a text may carry "
                f"several, give --label-separator '{shown}'."
            )
    return None


def clean_label_sets(
    texts: Sequence[str | None],
    given: Sequence[LabelNames | None],
    policy: CleaningPolicy,
    *,
    source: str,
) -> CleanSets:
    """Clean N rows as ``policy`` says; its ``min_class_count`` leaves out labels, and rows that had no other.

    Raises:
        UserInputError: no text is left, or fewer than two labels are.
    """
    stripped = [(text or "").strip() for text in texts]
    filled = [i for i, text in enumerate(stripped) if text]
    rows = [i for i in filled if given[i] is not None]
    counts = Counter(name for i in rows for name in given[i] or ())
    merged = merge_variants(counts) if policy.merge_label_variants else {}
    spelling = {other: kept for kept, others in merged.items() for other in others}
    final = [tuple(dict.fromkeys(spelling.get(name, name) for name in names or ())) for names in given]

    duplicates, conflicts = repeats(rows, stripped, [frozenset(names) for names in final])
    left_out = set(duplicates if policy.duplicates == "drop" else ())
    left_out |= set(conflicts if policy.conflicts == "drop" else ())
    rows = [i for i in rows if i not in left_out]
    counts = Counter(name for i in rows for name in final[i])
    known = {name for name, count in counts.items() if count >= policy.min_class_count}
    kept = [i for i in rows if not final[i] or known.intersection(final[i])]
    report = CleaningReport(
        rows_in=len(stripped),
        empty_texts=len(stripped) - len(filled),
        blank_labels=sum(given[i] is None for i in filled),
        exact_duplicates=len(duplicates),
        conflicting_rows=len(conflicts),
        merged_labels=merged,
        rare_classes={label: n for label, n in sorted(counts.items()) if n <= 2},
        dropped_rare_rows=len(rows) - len(kept),
        rows_kept=len(kept),
        classes=len(known),
        policy=policy,
    )
    _check(report, source)
    return CleanSets(
        np.array(kept, dtype=np.int64),
        [stripped[i] for i in kept],
        [tuple(name for name in final[i] if name in known) for i in kept],
        report,
    )


def _check(report: CleaningReport, source: str) -> None:
    if not report.rows_kept:
        raise UserInputError(
            f"{source} has no row with both a text and labels; check --text, --label and --label-separator."
        )
    if report.classes < 2:
        found = "one label" if report.classes else "no label"
        raise UserInputError(
            f"{source} holds {found} where a text may carry several; check --label and --label-separator, or "
            "leave them out to tell one label for each text."
        )
    if report.rows_kept < 2 * report.classes and len(report.rare_classes) == report.classes:
        raise UserInputError(
            f"{source} has {report.classes} labels for {report.rows_kept} rows, too few to learn from; "
            "check --label and --label-separator."
        )


def separator_for(names: Iterable[str], given: str | None) -> str:
    """What parts labels in one cell: as ``given``, else the first usual sign that is in none of ``names``."""
    if given is not None:
        return plain_separator(given)
    used = "".join(names)
    return next((sign for sign in (*SEPARATORS, "||") if sign not in used), "\x1f")


def join_label_sets(label_sets: Iterable[Sequence[str]], separator: str) -> list[str]:
    """The labels of each text in one cell, empty where there are none; `split_cell` takes them apart."""
    between = separator if separator.isspace() else f"{separator} "
    return [between.join(labels) for labels in label_sets]
