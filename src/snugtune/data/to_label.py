"""A spreadsheet of texts to label: written for people, and read again by ``fit --add``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from snugtune.data.corrections import cell_text
from snugtune.errors import UserInputError
from snugtune.files import replacing

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
    if not path.parent.is_dir():
        raise UserInputError(
            f"Cannot write {path}: the folder {path.parent} does not exist; create it first."
        )
    if path.is_dir():
        raise UserInputError(f"Cannot write {path}: it is a folder; name a file.")
    if path.exists() and not overwrite:
        raise UserInputError(f"{path} already exists; choose another --output or add --overwrite.")


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
        sheet = book.add_worksheet("to label")
        heading = book.add_format({"bold": True})
        wrapped = book.add_format({"text_wrap": True, "valign": "top"})
        rounded = book.add_format({"num_format": "0.000", "valign": "top"})
        for column, (name, width) in enumerate(zip(COLUMNS, _WIDTHS, strict=True)):
            sheet.set_column(column, column, width)
            sheet.write_string(0, column, name, heading)
        for line, one in enumerate(rows, start=1):
            sheet.write_number(line, 0, one.row, wrapped)
            for column, text in ((1, one.text), (3, one.predicted or ""), (5, one.reason)):
                sheet.write_string(line, column, cell_text(text), wrapped)
            sheet.write_blank(line, 2, None, wrapped)
            if one.probability is not None:
                sheet.write_number(line, 4, round(one.probability, 6), rounded)
        if labels and rows:
            choices = book.add_worksheet("labels")
            for line, label in enumerate(labels):
                choices.write_string(line, 0, cell_text(label))
            # A warning, not a refusal: a text may turn out to be of a category that nobody had thought of.
            allowed = {
                "validate": "list", "source": f"=labels!$A$1:$A${len(labels)}", "error_type": "warning",
                "error_title": "A new label?",
                "error_message": "This label is not one of those known so far. Keep it?",
            }  # fmt: skip
            sheet.data_validation(1, 2, len(rows), 2, allowed)
        sheet.freeze_panes(1, 0)
        sheet.autofilter(0, 0, max(1, len(rows)), len(COLUMNS) - 1)
