"""Tables in: CSV, Excel, Parquet, JSON lines and Hugging Face datasets, whole or batch by batch.

Whatever cannot be read exactly is refused with a sentence that says where; nothing is guessed into place:
no replacement characters, no cut rows, no renamed columns. ``read_table`` is the batches of ``iter_tables``
put together, so the two agree by construction.
"""

from __future__ import annotations

import codecs
import csv
import datetime as dt
import json
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import openpyxl
import polars as pl
from openpyxl.cell.cell import ERROR_CODES
from openpyxl.utils import get_column_letter
from openpyxl.utils.escape import unescape

from snugtune.data.archive import check_archive
from snugtune.errors import UserInputError
from snugtune.table_url import hide_password, is_table_url, parse_table_url

_DELIMITERS = (",", ";", "\t", "|")
_NO_DELIMITER = "\x1f"  # ASCII "unit separator": a single column has nothing to split at
_DELIMITER_NAMES = {"\\t": "\t", "tab": "\t"}  # shells hand "\t" over as two characters
_SNIFF_CHARACTERS = 1 << 18
_SNIFF_RECORDS = 200
_LONGEST_CELL = 1 << 24  # characters; the csv module's own 131,072 is less than some documents have
_WHOLE_BATCH = 100_000  # rows per piece when the whole table is wanted
_PARQUET_SLICE = 1 << 16  # a slice decodes its row group again, so slices are not small
_QUIET_ROWS = 256
_HEADER_WITHIN = 100  # rows of a sheet in which its header is looked for

_ZIP, _OLE, _PARQUET, _GZIP = b"PK\x03\x04", bytes.fromhex("D0CF11E0"), b"PAR1", b"\x1f\x8b"
_BOMS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FORMATS = "CSV, TSV, TXT, .xlsx, Parquet, JSON lines, or the folder of a saved Hugging Face dataset"

Row = list[str | None]


