"""Tables in: CSV, Excel, Parquet, JSON lines, databases and Hugging Face datasets, whole or batch by batch.

Whatever cannot be read exactly is refused with a sentence that says where; nothing is guessed into place:
no replacement characters, no cut rows, no renamed columns. ``read_table`` is the batches of ``iter_tables``
put together, so the two agree by construction. A format's reader is in ``readers/``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from snugtune.data.readers.datasets import open_hub_dataset, reader_of_folder
from snugtune.data.readers.delimited import header_of, open_delimited
from snugtune.data.readers.json_lines import open_json_lines
from snugtune.data.readers.parquet import open_parquet
from snugtune.data.readers.request import Opened, Reader, Request
from snugtune.data.readers.text import encoding_beside
from snugtune.data.readers.workbook import open_workbook
from snugtune.errors import NoRowsError, UserInputError
from snugtune.table_url import hide_password, is_table_url, parse_table_url

_WHOLE_BATCH = 100_000  # rows per piece when the whole table is wanted
_ZIP, _OLE, _PARQUET, _GZIP = b"PK\x03\x04", bytes.fromhex("D0CF11E0"), b"PAR1", b"\x1f\x8b"
_FORMATS = "CSV, TSV, TXT, .xlsx, Parquet, JSON lines, or the folder of a saved Hugging Face dataset"


@dataclass(frozen=True)
class Table:
    """A table as read.

    ``first_row`` is the 1-based row, in the file, of the first row below the header, so that errors can name
    rows as a spreadsheet shows them. ``blank_lines`` (B,), ascending, are how many data rows are above each
    blank line of a text file: such a line is no data row, but a row of the spreadsheet.
    """

    frame: pl.DataFrame
    source: str
    sheet: str | None
    first_row: int
    blank_lines: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def row_of(self, i: int) -> int:
        """The row of data row ``i`` (from 0), as a spreadsheet numbers it."""
        return int(self.places(np.array([i]))[0]) + self.first_row

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where data ``rows`` (from 0) stand below the header, from 0 and blank lines counted."""
        return np.asarray(rows + np.searchsorted(self.blank_lines, rows, side="right"), dtype=np.int64)

    def data_row(self, row: int) -> int | None:
        """The data row (from 0) that a spreadsheet numbers ``row``; None where there is none."""
        place = row - self.first_row
        i = place - int(np.searchsorted(self._blank_places, place))
        return i if 0 <= i < self.frame.height and self.row_of(i) == row else None

    @cached_property
    def _blank_places(self) -> NDArray[np.int64]:
        """Where the blank lines stand below the header."""
        return self.blank_lines + np.arange(len(self.blank_lines))


def read_table(
    source: str | Path, *, sheet: str | None = None, encoding: str | None = None, delimiter: str | None = None
) -> Table:
    """Read a whole table.

    Columns of CSV files and workbooks are text; empty cells are null. Parquet, JSON lines and datasets keep
    their types, class ids of a dataset's ``ClassLabel`` becoming the class names.

    Args:
        source: a file, the folder of a saved Hugging Face dataset, ``hf://owner/name[:split]`` (without a
            split: the only one, else ``train``), or a table of a database: ``sqlite:///file.db?table=name``,
            ``duckdb:///file.duckdb?table=name``, ``postgresql://user@host/database?table=schema.name``.
        sheet: sheet of a workbook; the first one that is not hidden if left out.
        encoding: of a text file; UTF-8, or what its byte order mark says, if left out.
        delimiter: of a text file; found among ``, ; tab |`` if left out.

    Raises:
        UserInputError: the source is missing, empty, damaged, or not what its name says.
    """
    source = hide_password(str(source))
    opened = _open(Request(source, _WHOLE_BATCH, sheet, encoding, delimiter))
    frame = pl.concat(opened.batches)
    blank_lines = np.asarray(opened.blank_lines, dtype=np.int64)
    return Table(frame, source, opened.sheet, opened.first_row, blank_lines)


def reading_beside(
    source: str, columns: Sequence[str], *, encoding: str | None, delimiter: str | None
) -> dict[str, str | None]:
    """``encoding`` and ``delimiter`` for ``source``, a table that goes with another one they were named for.

    Each is None, which lets the file itself tell, where the file is UTF-8 or marked, or where the delimiter
    does not part its header into several names, of which ``columns`` are some. ``source`` may also be
    no text file or not be there: that is told when it is read.
    """
    reader = None if is_table_url(source) else _READERS.get(Path(source).suffix.lower())
    if reader not in (open_delimited, open_json_lines) or not Path(source).is_file():
        return {"encoding": encoding, "delimiter": delimiter}
    encoding = encoding_beside(Path(source), encoding)
    if reader is open_delimited and delimiter is not None:
        try:
            names = header_of(source, encoding=encoding, delimiter=delimiter)
        except UserInputError:
            names = []
        delimiter = delimiter if len(names) > 1 and set(columns) <= set(names) else None
    return {"encoding": encoding, "delimiter": delimiter}


