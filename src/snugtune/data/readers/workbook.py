"""Sheets of Excel workbooks, streamed: where the table is in one, and its cells as text."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import openpyxl
from openpyxl.cell.cell import ERROR_CODES
from openpyxl.utils import get_column_letter
from openpyxl.utils.escape import unescape

from snugtune.data.archive import check_archive
from snugtune.data.cells import value_text
from snugtune.data.columns import is_text_name
from snugtune.data.readers.request import (
    Opened,
    Request,
    Row,
    column_names,
    first_line,
    listing,
    string_frames,
)
from snugtune.errors import UserInputError

# Those of newer Excels, which openpyxl does not know: support.microsoft.com, "How to correct a #SPILL! error"
# and its neighbours.
_ERRORS = frozenset(ERROR_CODES) | {
    "#SPILL!", "#CALC!", "#FIELD!", "#BLOCKED!", "#UNKNOWN!", "#CONNECT!", "#BUSY!", "#EXTERNAL!", "#PYTHON!",
    "#GETTING_DATA",
}  # fmt: skip
_QUIET_ROWS = 256
_HEADER_WITHIN = 100  # rows of a sheet in which its header is looked for
_NEARLY_ALL = 0.9
_TITLE_CELLS = 2  # as many as a title may fill
_TITLE_ROWS = 3


@dataclass(frozen=True)
class SheetHeader:
    """Where a sheet's table is: the row of its header, and by name the columns read, both from 1."""

    sheet: str
    row: int
    columns: dict[str, int]


def sheet_header(source: str | Path, sheet: str | None = None) -> SheetHeader:
    """Where ``read_table`` finds the header in ``sheet`` (None: the first in sight) of a workbook.

    Raises:
        UserInputError: as ``read_table``.
    """
    header, _, rows = _begin_sheet(str(source), sheet)
    rows.close()
    return header


def sheet_names(source: str | Path) -> list[str]:
    """The sheets of a workbook that hold cells: those in sight, in its order, then hidden ones.

    Raises:
        UserInputError: it is damaged or no workbook.
    """
    book, file, _ = _workbook(str(source), None)
    names = _titles(book)
    book.close()
    file.close()
    return names


def sheet_part(source: str | Path, sheet: str) -> str:
    """The part of a workbook's archive that holds ``sheet``.

    Raises:
        UserInputError: it is damaged, no workbook, or has no such sheet.
    """
    book, file, name = _workbook(str(source), sheet)
    part = str(book[name]._worksheet_path)  # openpyxl tells it nowhere else
    book.close()
    file.close()
    return part


def open_workbook(request: Request) -> Opened:
    """A sheet of a workbook, from the row that names its columns.

    Raises:
        UserInputError: as ``read_table``.
    """
    header, cells, _ = _begin_sheet(request.source, request.sheet)
    where = f"{request.source}, sheet {header.sheet!r}"
    columns = [column - 1 for column in header.columns.values()]
    numbered = enumerate(cells, start=header.row + 1)
    data = (_named_cells(row, columns, f"{where}, row {number}") for number, row in numbered)
    batches = string_frames(list(header.columns), data, request.rows)
    return Opened(batches, first_row=header.row + 1, sheet=header.sheet)


def _begin_sheet(source: str, sheet: str | None) -> tuple[SheetHeader, Iterator[Row], Generator[Row]]:
    """The header, the rows below it, and what they come from, which closes the workbook."""
    book, file, name = _workbook(source, sheet)
    where = f"{source}, sheet {name!r}"
    rows = _sheet_rows(book, file, name, source)
    head = list(islice(rows, _HEADER_WITHIN))
    if not head:
        raise UserInputError(f"{where} is empty; name another one with --sheet.")
    at = _header_index(head)
    columns, names = _sheet_columns(head[at], head[at + 1 :], where)
    found = dict(zip(names, (column + 1 for column in columns), strict=True))
    return SheetHeader(name, at + 1, found), chain(head[at + 1 :], rows), rows


def _workbook(source: str, sheet: str | None) -> tuple[Any, BinaryIO, str]:
    """The workbook, opened for streaming, the file it is read from, and the name of the sheet to read."""
    with damage_told(source), warnings.catch_warnings(), ExitStack() as opened:
        check_archive(source)
        warnings.simplefilter("ignore")  # of looks that openpyxl does not keep: nothing is written back
        # By itself, openpyxl leaves a file open that it cannot load.
        file = opened.enter_context(Path(source).open("rb"))
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        opened.pop_all()
    names = _titles(book)
    if names and sheet in (None, *names):
        return book, file, sheet or names[0]
    book.close()
    file.close()
    missing = "with cells" if sheet is None else repr(sheet)
    raise UserInputError(f"{source} has no sheet {missing}; it has {listing(names) or 'none'}.")


