"""A table given back in the format it came in: what is the user's stays as it was, only columns are new."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import polars as pl

from snugtune.data.readers.delimited import CsvStyle, csv_style
from snugtune.data.readers.json_lines import json_lines
from snugtune.data.sql import sql_types
from snugtune.errors import UserInputError
from snugtune.predict.summary import Summary
from snugtune.predict.workbook.roundtrip import Roundtrip
from snugtune.predict.write import (
    ROW_GROUP,
    Frames,
    Writer,
    stream_csv,
    write_excel,
    write_parquet,
    write_sql,
)
from snugtune.table_url import is_table_url, parse_table_url

_BOOKS = (".xlsx", ".xlsm")
_JSON_LINES = (".jsonl", ".ndjson")


def writer_like(
    source: str | Path,
    output: str | Path | BinaryIO,
    added: Sequence[str],
    *,
    summary: Summary | None = None,
    overwrite: bool = False,
    sheet: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> Writer | None:
    """What writes the rows of ``source`` with the columns ``added`` to ``output``; None: nothing special.

    A workbook becomes the same workbook, a line of JSON the same line, columns of Parquet keep types that
    polars would change, a CSV its delimiter and byte order mark, and columns of a database their types.
    ``summary`` is put into workbooks.

    Raises:
        UserInputError: the workbook cannot take the columns, or would lose its macros.
    """
    if not isinstance(output, (str, Path)):
        return None
    if is_table_url(output):
        return _sql_writer(str(source), str(output), overwrite)
    source, old, new = Path(source), Path(source).suffix.lower(), Path(output).suffix.lower()
    if not source.is_file():  # a data set's folder, or one from the Hub
        old = ""
    writer: Writer | None = None
    if old in _BOOKS and new in _BOOKS:
        if old != new:
            raise UserInputError(f"{source} is given back as the workbook it is: name the output {old}.")
        writer = partial(_write_workbook, Roundtrip.plan(source, added, sheet=sheet), summary)
    elif new == ".xlsx":
        writer = partial(_write_new_workbook, summary)
    elif old in (*_JSON_LINES, ".json") and new in _JSON_LINES:
        writer = partial(_write_json_lines, source, added, encoding)
    elif old in (".parquet", ".pq") and new == ".parquet":
        writer = partial(_write_parquet, source, added)
    elif old in (".csv", ".txt") and new == ".csv":
        writer = partial(_write_csv, csv_style(source, encoding=encoding, delimiter=delimiter))
    return writer


def _sql_writer(source: str, output: str, overwrite: bool) -> Writer:
    types = {}
    if is_table_url(source):
        old = parse_table_url(source)
        if old.scheme == parse_table_url(output).scheme:
            types = sql_types(old)
    return partial(write_sql, output, types=types, overwrite=overwrite)


def _write_workbook(trip: Roundtrip, summary: Summary | None, frames: Frames, path: Path) -> None:
    trip.write(frames if summary is None else summary.counted(frames), path, summary)


def _write_new_workbook(summary: Summary | None, frames: Frames, path: Path) -> None:
    write_excel(frames if summary is None else summary.counted(frames), path, summary=summary)


def _write_csv(style: CsvStyle, frames: Frames, path: Path) -> None:
    with path.open("wb") as file:
        if style.is_marked:  # Excel takes a CSV without it for one in the encoding of the machine
            file.write(codecs.BOM_UTF8)
        if style.is_declared:
            file.write(f"sep={style.delimiter}\n".encode())
        stream_csv(frames, file, separator=style.delimiter)


def _write_json_lines(
    source: Path, added: Sequence[str], encoding: str | None, frames: Frames, path: Path
) -> None:
    rows = chain.from_iterable(frame.select(added).iter_rows() for frame in frames)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for values, line in zip(rows, json_lines(source, encoding=encoding), strict=True):
            file.write(_with_fields(line, dict(zip(added, values, strict=True))) + "\n")


def _with_fields(line: str, fields: dict[str, Any]) -> str:
    """The object of ``line`` with ``fields``: its own text is not written anew unless it has one of them."""
    if "\\" in line or any(f'"{name}"' in line for name in fields):
        row = json.loads(line)
        if row.keys() & fields.keys():
            kept = {key: value for key, value in row.items() if key not in fields}
            return json.dumps(kept | fields, ensure_ascii=False)
    body = line[:-1].rstrip()
    return body + ("" if body == "{" else ", ") + json.dumps(fields, ensure_ascii=False)[1:]


def _write_parquet(source: Path, added: Sequence[str], frames: Frames, path: Path) -> None:
    """The new columns in a file of their own, then both side by side: the old ones are never converted."""
    with TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}-") as folder:
        columns = Path(folder, "added.parquet")
        write_parquet((frame.select(added) for frame in frames), columns)
        old, new = pl.scan_parquet(source, glob=False), pl.scan_parquet(columns, glob=False)
        rows = [lazy.select(pl.len()).collect().item() for lazy in (old, new)]
        if rows[0] != rows[1]:
            raise UserInputError(f"{source} was changed while it was read; run this again.")
        both = pl.concat([old.drop(added, strict=False), new], how="horizontal")
        both.sink_parquet(path, row_group_size=ROW_GROUP)
