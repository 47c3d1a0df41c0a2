"""A sheet for a person to fill in: headings, formats, and a list of labels to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

EXCEL_CHARACTERS = 32_767
"""What a cell of a workbook holds, in UTF-16 code units; longer texts are cut there."""

EXCEL_ROWS = 1_048_575
"""What a sheet of a workbook holds below its header. XlsxWriter leaves out what is beyond, without a word."""


def cell_text(text: str) -> str:
    """What a workbook's cell keeps of ``text``."""
    if len(text) <= EXCEL_CHARACTERS // 2:
        return text
    return text.encode("utf-16-le")[: 2 * EXCEL_CHARACTERS].decode("utf-16-le", errors="ignore")


class Form:
    """The sheet ``name`` of a new workbook, of XlsxWriter, with a row for each question.

    Args:
        book: the workbook.
        name: of the sheet.
        columns: headings and widths, in characters.
    """

    def __init__(self, book: Any, name: str, columns: Sequence[tuple[str, int]]) -> None:
        self._book, self._columns, self._rows = book, columns, 0
        self._sheet = book.add_worksheet(name)
        self._wrapped = book.add_format({"text_wrap": True, "valign": "top"})
        self._rounded = book.add_format({"num_format": "0.000", "valign": "top"})
        heading = book.add_format({"bold": True})
        for column, (title, width) in enumerate(columns):
            self._sheet.set_column(column, column, width)
            self._sheet.write_string(0, column, title, heading)

    def add(self, cells: Sequence[str | int | float | None]) -> None:
        """A row more; None is left blank, and what is no whole number is shown with three digits."""
        self._rows += 1
        for column, value in enumerate(cells):
            if value is None:
                self._sheet.write_blank(self._rows, column, None, self._wrapped)
            elif isinstance(value, str):
                self._sheet.write_string(self._rows, column, cell_text(value), self._wrapped)
            elif isinstance(value, int):
                self._sheet.write_number(self._rows, column, value, self._wrapped)
            else:
                self._sheet.write_number(self._rows, column, round(value, 6), self._rounded)

    def offer(self, labels: Sequence[str], column: int, **validation: str) -> None:
        """A sheet of ``labels``, to choose from in every row's ``column``; ``validation`` is XlsxWriter's."""
        choices = self._book.add_worksheet("labels")
        for line, label in enumerate(labels):
            choices.write_string(line, 0, cell_text(label))
        if self._rows:
            allowed = {"validate": "list", "source": f"=labels!$A$1:$A${len(labels)}", **validation}
            self._sheet.data_validation(1, column, self._rows, column, allowed)

    def finish(self) -> None:
        """Headings stay in sight, rows can be filtered."""
        self._sheet.freeze_panes(1, 0)
        self._sheet.autofilter(0, 0, max(1, self._rows), len(self._columns) - 1)
