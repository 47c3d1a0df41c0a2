"""JSON lines: an object a line, whose values share a type or become text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from snugtune.data.cells import value_text
from snugtune.data.readers.request import Opened, Request, first_line
from snugtune.data.readers.text import codec_of, text_lines
from snugtune.errors import NoRowsError, UserInputError


def open_json_lines(request: Request) -> Opened:
    """A file of JSON lines, read twice: a late row may bring a new key.

    Raises:
        UserInputError: as ``read_table``.
    """
    path = request.path
    codec = codec_of(path, request.encoding)
    schema = _json_schema(_json_objects(path, codec))
    if not schema:
        raise NoRowsError(f"{path} is empty.")
    return Opened(_json_frames(_json_objects(path, codec), schema, request.rows), first_row=1)


def _json_frames(
    objects: Iterator[dict[str, Any]], schema: dict[str, pl.DataType], rows: int
) -> Iterator[pl.DataFrame]:
    while batch := list(islice(objects, rows)):
        columns = {
            name: [_json_value(row.get(name), dtype) for row in batch] for name, dtype in schema.items()
        }
        yield pl.DataFrame(columns, schema=schema)


def _json_value(value: Any, dtype: pl.DataType) -> Any:
    if value is None:
        return None
    if isinstance(dtype, pl.List):
        item: Any = dtype.inner
        return [_json_value(one, item) for one in value]
    if dtype != pl.String:
        return float(value) if dtype == pl.Float64 else value
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value_text(value)


def _json_schema(objects: Iterable[dict[str, Any]]) -> dict[str, pl.DataType]:
    kinds: dict[str, set[str]] = {}
    items: dict[str, set[str]] = {}
    for row in objects:
        for name, value in row.items():
            kinds.setdefault(name, set()).add(_json_kind(value))
            if isinstance(value, list):
                items.setdefault(name, set()).update(map(_json_kind, value))
    return {
        name: _json_dtype(kind - {"null"}, items.get(name, set()) - {"null"}) for name, kind in kinds.items()
    }


def _json_kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, int) and not isinstance(value, bool):
        return "int" if -(2**63) <= value < 2**63 else "big"
    return type(value).__name__


def _json_dtype(kinds: set[str], items: set[str]) -> pl.DataType:
    """The type all values share; text, which holds everything, where they share none.

    Lists of plain values are lists of the type that all ``items`` share.
    """
    if kinds == {"bool"}:
        return pl.Boolean()
    if kinds == {"int"}:
        return pl.Int64()
    if kinds == {"list"} and not items & {"list", "dict"}:
        return pl.List(_json_dtype(items, set()))
    return pl.Float64() if "float" in kinds and kinds <= {"int", "float"} else pl.String()


def _json_objects(path: Path, codec: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text_lines(path, codec), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if "\\u" in line:
                json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserInputError(f"{path}, line {number} holds half of a surrogate pair (\\uD800).") from None
        except (ValueError, RecursionError) as error:
            raise UserInputError(f"{path}, line {number} is not JSON: {first_line(error)}.") from None
        if not isinstance(value, dict):
            raise UserInputError(
                f'{path}, line {number} is not an object; write one per line: {{"text": ..., "label": ...}}.'
            )
        yield value


def json_lines(source: str | Path, *, encoding: str | None = None) -> Iterator[str]:
    """The lines of a JSON lines file as they are, one for each row of ``read_table``."""
    path = Path(source)
    return (line.strip() for line in text_lines(path, codec_of(path, encoding)) if line.strip())
