"""Labels corrected in the spreadsheet of an audit, put back into the table they came from."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from snugtune.data.cells import label_cells
from snugtune.data.form import Form, cell_text
from snugtune.data.labels import fold
from snugtune.data.table import Table, read_table
from snugtune.errors import UserInputError
from snugtune.files import replacing

ROW, TEXT, GIVEN, SUGGESTED, QUALITY, CORRECTED = ISSUE_COLUMNS = (
    "row", "text", "given_label", "suggested_label", "label_quality", "corrected_label",
)  # fmt: skip
"""Columns of ``label_issues.xlsx``; ``row`` is the row of the user's file as a spreadsheet numbers it."""

_WIDTHS = (8, 90, 32, 32, 12, 32)


@dataclass(frozen=True)
class Issue:
    """A label that looks wrong: where it stands, the label that fits better, and how well it fits (0..1)."""

    row: int
    text: str
    given: str
    suggested: str
    quality: float


@dataclass(frozen=True)
class Corrections:
    """What a file of corrections did: rows given another label, rows that had it already, rows left blank."""

    file: str
    applied: int
    unchanged: int
    left_blank: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def sentence(self) -> str:
        """One line for the person at the keyboard."""
        said = f"{self.applied:,} labels corrected from {self.file}"
        if self.unchanged:
            said += f"; {self.unchanged:,} had the corrected label already"
        return f"{said}; {self.left_blank:,} rows there are left as they were."


def apply_corrections(
    path: str, texts: Sequence[str], given: Sequence[str], table: Table, *, merge_variants: bool = True
) -> tuple[list[str], Corrections]:
    """The ``given`` labels of N rows with the corrections of the file ``path``, and a count of them.

    ``texts`` and ``given`` are those of ``table``, row by row. A correction is applied only if the text in
    the file is the text of that row in the table; rows of the same text and label follow it, for an audit
    lists only the first of them. With ``merge_variants`` spellings of a label are one label.

    Raises:
        UserInputError: the file cannot be read or is no file of corrections, a row of it is not in the table
            or has another text there, or a corrected label is none of the table's.
    """
    read = _read(path)
    rows, seen, wanted = (label_cells(read.frame[name], source=path) for name in (ROW, TEXT, CORRECTED))
    corrected, known = list(given), set(given)
    by_row: dict[int, str] = {}
    for place, (row, text, label) in enumerate(zip(rows, seen, wanted, strict=True)):
        if label:
            where = f"{path}, row {read.row_of(place)}"
            i = _data_row(row, table, where)
            _check_text(text, texts[i], f"{where} corrects row {row} of {table.source}")
            _check_label(label, known, table.source, where)
            by_row[i] = label
    alike = [fold(label) for label in given] if merge_variants else given
    for i, label in {**_twins(by_row, texts, alike), **by_row}.items():
        corrected[i] = label
    changed = sum(a != b for a, b in zip(given, corrected, strict=True))
    unchanged = sum(given[i] == label for i, label in by_row.items())
    return corrected, Corrections(path, changed, unchanged, wanted.count(""))


def write_issues(issues: Sequence[Issue], labels: Sequence[str], path: Path) -> None:
    """Write ``label_issues.xlsx``: a row by issue, and a cell to choose the right one of ``labels`` in."""
    from xlsxwriter import Workbook

    with replacing(path) as temporary, Workbook(temporary) as book:
        form = Form(book, "label issues", list(zip(ISSUE_COLUMNS, _WIDTHS, strict=True)))
        for issue in issues:
            form.add((issue.row, issue.text, issue.given, issue.suggested, float(issue.quality), None))
        form.offer(labels, ISSUE_COLUMNS.index(CORRECTED))
        form.finish()


def _read(path: str) -> Table:
    read = read_table(path)
    missing = [name for name in (ROW, TEXT, CORRECTED) if name not in read.frame.columns]
    if missing:
        raise UserInputError(
            f"{path} has no column {missing[0]!r}, so it is no file of corrections; "
            "name the label_issues.xlsx that an audit wrote, with its columns as they were."
        )
    return read


def _twins(by_row: dict[int, str], texts: Sequence[str], given: Sequence[str]) -> dict[int, str]:
    """Labels for rows of the same text and given label as a corrected row."""
    labels: dict[tuple[str, str], str] = {}
    for i, label in by_row.items():
        labels.setdefault((texts[i].strip(), given[i]), label)
    pairs = zip(texts, given, strict=True)
    found = ((i, labels.get((text.strip(), label))) for i, (text, label) in enumerate(pairs))
    return {i: label for i, label in found if label is not None}


def _data_row(row: str, table: Table, where: str) -> int:
    try:
        number = float(row)
    except ValueError:
        number = float("nan")
    i = table.data_row(int(number)) if number.is_integer() else None
    if i is None:
        last = table.row_of(table.frame.height - 1)
        raise UserInputError(
            f"{where}: there is no row {row!r} in {table.source} (its rows are {table.first_row} to {last}); "
            "name the table that the audit looked at."
        )
    return i


def _check_text(in_file: str, in_table: str, what: str) -> None:
    # Spreadsheet programs write line ends and blanks their own way, and cut what a cell cannot hold.
    if _words(in_file) != _words(cell_text(in_table.strip())):
        raise UserInputError(
            f"{what}, but the text there is another one; if rows were added, removed or sorted since, "
            "run the audit again."
        )


def _check_label(label: str, known: set[str], source: str, where: str) -> None:
    if label not in known:
        close = difflib.get_close_matches(label, sorted(known), n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserInputError(
            f"{where}: {label!r} is none of the labels in {source}{meant}; correct it, or give a new label "
            "in the table itself."
        )


def _words(text: str) -> str:
    return " ".join(text.replace("_x000D_", " ").split())
