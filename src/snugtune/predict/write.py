"""Tables batch by batch into one file, memory constant in the number of rows."""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import polars as pl

from snugtune.data.form import EXCEL_CHARACTERS
from snugtune.data.sql import check_sql_output, create_sql
from snugtune.errors import UserInputError
from snugtune.files import check_new_file, replacing
from snugtune.predict.summary import TITLE, Summary
from snugtune.table_url import is_table_url, parse_table_url

# What one worksheet holds: support.microsoft.com, "Excel specifications and limits".
EXCEL_ROWS = 1_048_576  # the header is one of them
EXCEL_COLUMNS = 16_384
EXCEL_DIGITS = 15  # numbers of more digits would be rounded, so they are written as text
EXCEL_FIRST_DAY = dt.date(1900, 1, 1)

LABEL_COLUMNS = ("predicted_label", "second_label", "third_label", "next_label")
_FORMULA_STARTS = ["=", "+", "-", "@", "\t", "\r"]  # OWASP, "CSV Injection"
ROW_GROUP = 1 << 17  # rows per Parquet row group: what the writer holds at a time

Frames = Iterable[pl.DataFrame]
Writer = Callable[[Frames, Path], None]


def write_tables(
    frames: Frames,
    output: str | Path | BinaryIO,
    *,
    csv_safe: bool = False,
    writer: Writer | None = None,
) -> dict[str, int]:
    """Write ``frames`` one after the other to ``output``; its suffix decides the format, or ``writer``.

    A file already there is replaced when all rows are written, never before; a stream gets CSV. With
    ``csv_safe``, labels in a CSV or TSV that a spreadsheet would take for a formula get a leading
    apostrophe; the user's own cells are never changed. Returns the number of rows and of those that need
    review.

    Raises:
        UserInputError: the suffix is not one we write, the file cannot be written, or the rows or cells do
            not fit into an Excel sheet.
    """
    counts = {"rows": 0, "needs_review": 0}

    def counted() -> Iterator[pl.DataFrame]:
        for frame in frames:
            counts["rows"] += frame.height
            counts["needs_review"] += int(frame["needs_review"].sum())
            yield _apostrophes(frame) if csv_safe else frame

    if not isinstance(output, (str, Path)):
        stream_csv(counted(), output)
        return counts
    if is_table_url(output) and not csv_safe:
        (writer or partial(write_sql, str(output)))(counted(), Path())
        return counts
    output = Path(output)
    writer = writer or _writer(output)
    if csv_safe and output.suffix.lower() not in (".csv", ".tsv"):
        raise UserInputError(f"csv_safe is for CSV and TSV, not for {output}; leave it out.")
    with replacing(output) as temporary:
        writer(counted(), temporary)
    return counts


def write_frame(frame: pl.DataFrame, output: str | Path) -> None:
    """Write a whole ``frame`` to ``output`` as `write_tables` does, whatever its columns.

    Raises:
        UserInputError: as there.
    """
    if is_table_url(output):
        write_sql(str(output), [frame], Path())
        return
    output = Path(output)
    with replacing(output) as temporary:
        _writer(output)([frame], temporary)


def check_output(output: str | Path, *, overwrite: bool = False) -> None:
    """Refuse, before any work, an ``output`` that could not be written at its end.

    Raises:
        UserInputError: unknown suffix, no such folder, a folder of that name, or a file that is already
            there and ``overwrite`` is not set.
    """
    if is_table_url(output):
        check_sql_output(parse_table_url(str(output)), overwrite=overwrite)
        return
    output = Path(output)
    _writer(output)
    check_new_file(output, overwrite=overwrite)


def check_fits(
    frame: pl.DataFrame, output: str | Path, *, rows_before: int = 0, more_columns: int = 0
) -> None:
    """Refuse rows that the format of ``output`` cannot hold; only Excel has limits.

    Args:
        frame: rows on their way to ``output``.
        output: where they will be written.
        rows_before: rows that come before those of ``frame``.
        more_columns: columns that will be added.

    Raises:
        UserInputError: too many rows or columns, or a cell that is too long; it says which.
    """
    if is_table_url(output) or Path(output).suffix.lower() != ".xlsx":
        return
    advice = "write .csv or .parquet instead"
    if rows_before + frame.height > EXCEL_ROWS - 1:
        raise UserInputError(
            f"An Excel sheet holds {EXCEL_ROWS - 1:,} rows below its header, "
            f"and this table has more; {advice}."
        )
    if frame.width + more_columns > EXCEL_COLUMNS:
        raise UserInputError(
            f"An Excel sheet holds {EXCEL_COLUMNS:,} columns and this table has more; {advice}."
        )
    if long := _long_cell(_flat(frame)):
        row, column, length = long
        raise UserInputError(
            f"Row {rows_before + row + 1:,} of the table has {length:,} characters in column {column!r} "
            f"and an Excel cell holds {EXCEL_CHARACTERS:,}; {advice}."
        )


