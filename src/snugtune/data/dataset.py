"""From the files the user names to cleaned, encoded, split data: what every later step works on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.config import FitConfig
from snugtune.data.cells import label_cells
from snugtune.data.columns import Columns, choose_columns, join_texts, level_cells
from snugtune.data.corrections import apply_corrections
from snugtune.data.duplicates import near_duplicate_groups
from snugtune.data.label_sets import (
    CleanSets,
    LabelNames,
    clean_label_sets,
    read_label_sets,
    separator_for,
    separator_hint,
)
from snugtune.data.labelled import (
    is_labelled_table,
    merge_new_variants,
    moved,
    moved_part,
    new_labels,
    read_additions,
    with_more_labels,
)
from snugtune.data.labels import CleaningPolicy, CleanResult, LabelSet, clean
from snugtune.data.part import Part
from snugtune.data.readers.unfilled import unfilled_cells
from snugtune.data.reviews import Reviewed, add_reviews, last_word, unlike
from snugtune.data.split import PARTS, Split, split_rows
from snugtune.data.stratify import split_label_sets
from snugtune.data.table import Table, read_table, reading_beside
from snugtune.errors import UserInputError
from snugtune.progress import Observer

MAX_VALIDATION_ROWS = 10_000
"""Past it the validation score is known to half a point, and each look at it costs training time."""


@dataclass(frozen=True)
class Usable:
    """What cleaning leaves of the training table, before any split: N rows.

    ``rows`` (N,) are where they stand below the file's header (from 0, blank lines counted, ascending), ``y``
    the labels as in `Part`, ``groups`` (N,) near-duplicate groups. ``first_row`` is the row, as a spreadsheet
    counts, of place 0; ``corrections`` says what a file of corrected labels changed, None without one.
    ``levels`` are as in `Part`.
    """

    rows: NDArray[np.int64]
    texts: list[str]
    y: NDArray[Any]
    groups: NDArray[np.int64]
    labels: LabelSet
    columns: Columns
    cleaning: dict[str, Any]
    first_row: int
    corrections: dict[str, Any] | None = None
    levels: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def file_rows(self, indices: NDArray[np.int64]) -> list[int]:
        """The rows at ``indices`` as the user's spreadsheet program numbers them."""
        return [int(row) + self.first_row for row in self.rows[indices]]


@dataclass(frozen=True)
class Data:
    """Cleaned, split data.

    ``parts`` are the split rows of ``table``, or of a separate test file; ``overlap`` is how many rows of
    such a file are near-duplicates of training rows. ``additions`` says what a file of reviews changed, None
    without one.
    """

    parts: dict[str, Part]
    table: Usable
    overlap: int | None = None
    additions: dict[str, Any] | None = None

    @property
    def labels(self) -> LabelSet:
        """The classes."""
        return self.table.labels

    @property
    def columns(self) -> Columns:
        """Where text and label were read from."""
        return self.table.columns

    @property
    def cleaning(self) -> dict[str, Any]:
        """What was found in the training table and what was done with it."""
        return self.table.cleaning

    @property
    def first_row(self) -> int:
        """The row, in the training file as a spreadsheet counts, of the first one below the header."""
        return self.table.first_row

    def file_rows(self, part: str, indices: NDArray[np.int64]) -> list[int]:
        """The rows of ``part`` at ``indices`` as the user's spreadsheet program numbers them."""
        return [int(row) + self.first_row for row in self.parts[part].rows[indices]]


def load_data(config: FitConfig, observer: Observer | None = None) -> Data:
    """Read, clean and split the tables ``config`` names, telling what was found.

    Raises:
        UserInputError: a table cannot be read, or what is left of it is no classification problem.
    """
    observer = observer or Observer()
    table = load_usable(config, observer)
    split = (split_label_sets if config.is_multi_label else split_rows)(
        table.y, table.groups, seed=config.seed,
        validation=config.validation_fraction, max_validation=MAX_VALIDATION_ROWS,
        test=0.0 if config.test else config.test_fraction,
    )  # fmt: skip
    data = Data(_parts(split, table), table)
    _check_validation(data)
    if config.near_duplicates == "drop":
        data = _without_near_duplicates(data, table.groups[split.indices("train")], observer)
    test = _read_test_rows(config, data.table, observer) if config.test else None
    added, aliases = _read_additions(config, data)
    reviewed = last_word(one for found in added.values() for one in found)
    if config.min_class_count == 1:  # else a class may be missing because it was left out
        held_out = [*data.parts["validation"].texts, *(data.parts["test"] if test is None else test).texts]
        data = _with_their_labels(data, added, aliases, lambda: unlike(reviewed, held_out), observer)
    if test is not None:
        data = _with_test_file(data, test, config, observer)
    return _with_reviews(data, ", ".join(added), reviewed, config, observer) if added else data