def _titles(book: Any) -> list[str]:
    """The sheets but those that are charts; a hidden one is read only if it is named or there is no other."""
    in_order = sorted(book.worksheets, key=lambda worksheet: worksheet.sheet_state != "visible")
    return [str(worksheet.title) for worksheet in in_order]


@contextmanager
def damage_told(source: str) -> Iterator[None]:
    """Whatever the parser stumbles over is damage of the file: it raises all kinds of errors."""
    try:
        yield
    except UserInputError:
        raise
    except Exception as error:
        raise UserInputError(
            f"{source} is damaged, cut off or not an Excel workbook ({first_line(error)}); "
            "open it in Excel and save it again."
        ) from error


def _sheet_rows(book: Any, file: BinaryIO, name: str, source: str) -> Generator[Row]:
    """The cells as text, row 1 first; blank rows are kept where rows follow, so that row numbers hold."""
    with closing(file), closing(book), damage_told(source):
        worksheet = book[name]
        worksheet.reset_dimensions()  # the size some writers record is wrong and would cut the table
        blank = 0
        for values in _quietly(worksheet.iter_rows(values_only=True)):
            row = [_cell_text(value) for value in values]
            if not any(row):
                blank += 1
                continue
            yield from ([] for _ in range(blank))
            blank = 0
            yield row


def _quietly(rows: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """``rows`` without warnings of looks that openpyxl does not keep; it tells them behind the last row."""
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            some = list(islice(rows, _QUIET_ROWS))
        if not some:
            return
        yield from some


def _cell_text(value: Any) -> str | None:
    """The text of a cell (see `snugtune.data.cells`); an error such as #N/A is no value."""
    if not isinstance(value, str):
        return value_text(value)
    # A carriage return is stored as _x000D_ (ECMA-376 part 1, 22.9.2.19).
    return None if value in _ERRORS else unescape(value) or None


def _header_index(head: Sequence[Row]) -> int:
    """The first row in which most of the used columns hold text, or nearly all of them anything.

    Titles above it fill one or two cells; years and numbers may be names beside others that are text. A
    column is used if a tenth of the rows fill it, so that a stray note does not count as one.
    """
    filled = Counter(c for row in head for c, cell in enumerate(row) if cell)
    used = [c for c, count in filled.items() if 10 * count >= sum(map(any, head))]
    for i, row in enumerate(head):
        cells = [row[c] for c in used if c < len(row) and row[c]]
        texts = sum(map(_is_name, cells))
        if 2 * texts > len(used) or (texts and len(cells) >= _NEARLY_ALL * len(used)):
            return _below_title(head, i, used)
    return next(i for i, row in enumerate(head) if any(row))


def _below_title(head: Sequence[Row], at: int, used: Sequence[int]) -> int:
    """Row ``at``, unless it is the title of a table of one or two columns: these have no room to tell by.

    It is if none of its cells is a usual name of a text column, and one of the next filled rows has one.
    """

    def names_text(row: Row) -> bool:
        cells = [row[c] for c in used if c < len(row)]
        return all(map(_is_name, cells)) and any(is_text_name(cell) for cell in cells if cell)

    if len(used) > _TITLE_CELLS or names_text(head[at]):
        return at
    below = (i for i in range(at + 1, len(head)) if any(head[i]))
    return next((i for i in islice(below, _TITLE_ROWS) if names_text(head[i])), at)


def _is_name(cell: str | None) -> bool:
    return cell is not None and any(character.isalpha() for character in cell)


def _sheet_columns(header: Row, below: Iterable[Row], where: str) -> tuple[list[int], list[str]]:
    """Indices and names of the columns that have a name or cells below the header."""
    filled = {c for row in chain([header], below) for c, cell in enumerate(row) if cell}
    columns = sorted(filled)
    named = [header[c] if c < len(header) and header[c] else f"column_{c + 1}" for c in columns]
    return columns, column_names(named, where)


def _named_cells(row: Row, columns: Sequence[int], where: str) -> Row:
    stray = {c for c, cell in enumerate(row) if cell} - set(columns)
    if stray:
        letter = get_column_letter(min(stray) + 1)
        raise UserInputError(
            f"{where} has a value in column {letter}, which has no name; give it one or clear the cell."
        )
    return [row[c] if c < len(row) else None for c in columns]