def _writer(output: Path) -> Writer:
    writer = _WRITERS.get(output.suffix.lower())
    if writer is None:
        raise UserInputError(f"Cannot write {output}: name it with one of {', '.join(sorted(_WRITERS))}.")
    return writer


# --- text ------------------------------------------------------------------------------------------------


def _write_csv(frames: Frames, path: Path) -> None:
    with path.open("wb") as file:
        stream_csv(frames, file)


def _write_tsv(frames: Frames, path: Path) -> None:
    with path.open("wb") as file:
        stream_csv(frames, file, separator="\t")


def stream_csv(frames: Frames, file: BinaryIO, separator: str = ",") -> None:
    """Write CSV to an open file, batch by batch."""
    for i, frame in enumerate(frames):
        file.write(_flat(frame).write_csv(include_header=i == 0, separator=separator).encode())
        file.flush()


def _write_json_lines(frames: Frames, path: Path) -> None:
    with path.open("wb") as file:
        for frame in frames:
            file.write(_flat(frame, nested=_holds_bytes).write_ndjson().encode())


def _apostrophes(frame: pl.DataFrame) -> pl.DataFrame:
    """Labels that begin like a formula with an apostrophe before them."""
    return frame.with_columns(
        pl.when(pl.col(name).str.slice(0, 1).is_in(_FORMULA_STARTS))
        .then("'" + pl.col(name))
        .otherwise(pl.col(name))
        .alias(name)
        for name in LABEL_COLUMNS
        if name in frame.columns
    )


def _is_nested(dtype: pl.DataType) -> bool:
    return dtype.is_nested()


def _holds_bytes(dtype: pl.DataType) -> bool:
    return dtype.is_nested() and "Binary" in repr(dtype)


def _flat(
    frame: pl.DataFrame,
    nested: Callable[[pl.DataType], bool] = _is_nested,
    others: tuple[type[pl.DataType], ...] = (pl.Binary, pl.Duration, pl.Object),
) -> pl.DataFrame:
    """Columns that a text file cannot hold as they are, as text.

    Lists and structures (those of ``nested``) become JSON; of ``others``, bytes become base64 and durations
    ISO 8601.
    """
    return frame.with_columns(
        _as_text(frame[name]) for name, dtype in frame.schema.items() if nested(dtype) or dtype in others
    )


def _as_text(column: pl.Series) -> pl.Series:
    if column.dtype == pl.Binary:
        return column.bin.encode("base64")
    if column.dtype == pl.Duration:
        return column.dt.to_string("iso")
    values = [None if value is None else _json_text(value) for value in column.to_list()]
    return pl.Series(column.name, values, dtype=pl.String)


def _json_text(value: Any) -> str:
    def other(part: Any) -> str:
        return base64.b64encode(part).decode() if isinstance(part, bytes) else str(part)

    return json.dumps(value, ensure_ascii=False, default=other)


# --- Parquet ---------------------------------------------------------------------------------------------


def write_parquet(frames: Frames, path: Path) -> None:
    """Each batch as a file of its own, then all of them streamed into one.

    So no more than a row group is held, and the type of a column that is empty in the first batch is
    known before the file is begun.
    """
    with TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}-") as folder:
        parts = []
        for i, frame in enumerate(frames):
            parts.append(Path(folder, f"{i}.parquet"))
            frame.write_parquet(parts[-1], compression="lz4")
        whole = pl.concat([pl.scan_parquet(part, glob=False) for part in parts], how="vertical_relaxed")
        whole.sink_parquet(path, row_group_size=ROW_GROUP)


# --- databases -------------------------------------------------------------------------------------------