def load_usable(config: FitConfig, observer: Observer | None = None) -> Usable:
    """Read, correct and clean the training table ``config`` names, telling what was found.

    Raises:
        UserInputError: the table or its corrections cannot be read or used, or what is left is no
            classification problem.
    """
    observer = observer or Observer()
    observer.phase("data")
    read = read_table(config.train, sheet=config.sheet, encoding=config.encoding, delimiter=config.delimiter)
    columns = choose_columns(
        read.frame, source=read.source, text=config.text, label=config.label, several=config.is_multi_label
    )
    return (_usable_sets if config.is_multi_label else _usable)(config, read, columns, observer)


def _usable(config: FitConfig, read: Table, columns: Columns, observer: Observer) -> Usable:
    """Rows of one label each."""
    texts, given = _texts(read, columns), _label_texts(read, columns)
    _tell_unfilled(read, columns, texts, [label or None for label in given], observer)
    corrections = None
    if config.corrections is not None:
        given, corrections = apply_corrections(
            config.corrections, texts, given, read, merge_variants=config.merge_label_variants
        )
        observer.say(corrections.sentence())
    if hint := separator_hint(given, columns.labels[0]):
        observer.say(hint)
    cleaned = clean(texts, given, _policy(config), source=read.source)
    labels = LabelSet(tuple(sorted(set(cleaned.labels))), cleaned.report.aliases)
    usable = _cleaned(cleaned, labels, labels.encode(cleaned.labels), read, columns, observer)
    levels = level_cells(read.frame, config.label_levels or (), source=read.source)
    return replace(
        usable, corrections=None if corrections is None else corrections.as_dict(),
        levels=_cells_of(levels, cleaned.row),
    )  # fmt: skip


def _usable_sets(config: FitConfig, read: Table, columns: Columns, observer: Observer) -> Usable:
    """Rows of any number of labels."""
    texts = _texts(read, columns)
    given = read_label_sets(
        read.frame, columns, config.label_separator, source=read.source, row_of=read.row_of
    )
    _tell_unfilled(read, columns, texts, given, observer)
    cleaned = clean_label_sets(texts, given, _policy(config), source=read.source)
    names = tuple(sorted({name for labels in cleaned.label_sets for name in labels}))
    labels = LabelSet(names, cleaned.report.aliases, separator_for(names, config.label_separator))
    y = labels.encode_sets(cleaned.label_sets)
    usable = _cleaned(cleaned, labels, y, read, columns, observer)
    observer.say(
        f"{y.sum() / len(y):.2f} labels a text on average, at most {y.sum(1).max():,}"
        + (f"; {bare:,} texts carry none." if (bare := int((y.sum(1) == 0).sum())) else ".")
    )
    if never := [name for name in columns.labels if len(columns.labels) > 1 and name not in names]:
        observer.say(f"No row says yes in {', '.join(map(repr, never))}: left out.")
    return usable


def _cleaned(
    cleaned: CleanResult | CleanSets, labels: LabelSet, y: NDArray[Any], read: Table, columns: Columns,
    observer: Observer,
) -> Usable:  # fmt: skip
    for sentence in cleaned.report.sentences():
        observer.say(sentence)
    return Usable(
        read.places(cleaned.row), cleaned.texts, y, near_duplicate_groups(cleaned.texts), labels, columns,
        cleaned.report.as_dict(), read.first_row,
    )  # fmt: skip


def _policy(config: FitConfig) -> CleaningPolicy:
    return CleaningPolicy(
        duplicates=config.duplicates,
        conflicts=config.conflicts,
        merge_label_variants=config.merge_label_variants,
        min_class_count=config.min_class_count,
    )