@dataclass(frozen=True)
class Table:
    """A table as read.

    ``first_row`` is the 1-based row, in the file, of the first data row (blank lines of a text file are not
    counted), so that errors can name rows as a spreadsheet shows them.
    """

    frame: pl.DataFrame
    source: str
    sheet: str | None
    first_row: int


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
        sheet: sheet of a workbook; the first one if left out.
        encoding: of a text file; UTF-8, or what its byte order mark says, if left out.
        delimiter: of a text file; found among ``, ; tab |`` if left out.

    Raises:
        UserInputError: the source is missing, empty, damaged, or not what its name says.
    """
    source = hide_password(str(source))
    opened = _open(_Request(source, _WHOLE_BATCH, sheet, encoding, delimiter))
    return Table(pl.concat(opened.batches), source, opened.sheet, opened.first_row)


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
    return _open(_Request(source, rows_per_batch, sheet, encoding, delimiter)).batches


def csv_style(
    source: str | Path, *, encoding: str | None = None, delimiter: str | None = None
) -> tuple[str, bool]:
    """The delimiter of a CSV as ``read_table`` finds it, and whether the file has a byte order mark."""
    path = Path(source)
    codec = _codec(path, encoding)
    with path.open("rb") as file:
        is_marked = file.read(3).startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    found = _delimiter(path, codec, delimiter)
    return "," if found == _NO_DELIMITER else found, is_marked


def json_lines(source: str | Path, *, encoding: str | None = None) -> Iterator[str]:
    """The lines of a JSON lines file as they are, one for each row of ``read_table``."""
    path = Path(source)
    return (line.strip() for line in _lines(path, _codec(path, encoding)) if line.strip())


# --- which reader ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    source: str
    rows: int  # per batch
    sheet: str | None
    encoding: str | None
    delimiter: str | None

    @property
    def path(self) -> Path:
        return Path(self.source)


@dataclass(frozen=True)
class _Opened:
    batches: Iterator[pl.DataFrame]
    first_row: int
    sheet: str | None = None


Reader = Callable[[_Request], _Opened]


def _open(request: _Request) -> _Opened:
    source, reader = request.source, _reader(request.source)
    if request.sheet is not None and reader is not _open_workbook:
        raise UserInputError(f"{source} is not an Excel workbook and has no sheets; drop --sheet.")
    opened = reader(request)
    first = next(opened.batches, None)
    if first is None or first.is_empty():
        raise UserInputError(f"{source} has a header but no rows; check that it is the right file.")
    return _Opened(chain([first], opened.batches), opened.first_row, opened.sheet)


def _reader(source: str) -> Reader:
    if source.startswith("hf://"):
        return _open_hub_dataset
    if is_table_url(source):
        return _open_sql
    path = Path(source)
    if path.is_dir():
        return _check_dataset_folder(path)
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
        raise UserInputError(f"{path} is empty.")
    if head.startswith(_OLE):
        raise UserInputError(_about_ole(path))
    if reader is _open_workbook and not head.startswith(_ZIP):
        raise UserInputError(
            f"{path} is not an .xlsx workbook, whatever its name; if it is a CSV, rename it to .csv."
        )
    if reader is _open_parquet and not (head.startswith(_PARQUET) and tail == _PARQUET):
        raise UserInputError(f"{path} is not a whole Parquet file: it is cut off or something else renamed.")
    if reader in (_open_delimited, _open_json_lines):
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


# --- CSV, TSV, TXT ---------------------------------------------------------------------------------------


def _open_delimited(request: _Request) -> _Opened:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    source, path = request.source, request.path
    codec = _codec(path, request.encoding)
    records = _records(path, codec, _delimiter(path, codec, request.delimiter))
    _, header = next(records, ("", []))
    if not header:
        raise UserInputError(f"{source} is empty.")
    names = _column_names(header, source)
    cells = (_same_width(record, len(names), where, source) for where, record in records)
    return _Opened(_string_frames(names, cells, request.rows), first_row=2)


def _string_frames(names: Sequence[str], cells: Iterator[Row], rows: int) -> Iterator[pl.DataFrame]:
    schema = dict.fromkeys(names, pl.String)
    while batch := list(islice(cells, rows)):
        columns = zip(*batch, strict=True)
        yield pl.DataFrame(dict(zip(names, columns, strict=True)), schema=schema)


def _column_names(header: Sequence[str | None], source: str) -> list[str]:
    """Names without surrounding blanks; a column without one is called by its number."""
    names = [(name or "").strip() or f"column_{i}" for i, name in enumerate(header, start=1)]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserInputError(
            f"{source} has more than one column named {_listing(repeated)}; make each name unique."
        )
    return names


def _same_width(record: list[str], width: int, where: str, source: str) -> Row:
    if len(record) != width:
        raise UserInputError(
            f"{source}, {where} has {len(record)} cells where the header has {width}; put cells that contain "
            "the delimiter into double quotes, or name the right --delimiter."
        )
    return [cell or None for cell in record]


def _records(path: Path, codec: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """The non-blank records with their place, as in "row 3 (line 7)"."""
    reader = csv.reader(_lines(path, codec), delimiter=delimiter, strict=True)
    row = 0
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise UserInputError(_about_csv(error, path, row + 1, line)) from None
        if record is None:
            return
        if record:
            row += 1
            yield f"row {row} (line {line})", record


def _about_csv(error: csv.Error, path: Path, row: int, line: int) -> str:
    fault = {
        "unexpected end of data": "opens a quoted cell that is never closed",
        f"field larger than field limit ({_LONGEST_CELL})": "opens a quoted cell that does not close",
    }.get(str(error), f"is not valid CSV ({error})")
    return f'{path}, row {row} (line {line}) {fault}; write a quote inside a quoted cell twice ("").'


def _delimiter(path: Path, codec: str, named: str | None) -> str:
    if named is not None:
        delimiter = _DELIMITER_NAMES.get(named, named)
        if len(delimiter) != 1 or delimiter in '"\r\n\0':
            raise UserInputError(f"The --delimiter must be one character such as ; or tab, not {named!r}.")
        return delimiter
    if path.suffix.lower() in (".tsv", ".tab"):
        return "\t"
    lines = _head(path, codec)
    best = max(_DELIMITERS, key=lambda delimiter: _consistency(lines, delimiter))
    return best if any(_consistency(lines, best)) else _NO_DELIMITER


def _consistency(lines: Sequence[str], delimiter: str) -> tuple[bool, float, int]:
    """How well ``delimiter`` explains the head: it splits the header, share of even rows, their width."""
    records = [record for record in islice(csv.reader(lines, delimiter=delimiter), _SNIFF_RECORDS) if record]
    widths = Counter(map(len, records))
    width, count = max(widths.items(), key=lambda item: (item[1], item[0]), default=(1, 1))
    share = count / max(len(records), 1)
    splits_header = bool(records) and len(records[0]) > 1
    # Commas in running text are no delimiter; the same number of them in nearly every row is one.
    if not splits_header and (width == 1 or share < 0.9 or len(records) < 4):
        return False, 0.0, 0
    return splits_header, share, width


def _head(path: Path, codec: str) -> list[str]:
    lines, size = [], 0
    with closing(_lines(path, codec)) as stream:
        for line in islice(stream, 2 * _SNIFF_RECORDS):
            lines.append(line)
            size += len(line)
            if size > _SNIFF_CHARACTERS:
                break
    return lines


def _lines(path: Path, codec: str) -> Generator[str]:
    """Lines with their ends, decoded strictly."""
    try:
        with path.open(encoding=codec, newline="") as file:
            for number, line in enumerate(file, start=1):
                if "\0" in line:
                    raise UserInputError(
                        f"{path}, line {number} contains a NUL byte: the file is binary, damaged, or encoded "
                        "as UTF-16 (then name it: --encoding utf-16)."
                    )
                yield line
    except UnicodeError as error:
        raise UserInputError(_about_bytes(path, codec, error)) from None


def _codec(path: Path, encoding: str | None) -> str:
    if encoding is None:
        with path.open("rb") as file:
            head = file.read(4)
        return next((codec for mark, codec in _BOMS if head.startswith(mark)), "utf-8-sig")
    try:
        name = codecs.lookup(encoding).name
        "".encode(name)  # refuses codecs that are not of text, such as base64
    except (LookupError, ValueError):
        raise UserInputError(f"There is no encoding {encoding!r}; use e.g. utf-8 or cp1252.") from None
    return "utf-8-sig" if name == "utf-8" else name


def _about_bytes(path: Path, codec: str, error: UnicodeError) -> str:
    """Say where decoding fails: text streams know the offset in their buffer only, so read once more."""
    name = codec.removesuffix("-sig").upper()
    advice = "name the file's encoding, e.g. --encoding cp1252"
    decoder = codecs.getincrementaldecoder(codec)()
    offset, line = 0, 1
    with path.open("rb") as file:
        while True:
            chunk = file.read(1 << 20)
            pending = len(decoder.getstate()[0])
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as fault:
                at = offset - pending + fault.start
                line += fault.object[: fault.start].decode(fault.encoding, errors="ignore").count("\n")
                byte = fault.object[fault.start]
                return f"{path}, line {line}: byte 0x{byte:02X} at offset {at} is not {name}; {advice}."
            except UnicodeError as fault:  # some codecs, such as UTF-16 without its mark, say no more
                return f"{path} is not {name} ({fault}); {advice}."
            if not chunk:
                return f"{path} is not {name} ({error}); {advice}."
            offset += len(chunk)


# --- Excel -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SheetHeader:
    """Where a sheet's table is: the row of its header, and by name the columns read, both from 1."""

    sheet: str
    row: int
    columns: dict[str, int]


