"""Tables in: CSV and its kin, Excel, Parquet, JSON lines. What cannot be read is said, never guessed at."""

from __future__ import annotations

import csv
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import openpyxl
import polars as pl

from snugtune.errors import UserInputError

DELIMITERS = ",;\t|"
SNIFF_ROWS = 200
BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
OLE_MAGIC = b"\xd0\xcf\x11\xe0"
"""How old .xls files and encrypted workbooks begin (MS-CFB, section 2.2)."""


@dataclass(frozen=True)
class Table:
    """A table and where it came from."""

    frame: pl.DataFrame
    source: str
    sheet: str | None = None


def read_table(
    source: str | Path,
    *,
    sheet: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> Table:
    """Read a whole table. CSV cells stay the strings they are.

    Raises:
        UserInputError: the file is missing, empty, broken, of another kind than its name says, in an
            encoding that must be named, or has no such sheet.
    """
    frames = list(
        iter_tables(source, rows_per_batch=sys.maxsize, sheet=sheet, encoding=encoding, delimiter=delimiter)
    )
    return Table(frames[0], str(source), sheet)


def iter_tables(
    source: str | Path,
    *,
    rows_per_batch: int = 10_000,
    sheet: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> Iterator[pl.DataFrame]:
    """The same table in batches, in order, without holding it whole.

    Raises:
        UserInputError: as ``read_table``.
    """
    path = Path(source)
    kind = _kind(path)
    if kind == "parquet":
        yield from _parquet(path, rows_per_batch)
        return
    if kind == "csv":
        header, rows = _csv_rows(path, encoding, delimiter)
    elif kind == "xlsx":
        header, rows = _xlsx_rows(path, sheet)
    else:
        header, rows = _json_rows(path)
    _check_header(header, path)
    empty = True
    while batch := list(islice(rows, rows_per_batch)):
        empty = False
        columns = {name: [row[i] for row in batch] for i, name in enumerate(header)}
        yield pl.DataFrame(columns, strict=False)
    if empty:
        raise UserInputError(f"{path} has a header but no rows; check the file.")


def _kind(path: Path) -> str:
    if not path.exists():
        raise UserInputError(f"There is no file {path}; check the path.")
    if path.is_dir():
        raise UserInputError(f"{path} is a folder; name a file.")
    if path.stat().st_size == 0:
        raise UserInputError(f"{path} is empty.")
    kinds = {
        ".csv": "csv",
        ".tsv": "csv",
        ".txt": "csv",
        ".xlsx": "xlsx",
        ".xlsm": "xlsx",
        ".parquet": "parquet",
    }
    kinds |= {".jsonl": "json", ".ndjson": "json"}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise UserInputError(f"{path} is of no known kind; use one of {', '.join(kinds)}.")
    return kind


def _check_header(header: list[str], path: Path) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserInputError(f"{path} has several columns named '{twice[0]}'; give each its own name.")


def _csv_rows(
    path: Path, encoding: str | None, delimiter: str | None
) -> tuple[list[str], Iterator[list[Any]]]:
    encoding = encoding or _bom_encoding(path)
    if delimiter is None:
        delimiter = _find_delimiter(path, encoding)
    rows = _parsed(path, encoding, delimiter)
    header = next((row for row in rows if row), None)
    if header is None:
        raise UserInputError(f"{path} has no rows.")
    return header, _even(rows, len(header), path)


def _bom_encoding(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    return next((name for bom, name in BOMS if head.startswith(bom)), "utf-8")


def _find_delimiter(path: Path, encoding: str) -> str:
    """The delimiter that cuts the first rows into the most columns, the same number in each."""
    best, best_columns = ",", 1
    for candidate in DELIMITERS:
        widths = {len(row) for row in islice(_parsed(path, encoding, candidate), SNIFF_ROWS) if row}
        if len(widths) == 1 and (columns := widths.pop()) > best_columns:
            best, best_columns = candidate, columns
    return best


def _parsed(path: Path, encoding: str, delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding=encoding, newline="") as file:
            yield from csv.reader(file, delimiter=delimiter)
    except LookupError:
        raise UserInputError(f"There is no encoding '{encoding}'; try --encoding cp1252.") from None
    except UnicodeDecodeError as error:
        raise UserInputError(
            f"{path} is not valid {encoding} (byte 0x{error.object[error.start]:02x}); "
            "name its encoding, for instance --encoding cp1252."
        ) from None
    except csv.Error as error:
        raise UserInputError(f"{path} is not a readable CSV file: {error}.") from None


def _even(rows: Iterator[list[str]], columns: int, path: Path) -> Iterator[list[str | None]]:
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) != columns:
            raise UserInputError(
                f"Row {number} of {path} has {len(row)} cells where the header has {columns}; "
                "correct it, or name the delimiter with --delimiter."
            )
        yield [cell or None for cell in row]


def _xlsx_rows(path: Path, sheet: str | None) -> tuple[list[str], Iterator[list[Any]]]:
    with path.open("rb") as file:
        if file.read(4) == OLE_MAGIC:
            raise UserInputError(
                f"{path} is encrypted or an old .xls file; open it in a spreadsheet program and save it "
                "as .xlsx without a password."
            )
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError, OSError):
        raise UserInputError(
            f"{path} is not a whole .xlsx workbook (cut off or renamed?); save it again."
        ) from None
    if sheet is not None and sheet not in book.sheetnames:
        raise UserInputError(f"{path} has no sheet '{sheet}'; its sheets are: {', '.join(book.sheetnames)}.")
    rows = book[sheet or book.sheetnames[0]].iter_rows(values_only=True)
    header = _header_row(rows, path)
    used = [i for i, name in enumerate(header) if name]
    cells = ([row[i] if i < len(row) else None for i in used] for row in rows)
    filled = ([_cell(value) for value in row] for row in cells if any(v is not None for v in row))
    return [header[i] for i in used], filled


def _header_row(rows: Iterator[Any], path: Path) -> list[str]:
    """The first row with two or more texts, or the first that is not empty; titles above it are skipped."""
    first: list[str] | None = None
    for row in islice(rows, 20):
        names = ["" if value is None else str(value).strip() for value in row]
        filled = [name for name in names if name]
        if len(filled) >= 2:
            return names
        first = first or (names if filled else None)
    if first is None:
        raise UserInputError(f"{path} has no header row among the first 20 rows of the sheet.")
    return first


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else str(value)


def _json_rows(path: Path) -> tuple[list[str], Iterator[list[Any]]]:
    header = list(dict.fromkeys(name for row in _json_objects(path) for name in row))
    return header, ([row.get(name) for name in header] for row in _json_objects(path))


def _json_objects(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _json_object(line, number, path)
    except UnicodeDecodeError:
        raise UserInputError(f"{path} is not valid UTF-8, as JSON must be; save it again.") from None


def _json_object(line: str, number: int, path: Path) -> dict[str, Any]:
    fault: Callable[[str], UserInputError] = lambda what: UserInputError(f"Line {number} of {path} {what}.")  # noqa: E731
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise fault("is not valid JSON; correct it") from None
    if not isinstance(value, dict):
        raise fault("is not a JSON object; write one {...} per line")
    return value


def _parquet(path: Path, rows_per_batch: int) -> Iterator[pl.DataFrame]:
    try:
        lazy = pl.scan_parquet(path)
        height = int(lazy.select(pl.len()).collect().item())
        if not height:
            raise UserInputError(f"{path} has no rows; check the file.")
        for start in range(0, height, rows_per_batch):
            yield lazy.slice(start, min(rows_per_batch, height - start)).collect()
    except pl.exceptions.PolarsError:
        raise UserInputError(
            f"{path} is not a whole Parquet file (cut off or renamed?); save it again."
        ) from None