def iter_tables(
    source: str | Path,
    *,
    rows_per_batch: int = 10_000,
    sheet: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> Iterator[pl.DataFrame]:
    """The rows of ``read_table`` in order, ``rows_per_batch`` at a time.

    Memory is constant in the number of rows, but for the distinct strings of a workbook, which Excel keeps in
    one list that has to be read first.

    Raises:
        UserInputError: as ``read_table``; faults further down the file surface when they are reached.
    """
    if rows_per_batch < 1:
        raise UserInputError(f"The rows per batch must be 1 or more, not {rows_per_batch}.")
    source = hide_password(str(source))
    return _open(Request(source, rows_per_batch, sheet, encoding, delimiter)).batches


def _open(request: Request) -> Opened:
    source, reader = request.source, _reader(request.source)
    if request.sheet is not None and reader is not open_workbook:
        raise UserInputError(f"{source} is not an Excel workbook and has no sheets; drop --sheet.")
    opened = reader(request)
    first = next(opened.batches, None)
    if first is None or first.is_empty():
        raise NoRowsError(f"{source} has a header but no rows; check that it is the right file.")
    return replace(opened, batches=chain([first], opened.batches))


def _reader(source: str) -> Reader:
    if source.startswith("hf://"):
        return open_hub_dataset
    if is_table_url(source):
        return _open_sql
    path = Path(source)
    if path.is_dir():
        return reader_of_folder(path)
    if not path.exists():
        raise UserInputError(f"{source} does not exist; check the path.")
    if not path.is_file():
        raise UserInputError(f"{source} is not a regular file; save the table to a file first.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserInputError(f"{source} is of no known format; use {_FORMATS}.{_hint(path.suffix)}")
    _check_content(path, reader)
    return reader


def _hint(suffix: str) -> str:
    if suffix.lower() in (".xls", ".xlsb", ".ods"):
        return " Open it in a spreadsheet program and save it as .xlsx."
    return " Unpack it first." if suffix.lower() in (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z") else ""


def _check_content(path: Path, reader: Reader) -> None:
    """Refuse an empty file and one whose first bytes are not those of its suffix."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(max(path.stat().st_size - 4, 0))
            tail = file.read()
    except OSError as error:
        raise UserInputError(f"{path} cannot be read: {error.strerror}.") from None
    if not head:
        raise NoRowsError(f"{path} is empty.")
    if head.startswith(_OLE):
        raise UserInputError(_about_ole(path))
    if reader is open_workbook and not head.startswith(_ZIP):
        raise UserInputError(
            f"{path} is not an .xlsx workbook, whatever its name; if it is a CSV, rename it to .csv."
        )
    if reader is open_parquet and not (head.startswith(_PARQUET) and tail == _PARQUET):
        raise UserInputError(f"{path} is not a whole Parquet file: it is cut off or something else renamed.")
    if reader in (open_delimited, open_json_lines):
        _refuse_binary(path, head)


def _refuse_binary(path: Path, head: bytes) -> None:
    known = {
        _ZIP: "a zip archive or an Excel workbook; unpack it, or rename it to .xlsx",
        _PARQUET: "a Parquet file; rename it to .parquet",
        _GZIP: "a gzip archive; unpack it first",
    }
    for magic, what in known.items():
        if head.startswith(magic):
            raise UserInputError(f"{path} is not a text table but {what}.")


def _about_ole(path: Path) -> str:
    # [MS-OFFCRYPTO] 2.3.4: an encrypted workbook is an OLE file with a stream of this name.
    if "EncryptedPackage".encode("utf-16-le") in path.read_bytes():
        return f"{path} is protected by a password; remove it in Excel (File, Info) and save it again."
    return f"{path} is a workbook in the old .xls format; open it in Excel and save it as .xlsx."


def _open_sql(request: Request) -> Opened:
    from snugtune.data.sql import iter_sql

    return Opened(iter_sql(parse_table_url(request.source), request.rows), first_row=1)


_READERS: dict[str, Reader] = {
    **dict.fromkeys((".csv", ".tsv", ".tab", ".txt"), open_delimited),
    **dict.fromkeys((".xlsx", ".xlsm"), open_workbook),
    **dict.fromkeys((".parquet", ".pq"), open_parquet),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), open_json_lines),
}