def sheet_header(source: str | Path, sheet: str | None = None) -> SheetHeader:
    """Where ``read_table`` finds the header in ``sheet`` (None: the first one) of a workbook.

    Raises:
        UserInputError: as ``read_table``.
    """
    header, _, rows = _begin_sheet(str(source), sheet)
    rows.close()
    return header


def _open_workbook(request: _Request) -> _Opened:
    header, cells, _ = _begin_sheet(request.source, request.sheet)
    where = f"{request.source}, sheet {header.sheet!r}"
    columns = [column - 1 for column in header.columns.values()]
    numbered = enumerate(cells, start=header.row + 1)
    data = (_named_cells(row, columns, f"{where}, row {number}") for number, row in numbered)
    batches = _string_frames(list(header.columns), data, request.rows)
    return _Opened(batches, first_row=header.row + 1, sheet=header.sheet)


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
    with _damage(source), warnings.catch_warnings(), ExitStack() as opened:
        check_archive(source)
        warnings.simplefilter("ignore")  # of looks that openpyxl does not keep: nothing is written back
        # By itself, openpyxl leaves a file open that it cannot load.
        file = opened.enter_context(Path(source).open("rb"))
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        opened.pop_all()
    names = [str(worksheet.title) for worksheet in book.worksheets]  # without sheets that are charts
    if names and sheet in (None, *names):
        return book, file, sheet or names[0]
    book.close()
    file.close()
    missing = "with cells" if sheet is None else repr(sheet)
    raise UserInputError(f"{source} has no sheet {missing}; it has {_listing(names) or 'none'}.")


@contextmanager
def _damage(source: str) -> Iterator[None]:
    """Whatever the parser stumbles over is damage of the file: it raises all kinds of errors."""
    try:
        yield
    except UserInputError:
        raise
    except Exception as error:
        raise UserInputError(
            f"{source} is damaged, cut off or not an Excel workbook ({_first_line(error)}); "
            "open it in Excel and save it again."
        ) from error


