"""A spreadsheet of texts to label: written for people, and read again by ``fit --add``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from snugtune.data.form import EXCEL_ROWS, Form
from snugtune.errors import UserInputError
from snugtune.files import check_new_file, replacing

ROW, TEXT, LABEL, PREDICTED, PROBABILITY, REASON = COLUMNS = (
    "row", "text", "label", "predicted_label", "probability", "reason",
)  # fmt: skip
"""``row`` is the row of the pool's file as a spreadsheet numbers it, ``label`` is left for a person."""

_WIDTHS = (8, 90, 32, 32, 12, 60)
SUFFIXES = (".xlsx", ".csv")


@dataclass(frozen=True)
class ToLabel:
    """A text that is worth a label: where it stands, what the model takes it for, and why it was chosen.

    ``predicted`` and ``probability`` are None where nothing was learned yet.
    """

    row: int
    text: str
    predicted: str | None
    probability: float | None
    reason: str


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, a file that could not be written at its end.

    Raises:
        UserInputError: another suffix, no such folder, or it is there and ``overwrite`` is not set.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserInputError(f"Cannot write {path}: name it with one of {', '.join(SUFFIXES)}.")
    check_new_file(path, overwrite=overwrite)


def check_room(path: Path, count: int) -> None:
    """Refuse, before any work, more rows than a sheet holds.

    Raises:
        UserInputError: it is a workbook, and ``count`` is too many.
    """
    if path.suffix.lower() != ".csv" and count > EXCEL_ROWS:
        raise UserInputError(
            f"An Excel sheet holds {EXCEL_ROWS:,} rows below its header, not {count:,}; lower --count, or "
            "name the output .csv."
        )


def write_to_label(rows: Sequence[ToLabel], labels: Sequence[str], path: Path) -> None:
    """Write ``rows`` in their order to an .xlsx, with a list of ``labels`` to choose from, or to a .csv."""
    if path.suffix.lower() == ".csv":
        cells = [(one.row, one.text, None, one.predicted, one.probability, one.reason) for one in rows]
        types = (pl.Int64, pl.String, pl.String, pl.String, pl.Float64, pl.String)
        frame = pl.DataFrame(cells, schema=dict(zip(COLUMNS, types, strict=True)), orient="row")
        with replacing(path) as temporary:
            frame.write_csv(temporary)
        return
    _write_workbook(rows, labels, path)


def _write_workbook(rows: Sequence[ToLabel], labels: Sequence[str], path: Path) -> None:
    from xlsxwriter import Workbook

    with replacing(path) as temporary, Workbook(temporary) as book:
        form = Form(book, "to label", list(zip(COLUMNS, _WIDTHS, strict=True)))
        for one in rows:
            probability = None if one.probability is None else float(one.probability)
            form.add((one.row, one.text, None, one.predicted or "", probability, one.reason))
        if labels and rows:
            # A warning, not a refusal: a text may turn out to be of a category that nobody had thought of.
            form.offer(
                labels, COLUMNS.index(LABEL), error_type="warning", error_title="A new label?",
                error_message="This label is not one of those known so far. Keep it?",
            )  # fmt: skip
        form.finish()
