"""What a cell is as text: one rule for all formats, so that a value has one name wherever its table lies.

Workbooks set the rule, for there every value has a type and people see a text: whole numbers have no point,
other numbers are the shortest that read back the same, truths are TRUE and FALSE, days and times are ISO 8601
with a blank between, and a day's midnight is the day. Not-a-number is no value. Bytes are text in UTF-8.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from typing import Any

import polars as pl

from snugtune.errors import UserInputError

WHOLE_BELOW = 1e15
"""Whole numbers from here on keep their exponent or point: Excel keeps 15 digits."""

POINT_FROM = 1e-4
"""Below it Python writes a number with an exponent and Polars without one."""

RowOf = Callable[[int], int]
"""The row of the file, as a spreadsheet counts, of a row of the frame (from 0)."""


def value_text(value: Any) -> str | None:
    """The text of one value as parsers give them: text, truth, number, day or time; None where it is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer() and abs(value) < WHOLE_BELOW:
        return str(int(value))
    if isinstance(value, dt.datetime):
        is_day = value.tzinfo is None and value.time() == dt.time()
        return value.date().isoformat() if is_day else value.isoformat(sep=" ")
    return str(value)


def column_text(column: pl.Series, *, source: str = "the table", row_of: RowOf | None = None) -> pl.Series:
    """The texts (N,) of a column as `value_text` has them, null where there is no value.

    ``source`` and ``row_of`` are for messages.

    Raises:
        UserInputError: bytes are not UTF-8, a day is none of the calendar, or the column holds no plain
            values.
    """
    dtype = column.dtype
    check_plain(column.name, dtype, source)
    if dtype == pl.Binary:
        return _decoded(column, source, row_of)
    if dtype == pl.Date:
        _check_days(column, source, row_of)
    text_of = _TEXTS.get(dtype.base_type())
    return column.cast(pl.String) if text_of is None else text_of(column)


def cell_texts(column: pl.Series, *, source: str = "the table", row_of: RowOf | None = None) -> list[str]:
    """`column_text` as strings (N,), empty where there is no value."""
    return column_text(column, source=source, row_of=row_of).fill_null("").to_list()


def label_cells(column: pl.Series, *, source: str = "the table", row_of: RowOf | None = None) -> list[str]:
    """The cells (N,) of a column of labels: `cell_texts` without surrounding blanks, empty where blank."""
    return [cell.strip() for cell in cell_texts(column, source=source, row_of=row_of)]


def list_items(
    column: pl.Series, *, source: str = "the table", row_of: RowOf | None = None
) -> list[list[str] | None]:
    """The items of each list (N,) of a column of lists as texts, without those that are no value.

    Raises:
        UserInputError: as `column_text`.
    """
    sizes = column.list.len()
    starts, rows = sizes.fill_null(0).cum_sum().to_list(), sizes.to_list()
    filled = column.filter(sizes > 0)
    owners = [i for i, size in enumerate(rows) for _ in range(size or 0)]
    of_item = None if row_of is None else (lambda item: row_of(owners[item]))
    items = column_text(filled.explode(), source=source, row_of=of_item).to_list() if filled.len() else []
    return [
        None if size is None else [text for text in items[end - size : end] if text is not None]
        for size, end in zip(rows, starts, strict=True)
    ]


def check_plain(name: str, dtype: pl.DataType, source: str) -> None:
    """Refuse a column that holds more than one value in a cell.

    Raises:
        UserInputError: it does.
    """
    if dtype.is_nested() or dtype == pl.Object:
        raise UserInputError(f"Column {name!r} of {source} holds lists or structures, not plain values.")


def is_text(column: pl.Series) -> bool:
    """Whether a column is one of texts: strings, or bytes that are all UTF-8."""
    if column.dtype != pl.Binary:
        return column.dtype == pl.String
    try:
        column_text(column)
    except UserInputError:
        return False
    return True