def _tell_unfilled(
    read: Table, columns: Columns, texts: Sequence[str], given: Sequence[object], observer: Observer
) -> None:
    """Say which blank cells of a sheet look filled to a person; ``given`` (N,) is None where no label is."""
    if read.sheet is None:
        return
    is_text = [bool(text.strip()) for text in texts]
    blank = {
        "text": (columns.text, [i for i, filled in enumerate(is_text) if not filled]),
        "label": (columns.labels, [i for i, filled in enumerate(is_text) if filled and given[i] is None]),
    }
    for what, (names, rows) in blank.items():
        if not rows:
            continue
        found = unfilled_cells(read.source, read.sheet, names, [read.row_of(i) for i in rows])
        if found.formulas:
            observer.say(
                f"{found.formulas:,} rows of {read.source} have no {what} because its cell holds a formula "
                "that was never calculated; open the workbook in Excel and save it."
            )
        if found.merged:
            observer.say(
                f"{found.merged:,} rows of {read.source} have no {what} because its cell is merged with "
                "another one; unmerge the cells and fill each of them."
            )


def _texts(read: Table, columns: Columns) -> list[str]:
    return join_texts(read.frame, columns.text, source=read.source, row_of=read.row_of)


def _label_texts(read: Table, columns: Columns) -> list[str]:
    (name,) = columns.labels
    return label_cells(read.frame[name], source=read.source, row_of=read.row_of)


def _parts(split: Split, table: Usable) -> dict[str, Part]:
    chosen = {name: split.indices(name) for name in PARTS}
    return {
        name: Part(
            table.rows[rows], [table.texts[i] for i in rows], table.y[rows], _cells_of(table.levels, rows)
        )
        for name, rows in chosen.items()
    }


def _cells_of(levels: Mapping[str, Sequence[str]], rows: NDArray[np.int64]) -> dict[str, list[str]]:
    return {name: [cells[i] for i in rows.tolist()] for name, cells in levels.items()}


def _check_validation(data: Data) -> None:
    if not len(data.parts["validation"]):
        raise UserInputError(
            f"Only {len(data.parts['train'])} usable rows: too few to hold some back for validation; "
            "add rows, or raise --validation-fraction."
        )


def _with_test_file(data: Data, rows: _TestRows, config: FitConfig, observer: Observer) -> Data:
    test = rows.encoded(config, data.labels, observer)
    if (test.y < 0).all():
        raise UserInputError(
            f"No label of the test file {config.test} occurs in {config.train}; check --label and --test."
        )
    # Validation rows have chosen weights and calibration.
    known = [text for name in ("train", "validation") for text in data.parts[name].texts]
    overlap = overlapping_rows(known, test.texts)
    if overlap:
        observer.say(
            f"{overlap:,} rows of {config.test} are near-duplicates of rows of {config.train}: "
            "scores on them flatter the model."
        )
    return Data({**data.parts, "test": test}, data.table, overlap)


def _without_near_duplicates(data: Data, groups: NDArray[np.int64], observer: Observer) -> Data:
    """``data`` whose training rows are the first of each near-duplicate group (N,) with each of its labels.

    Rows of a group that say something else stay: which of them is right is not known.
    """
    train = data.parts["train"]
    same = np.column_stack([groups, train.y])
    kept = np.sort(np.unique(same, axis=0, return_index=True)[1])
    dropped = len(train) - len(kept)
    observer.say(f"{dropped:,} training rows left out that are near-duplicates of one of the same label.")
    part = Part(
        train.rows[kept],
        [train.texts[i] for i in kept.tolist()],
        train.y[kept],
        _cells_of(train.levels, kept),
    )
    cleaning = {**data.cleaning, "near_duplicates_dropped": dropped}
    table = replace(data.table, cleaning=cleaning)
    return replace(data, parts={**data.parts, "train": part}, table=table)


def _read_additions(config: FitConfig, data: Data) -> tuple[dict[str, list[Reviewed]], dict[str, str]]:
    """Texts that people labelled beside the table, by the file they are in; spellings that were merged."""
    files = (config.add,) if isinstance(config.add, str) else config.add or ()
    added = {
        path: read_additions(path, data.columns, data.labels, encoding=config.encoding) for path in files
    }
    return merge_new_variants(added, data.labels) if config.merge_label_variants else (added, {})