def _sheet_rows(book: Any, file: BinaryIO, name: str, source: str) -> Generator[Row]:
    """The cells as text, row 1 first; blank rows are kept where rows follow, so that row numbers hold."""
    with closing(file), closing(book), _damage(source):
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
    """The text of a cell: ISO dates, whole numbers without a point; an error such as #N/A is no value."""
    if value is None or value in ERROR_CODES:
        return None
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:  # Excel keeps 15 digits
        return str(int(value))
    if isinstance(value, dt.datetime):
        return value.date().isoformat() if value.time() == dt.time() else value.isoformat(sep=" ")
    # A carriage return is stored as _x000D_ (ECMA-376 part 1, 22.9.2.19).
    return unescape(value) or None if isinstance(value, str) else str(value)


def _header_index(head: Sequence[Row]) -> int:
    """The first row in which most of the used columns hold text; titles above it fill one or two cells.

    A column is used if a tenth of the rows fill it, so that a stray note does not count as one.
    """
    filled = Counter(c for row in head for c, cell in enumerate(row) if cell)
    used = [c for c, count in filled.items() if 10 * count >= sum(map(any, head))]
    for i, row in enumerate(head):
        texts = sum(c < len(row) and _is_name(row[c]) for c in used)
        if 2 * texts > len(used):
            return i
    return next(i for i, row in enumerate(head) if any(row))


def _is_name(cell: str | None) -> bool:
    return cell is not None and any(character.isalpha() for character in cell)


def _sheet_columns(header: Row, below: Iterable[Row], where: str) -> tuple[list[int], list[str]]:
    """Indices and names of the columns that have a name or cells below the header."""
    filled = {c for row in chain([header], below) for c, cell in enumerate(row) if cell}
    columns = sorted(filled)
    named = [header[c] if c < len(header) and header[c] else f"column_{c + 1}" for c in columns]
    return columns, _column_names(named, where)


def _named_cells(row: Row, columns: Sequence[int], where: str) -> Row:
    stray = {c for c, cell in enumerate(row) if cell} - set(columns)
    if stray:
        letter = get_column_letter(min(stray) + 1)
        raise UserInputError(
            f"{where} has a value in column {letter}, which has no name; give it one or clear the cell."
        )
    return [row[c] if c < len(row) else None for c in columns]


# --- Parquet ---------------------------------------------------------------------------------------------


def _open_parquet(request: _Request) -> _Opened:
    return _Opened(_parquet_frames(request.source, request.rows), first_row=1)


def _parquet_frames(source: str, rows: int) -> Iterator[pl.DataFrame]:
    step = max(rows, _PARQUET_SLICE // rows * rows)  # full batches but the last
    try:
        lazy = pl.scan_parquet(source, glob=False)
        height = lazy.select(pl.len()).collect().item()
        texts = pl.col(pl.Categorical, pl.Enum).cast(pl.String)
        for start in range(0, height, step):
            yield from lazy.slice(start, step).with_columns(texts).collect().iter_slices(rows)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise UserInputError(f"{source} is a damaged Parquet file ({_first_line(error)}).") from None


# --- JSON lines ------------------------------------------------------------------------------------------


def _open_json_lines(request: _Request) -> _Opened:
    path = request.path
    codec = _codec(path, request.encoding)
    schema = _json_schema(_json_objects(path, codec))  # a first pass: a late row may bring a new key
    if not schema:
        raise UserInputError(f"{path} is empty.")
    return _Opened(_json_frames(_json_objects(path, codec), schema, request.rows), first_row=1)


def _json_frames(
    objects: Iterator[dict[str, Any]], schema: dict[str, pl.DataType], rows: int
) -> Iterator[pl.DataFrame]:
    while batch := list(islice(objects, rows)):
        columns = {
            name: [_json_value(row.get(name), dtype) for row in batch] for name, dtype in schema.items()
        }
        yield pl.DataFrame(columns, schema=schema)


def _json_value(value: Any, dtype: pl.DataType) -> Any:
    if value is None or dtype != pl.String or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _json_schema(objects: Iterable[dict[str, Any]]) -> dict[str, pl.DataType]:
    kinds: dict[str, set[str]] = {}
    for row in objects:
        for name, value in row.items():
            kinds.setdefault(name, set()).add(_json_kind(value))
    return {name: _json_dtype(kind - {"null"}) for name, kind in kinds.items()}


def _json_kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, int) and not isinstance(value, bool):
        return "int" if -(2**63) <= value < 2**63 else "big"
    return type(value).__name__