def _check_days(column: pl.Series, source: str, row_of: RowOf | None) -> None:
    """Refuse what Polars panics at: the day "infinity" of a database, or damage."""
    outside = (~column.is_between(dt.date.min, dt.date.max)).arg_true()
    if outside.len():
        raise UserInputError(
            f"Column {column.name!r} of {source}{where(int(outside[0]), row_of)} holds a day outside of the "
            "years 1 to 9999; correct it, or name another column."
        )


def where(i: int, row_of: RowOf | None) -> str:
    """For a message: the row of the file, behind its name; nothing where nobody knows it."""
    return "" if row_of is None else f", row {row_of(i)}"


def _decoded(column: pl.Series, source: str, row_of: RowOf | None) -> pl.Series:
    try:
        return column.cast(pl.String)
    except pl.exceptions.ComputeError:
        i, byte = next(bad for bad in enumerate(map(_undecodable, column)) if bad[1] is not None)
        raise UserInputError(
            f"Column {column.name!r} of {source}{where(i, row_of)} holds bytes that are no text in UTF-8 "
            f"(0x{byte:02X}); decode it where it comes from, or name another column."
        ) from None


def _undecodable(value: bytes | None) -> int | None:
    """The first byte that is not of UTF-8."""
    try:
        (value or b"").decode()
    except UnicodeDecodeError as error:
        return error.object[error.start]
    return None


def _truth_text(column: pl.Series) -> pl.Series:
    return column.cast(pl.String).str.to_uppercase()


def _decimal_text(column: pl.Series) -> pl.Series:
    texts = column.cast(pl.String)
    has_point = bool(column.dtype.scale)  # type: ignore[attr-defined]
    return texts.str.strip_chars_end("0").str.strip_chars_end(".") if has_point else texts


def _float_text(column: pl.Series) -> pl.Series:
    column = column.fill_nan(None)
    size = column.abs()
    texts = column.cast(pl.String)
    odd = texts.filter(column.is_finite() & (size > 0) & ((size < POINT_FROM) | (size >= WHOLE_BELOW)))
    if odd.len():
        spelled = odd.unique()
        texts = texts.replace(spelled, pl.Series([repr(float(text)) for text in spelled]))
    is_whole = column.is_finite() & (column == column.floor()) & (size < WHOLE_BELOW)
    return column.cast(pl.Int64, strict=False).cast(pl.String).zip_with(is_whole, texts)


def _moment_text(column: pl.Series) -> pl.Series:
    column = column.dt.cast_time_unit("us")
    is_zoned = column.dtype.time_zone is not None  # type: ignore[attr-defined]
    zone = "%:z" if is_zoned else ""
    texts = _with_microseconds(column, "%Y-%m-%d %H:%M:%S", zone, column.dt.microsecond())
    if is_zoned:
        return texts
    return column.dt.to_string("%Y-%m-%d").zip_with(column.dt.time() == dt.time(), texts)


def _time_text(column: pl.Series) -> pl.Series:
    return _with_microseconds(column, "%H:%M:%S", "", column.dt.nanosecond() // 1_000)


def _with_microseconds(column: pl.Series, form: str, zone: str, microsecond: pl.Series) -> pl.Series:
    """Six digits of a second's fraction where there is one, none where there is none."""
    whole, fine = column.dt.to_string(form + zone), column.dt.to_string(f"{form}%.6f{zone}")
    return whole.zip_with(microsecond == 0, fine)


def _duration_text(column: pl.Series) -> pl.Series:
    """As Python writes them, which is how the durations of a workbook are read."""
    values = column.dt.cast_time_unit("us").drop_nulls().unique()
    named = pl.Series([str(value) for value in values], dtype=pl.String)
    return column.dt.cast_time_unit("us").replace_strict(values, named, default=None, return_dtype=pl.String)


_TEXTS: dict[Any, Callable[[pl.Series], pl.Series]] = {
    **dict.fromkeys((pl.Float32, pl.Float64), _float_text),
    pl.Boolean: _truth_text,
    pl.Decimal: _decimal_text,
    pl.Datetime: _moment_text,
    pl.Time: _time_text,
    pl.Duration: _duration_text,
}
"""What Polars would write otherwise by itself."""
