"""Cells of a sheet that read as blank and do not look it: formulas never calculated, merged cells."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO
from xml.etree import ElementTree

import numpy as np
from openpyxl.utils import column_index_from_string, range_boundaries

from snugtune.data.readers.workbook import damage_told, sheet_header, sheet_part


@dataclass(frozen=True)
class Unfilled:
    """How many rows are blank by a formula without a value, and how many by a cell merged with another's."""

    formulas: int
    merged: int


def unfilled_cells(source: str, sheet: str, columns: Sequence[str], rows: Sequence[int]) -> Unfilled:
    """Why the cells of ``columns`` are blank in ``rows`` (ascending) of ``sheet``, which is read once more.

    Raises:
        UserInputError: as ``read_table``.
    """
    header = sheet_header(source, sheet)
    wanted = {header.columns[name] for name in columns}
    blank = np.asarray(rows, dtype=np.int64)
    formulas, merged = np.zeros((2, len(blank)), dtype=bool)
    part = sheet_part(source, sheet)
    with damage_told(source), zipfile.ZipFile(source) as archive, archive.open(part) as xml:
        for first_column, first_row, last_column, last_row, is_formula in _marks(xml):
            if any(first_column <= column <= last_column for column in wanted):
                low, high = np.searchsorted(blank, (first_row, last_row + 1))
                (formulas if is_formula else merged)[low:high] = True
    return Unfilled(int(formulas.sum()), int((merged & ~formulas).sum()))


def _marks(xml: IO[bytes]) -> Iterator[tuple[int, int, int, int, bool]]:
    """First column and row, last column and row of each formula without a value (True) and merged range."""
    row = column = 0
    data: ElementTree.Element | None = None
    for event, element in ElementTree.iterparse(xml, events=("start", "end")):
        kind = element.tag.rpartition("}")[2]
        if event == "start":
            if kind == "sheetData":
                data = element
            elif kind == "row":
                row, column = int(element.get("r", row + 1)), 0
            elif kind == "c":
                column = _column(element.get("r")) or column + 1
        elif kind == "c" and _is_uncalculated(element):
            yield column, row, column, row, True
        elif kind == "row" and data is not None:
            data.clear()  # what is read needs no memory
        elif kind == "mergeCell":
            edges = range_boundaries(element.get("ref", ""))
            yield int(edges[0]), int(edges[1]), int(edges[2]), int(edges[3]), False


def _is_uncalculated(cell: ElementTree.Element) -> bool:
    """Whether there is a formula and no value; one of the type ``str`` has given an empty text."""
    values = {child.tag.rpartition("}")[2]: child for child in cell}
    if "f" not in values or cell.get("t") == "str":
        return False
    return "v" not in values or not values["v"].text


def _column(reference: str | None) -> int:
    return column_index_from_string(reference.rstrip("0123456789")) if reference else 0