def _json_dtype(kinds: set[str]) -> pl.DataType:
    """The type all values share; text, which holds everything, where they share none."""
    if kinds == {"bool"}:
        return pl.Boolean()
    if kinds == {"int"}:
        return pl.Int64()
    return pl.Float64() if "float" in kinds and kinds <= {"int", "float"} else pl.String()


def _json_objects(path: Path, codec: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path, codec), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if "\\u" in line:
                json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserInputError(f"{path}, line {number} holds half of a surrogate pair (\\uD800).") from None
        except (ValueError, RecursionError) as error:
            raise UserInputError(f"{path}, line {number} is not JSON: {_first_line(error)}.") from None
        if not isinstance(value, dict):
            raise UserInputError(
                f'{path}, line {number} is not an object; write one per line: {{"text": ..., "label": ...}}.'
            )
        yield value


# --- databases -------------------------------------------------------------------------------------------


def _open_sql(request: _Request) -> _Opened:
    from snugtune.data.sql import iter_sql

    return _Opened(iter_sql(parse_table_url(request.source), request.rows), first_row=1)


# --- Hugging Face datasets -------------------------------------------------------------------------------


def _check_dataset_folder(path: Path) -> Reader:
    if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return _open_saved_dataset
    raise UserInputError(f"{path} is a folder and not a saved Hugging Face dataset; name a file in it.")


def _open_saved_dataset(request: _Request) -> _Opened:
    source = request.source
    datasets = _import_datasets(source)
    try:
        found = datasets.load_from_disk(source)
    except Exception as error:
        raise UserInputError(f"{source} is a damaged dataset folder ({_first_line(error)}).") from error
    return _open_dataset(datasets, found, request, f"{source}/SPLIT")


def _open_hub_dataset(request: _Request) -> _Opened:
    source = request.source
    datasets = _import_datasets(source)
    name, _, split = source.removeprefix("hf://").partition(":")
    try:
        found = datasets.load_dataset(name, split=split or None)
    except Exception as error:
        raise UserInputError(
            f"{source} cannot be loaded from the Hugging Face Hub ({_first_line(error)}); check the name, "
            "the split and the network."
        ) from error
    return _open_dataset(datasets, found, request, f"hf://{name}:SPLIT")


def _import_datasets(source: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserInputError(
            f"{source} is a Hugging Face dataset; to read it: pip install 'snugtune[datasets]'."
        ) from None
    return datasets


def _open_dataset(datasets: Any, found: Any, request: _Request, spelling: str) -> _Opened:
    if isinstance(found, dict):
        found = found[_split(list(found), request.source, spelling)]
    # A column of lists keeps what its items are in "feature".
    items = {name: getattr(feature, "feature", feature) for name, feature in found.features.items()}
    classes = {
        name: dict(enumerate(item.names))
        for name, item in items.items()
        if isinstance(item, datasets.ClassLabel)
    }
    return _Opened(_dataset_frames(found, classes, request.rows), first_row=1)


def _split(names: Sequence[str], source: str, spelling: str) -> str:
    if len(names) == 1:
        return names[0]
    if "train" not in names:
        raise UserInputError(f"{source} has the splits {_listing(names)}; name one, as {spelling}.")
    return "train"


def _dataset_frames(found: Any, classes: dict[str, dict[int, str]], rows: int) -> Iterator[pl.DataFrame]:
    for frame in found.with_format("polars").iter(batch_size=rows):
        yield frame.with_columns(
            _class_names(column, ids, frame.schema[column]) for column, ids in classes.items()
        )


def _class_names(column: str, ids: dict[int, str], dtype: pl.DataType) -> pl.Expr:
    """The names of class ids, or of lists of them."""
    of = pl.element() if dtype == pl.List else pl.col(column)
    named = of.replace_strict(ids, default=None, return_dtype=pl.String)  # -1 stands for "no label"
    return pl.col(column).list.eval(named) if dtype == pl.List else named


# --- words -----------------------------------------------------------------------------------------------


def _listing(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


_READERS: dict[str, Reader] = {
    **dict.fromkeys((".csv", ".tsv", ".tab", ".txt"), _open_delimited),
    **dict.fromkeys((".xlsx", ".xlsm"), _open_workbook),
    **dict.fromkeys((".parquet", ".pq"), _open_parquet),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _open_json_lines),
}