def write_sql(
    output: str,
    frames: Frames,
    _path: Path,
    *,
    types: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Make ``frames`` a table, when all of them are there: the table may be the one they are read from."""
    with TemporaryDirectory(prefix="snugtune-") as folder:
        rows = Path(folder, "rows.parquet")
        write_parquet((_flat(frame, others=(pl.Duration, pl.Object)) for frame in frames), rows)
        create_sql(parse_table_url(output), rows, types or {}, overwrite=overwrite)


# --- Excel -----------------------------------------------------------------------------------------------


def write_excel(frames: Frames, path: Path, *, summary: Summary | None = None) -> None:
    """A new workbook: the rows on its first sheet, ``summary`` of them on its second."""
    from xlsxwriter import Workbook

    # The library's own working files lie beside the output: they are as large, and go with it.
    with TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}-") as folder:
        book = Workbook(path, {"constant_memory": True, "tmpdir": folder})
        sheet = book.add_worksheet()
        with closing(sheet.row_data_fh):  # the library closes it with the book, so not after a fault
            _fill_sheet(sheet, _Formats(book), frames, path)
            if summary is not None:
                summary.fill(book, book.add_worksheet(TITLE))
            book.close()  # not in a "finally": a table that broke off is not finished into a workbook


def _fill_sheet(sheet: Any, formats: _Formats, frames: Frames, path: Path) -> None:
    sheet.freeze_panes(1, 0)
    line = 1
    for frame in frames:
        check_fits(frame, path, rows_before=line - 1)
        flat = _flat(frame)
        if line == 1:
            for c, name in enumerate(flat.columns):
                sheet.write_string(0, c, name)
        for row in flat.iter_rows():
            for c, value in enumerate(row):
                if value is not None:
                    _write_cell(sheet, formats, line, c, value)
            line += 1


class _Formats:
    """How Excel is to show the numbers that stand for days and times."""

    def __init__(self, book: Any) -> None:
        self.date = book.add_format({"num_format": "yyyy-mm-dd"})
        self.datetime = book.add_format({"num_format": "yyyy-mm-dd hh:mm:ss"})
        self.time = book.add_format({"num_format": "hh:mm:ss"})


def _write_cell(sheet: Any, formats: _Formats, row: int, column: int, value: Any) -> None:
    """One cell by its type. Text is text, also where it begins like a formula, a number or a link."""
    if isinstance(value, str):
        sheet.write_string(row, column, value)
    elif isinstance(value, bool):
        sheet.write_boolean(row, column, value)
    elif isinstance(value, dt.time):
        sheet.write_datetime(row, column, value, formats.time)
    elif isinstance(value, dt.date):
        _write_day(sheet, formats, row, column, value)
    elif not _is_finite(value):
        if not math.isnan(value):  # Excel has no such numbers; not-a-number is no value
            sheet.write_string(row, column, str(value))
    elif isinstance(value, float) or _digits(value) <= EXCEL_DIGITS:
        sheet.write_number(row, column, float(value))
    else:
        sheet.write_string(row, column, str(value))


def _write_day(sheet: Any, formats: _Formats, row: int, column: int, value: dt.date) -> None:
    """A day, with or without a time; the clock of its own time zone, as a sheet knows no zones."""
    timed = isinstance(value, dt.datetime)
    day = value.date() if isinstance(value, dt.datetime) else value
    if day < EXCEL_FIRST_DAY:
        sheet.write_string(row, column, value.isoformat(sep=" ") if timed else value.isoformat())  # type: ignore[call-arg]
        return
    plain = value.replace(tzinfo=None) if isinstance(value, dt.datetime) else value
    sheet.write_datetime(row, column, plain, formats.datetime if timed else formats.date)


def _is_finite(value: Any) -> bool:
    return math.isfinite(value)


def _digits(value: Any) -> int:
    """Significant digits of an int or Decimal."""
    return len(str(value).lstrip("-").replace(".", "").strip("0"))


def _long_cell(frame: pl.DataFrame) -> tuple[int, str, int] | None:
    """Row index, column and length in UTF-16 code units of the first cell that is too long for Excel."""
    for name, dtype in frame.schema.items():
        # A cell of so many code units has at least as many bytes of UTF-8, which polars counts at no cost.
        if dtype != pl.String or (frame[name].str.len_bytes().max() or 0) <= EXCEL_CHARACTERS:  # type: ignore[operator]
            continue
        for row, value in enumerate(frame[name]):
            length = len(value.encode("utf-16-le")) // 2 if value else 0
            if length > EXCEL_CHARACTERS:
                return row, name, length
    return None


def _refuse_macros(_frames: Frames, path: Path) -> None:
    raise UserInputError(f"Only an .xlsm workbook can be written as {path.suffix}; name the output .xlsx.")


_WRITERS: dict[str, Writer] = {
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".jsonl": _write_json_lines,
    ".ndjson": _write_json_lines,
    ".parquet": write_parquet,
    ".xlsx": write_excel,
    ".xlsm": _refuse_macros,
}
