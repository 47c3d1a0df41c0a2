"""CSV, TSV and TXT: strict, with the delimiter found where none is named."""

from __future__ import annotations

import codecs
import csv
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from snugtune.data.readers.request import Opened, Request, Row, column_names, string_frames
from snugtune.data.readers.text import codec_of, text_lines
from snugtune.errors import NoRowsError, UserInputError

_DELIMITERS = (",", ";", "\t", "|")
_NO_DELIMITER = "\x1f"  # ASCII "unit separator": a single column has nothing to split at
_DELIMITER_NAMES = {"\\t": "\t", "tab": "\t"}  # shells hand "\t" over as two characters
_DECLARED = re.compile(r'"?sep=([^"\r\n\0])"?[\r\n]*', re.IGNORECASE)
"""The first line that tells Excel a delimiter other than that of the machine's language."""
_SNIFF_CHARACTERS = 1 << 18
_SNIFF_RECORDS = 200
_LONGEST_CELL = 1 << 24  # characters; the csv module's own 131,072 is less than some documents have


@dataclass(frozen=True)
class CsvStyle:
    """How a text file with a delimiter is read.

    ``is_marked`` says whether it begins with a byte order mark, ``is_declared`` whether its first line is
    Excel's ``sep=;``, which tells the delimiter and is no row.
    """

    codec: str
    delimiter: str
    is_marked: bool
    is_declared: bool


def open_delimited(request: Request) -> Opened:
    """A text file with a delimiter, whose first record names the columns.

    Raises:
        UserInputError: as ``read_table``; faults further down surface when they are reached.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    source, path = request.source, request.path
    records = _records(path, _style(path, request.encoding, request.delimiter))
    header_row, _, header = next(records, (0, "", []))
    if not header:
        raise NoRowsError(f"{source} is empty.")
    names = column_names(header, source)
    blank_lines = array("q")

    def cells() -> Iterator[Row]:
        for i, (row, where, record) in enumerate(records):
            if blank := row - header_row - 1 - i - len(blank_lines):
                blank_lines.extend([i] * blank)
            yield _same_width(record, len(names), where, source)

    return Opened(
        string_frames(names, cells(), request.rows), first_row=header_row + 1, blank_lines=blank_lines
    )


def header_of(source: str | Path, *, encoding: str | None = None, delimiter: str | None = None) -> list[str]:
    """The names of the columns, as ``read_table`` has them; none of an empty file."""
    path = Path(source)
    _, _, header = next(_records(path, _style(path, encoding, delimiter)), (0, "", []))
    return column_names(header, str(source)) if header else []


def csv_style(source: str | Path, *, encoding: str | None = None, delimiter: str | None = None) -> CsvStyle:
    """How ``read_table`` reads a CSV; of a single column, as if commas could part it."""
    found = _style(Path(source), encoding, delimiter)
    return replace(found, delimiter=",") if found.delimiter == _NO_DELIMITER else found


def _style(path: Path, encoding: str | None, delimiter: str | None) -> CsvStyle:
    codec = codec_of(path, encoding)
    with path.open("rb") as file:
        is_marked = file.read(3).startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    with closing(text_lines(path, codec)) as lines:
        declared = _DECLARED.fullmatch(next(lines, ""))
    found = _delimiter(path, codec, delimiter, declared[1] if declared else None)
    return CsvStyle(codec, found, is_marked, declared is not None)


def _same_width(record: list[str], width: int, where: str, source: str) -> Row:
    if len(record) != width:
        raise UserInputError(
            f"{source}, {where} has {len(record)} cells where the header has {width}; put cells that contain "
            "the delimiter into double quotes, or name the right --delimiter."
        )
    return [cell or None for cell in record]


def _records(path: Path, style: CsvStyle) -> Iterator[tuple[int, str, list[str]]]:
    """The records that are not blank: the row as a spreadsheet counts, that as in "row 3 (line 7)", cells."""
    lines = text_lines(path, style.codec)
    if style.is_declared:
        next(lines)
    reader = csv.reader(lines, delimiter=style.delimiter, strict=True)
    row = 0
    while True:
        line = reader.line_num + 1 + style.is_declared
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise UserInputError(_about_csv(error, path, row + 1, line)) from None
        if record is None:
            return
        row += 1
        if record:
            yield row, f"row {row} (line {line})", record


def _about_csv(error: csv.Error, path: Path, row: int, line: int) -> str:
    fault = {
        "unexpected end of data": "opens a quoted cell that is never closed",
        f"field larger than field limit ({_LONGEST_CELL})": "opens a quoted cell that does not close",
    }.get(str(error), f"is not valid CSV ({error})")
    return f'{path}, row {row} (line {line}) {fault}; write a quote inside a quoted cell twice ("").'


def _delimiter(path: Path, codec: str, named: str | None, declared: str | None) -> str:
    if named is not None:
        delimiter = _DELIMITER_NAMES.get(named, named)
        if len(delimiter) != 1 or delimiter in '"\r\n\0':
            raise UserInputError(f"The --delimiter must be one character such as ; or tab, not {named!r}.")
        return delimiter
    if declared is not None:
        return declared
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
    with closing(text_lines(path, codec)) as stream:
        for line in islice(stream, 2 * _SNIFF_RECORDS):
            lines.append(line)
            size += len(line)
            if size > _SNIFF_CHARACTERS:
                break
    return lines