def _with_their_labels(
    data: Data,
    added: Mapping[str, Sequence[Reviewed]],
    aliases: Mapping[str, str],
    used: Callable[[], Sequence[Reviewed]],
    observer: Observer,
) -> Data:
    """``data`` whose classes are also those that only a spreadsheet of labelled texts has.

    ``used`` gives the added texts that will be trained on: a label of others would be a class of no rows.
    """
    tables = {path: found for path, found in added.items() if is_labelled_table(path)}
    given = {name for path, found in tables.items() for name in new_labels(path, found, data.labels)}
    if not given:
        return data
    new = sorted(given.intersection(name for one in used() for name in one.labels))
    if unused := sorted(given.difference(new)):
        observer.say(
            f"{len(unused):,} labels left out of which no added text is trained on, as a later one says "
            f"otherwise or it is like a validation or test row: {', '.join(map(repr, unused))}."
        )
    if not new:
        return data
    observer.say(f"{len(new):,} labels that only added texts have: {', '.join(map(repr, new))}.")
    before, after = data.labels, with_more_labels(data.labels, new, aliases)
    parts = {name: moved_part(part, before, after) for name, part in data.parts.items()}
    table = replace(data.table, labels=after, y=moved(data.table.y, before, after))
    return replace(data, parts=parts, table=table)


def _with_reviews(
    data: Data, files: str, reviewed: Sequence[Reviewed], config: FitConfig, observer: Observer
) -> Data:
    train, additions = add_reviews(
        files, reviewed, data.parts, data.labels, may_lack_labels=config.min_class_count > 1
    )
    observer.say(additions.sentence())
    return replace(data, parts={**data.parts, "train": train}, additions=additions.as_dict())


def read_test(config: FitConfig, table: Usable, observer: Observer) -> Part:
    """The test file ``config`` names as it is: only rows with no text or no label are left out.

    Raises:
        UserInputError: it cannot be read, lacks the columns of ``table``, or has no row with both.
    """
    return _read_test_rows(config, table, observer).encoded(config, table.labels, observer)


@dataclass(frozen=True)
class _TestRows:
    """The rows (N,) of a test file with both a text and a label, before classes are known for sure."""

    rows: NDArray[np.int64]
    texts: list[str]
    given: list[str | LabelNames]
    levels: dict[str, list[str]]

    def encoded(self, config: FitConfig, labels: LabelSet, observer: Observer) -> Part:
        """They with their labels as classes of ``labels``; those of others are told of."""
        y, unseen = labels.encode_given(self.given)
        if unseen:
            observer.say(
                f"{sum(unseen.values()):,} rows of {config.test} carry {len(unseen):,} labels unseen in "
                "training; they are predicted but not scored."
            )
        return Part(self.rows, self.texts, y, self.levels)


def _read_test_rows(config: FitConfig, table: Usable, observer: Observer) -> _TestRows:
    assert config.test is not None
    reading = reading_beside(
        config.test,
        (*table.columns.text, *table.columns.labels),
        encoding=config.encoding,
        delimiter=config.delimiter,
    )
    if reading["encoding"] != config.encoding:
        observer.say(f"{config.test} is read as UTF-8, or as its mark says, and not as {config.encoding}.")
    read = read_table(config.test, sheet=config.test_sheet, **reading)
    several = table.labels.separator is not None
    columns = choose_columns(
        read.frame, source=read.source, text=table.columns.text, label=table.columns.label, several=several
    )
    texts = _texts(read, columns)
    given: Sequence[str | LabelNames | None] = (
        read_label_sets(read.frame, columns, config.label_separator, source=read.source, row_of=read.row_of)
        if several
        else [label or None for label in _label_texts(read, columns)]
    )
    _tell_unfilled(read, columns, texts, given, observer)
    rows = np.array(
        [i for i, text in enumerate(texts) if text.strip() and given[i] is not None], dtype=np.int64
    )
    if not len(rows):
        raise UserInputError(
            f"The test file {config.test} has no row with both a text and a label; check it."
        )
    if len(rows) < len(texts):
        observer.say(
            f"{len(texts) - len(rows):,} rows of {config.test} without a text or a label are left out."
        )
    there = [name for name in table.levels if name in read.frame.columns]
    levels = _cells_of(level_cells(read.frame, there, source=read.source), rows)
    labels = [one for i in rows if (one := given[i]) is not None]
    return _TestRows(read.places(rows), [texts[i].strip() for i in rows], labels, levels)


def overlapping_rows(train_texts: Sequence[str], test_texts: Sequence[str]) -> int:
    """How many of ``test_texts`` are near-duplicates of one of ``train_texts``."""
    groups = near_duplicate_groups([*train_texts, *test_texts])
    return int(np.isin(groups[len(train_texts) :], groups[: len(train_texts)]).sum())
