"""Tables of SQLite, DuckDB and PostgreSQL: read batch by batch, and written whole or not at all.

SQLite comes with Python. DuckDB has its own library and PostgreSQL one of Apache Arrow (ADBC), both in
``snugtune[sql]``.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl

from snugtune.data.cells import value_text
from snugtune.errors import UserInputError
from snugtune.table_url import TableUrl

# Types of PostgreSQL that Arrow has as well; what is of another one is read as text.
_ARROW_TYPES = (
    "boolean", "smallint", "integer", "bigint", "real", "double precision", "text", "character varying",
    "character", "date", "timestamp without time zone", "timestamp with time zone", "bytea",
)  # fmt: skip

# SQLite gives at most 2,000 columns (sqlite.org/limits.html), and four are asked for each.
_ASKED_AT_ONCE = 400

# Types of DuckDB that Polars does not take, or takes for bytes, by themselves and within others.
_UNKNOWN_TO_POLARS = re.compile(
    r"\b(INTERVAL|BIT|TIME WITH TIME ZONE|TIME_NS|BIGNUM|VARINT|UNION|VARIANT|GEOMETRY)\b"
)

Types = dict[str, str]


def iter_sql(url: TableUrl, rows: int) -> Iterator[pl.DataFrame]:
    """The table's rows, ``rows`` at a time, in the order in which the database gives them.

    Raises:
        UserInputError: the database cannot be opened or has no such table.
    """
    readers = {"sqlite": _read_sqlite, "duckdb": _read_duckdb, "postgresql": _read_postgresql}
    with _told(url):
        yield from _cut(readers[url.scheme](url, rows), rows)


def check_sql_output(url: TableUrl, *, overwrite: bool) -> None:
    """Refuse, before any work, a table that could not be written.

    Raises:
        UserInputError: the database cannot be opened, or has the table and ``overwrite`` is not set.
    """
    if url.scheme != "postgresql" and not Path(url.database).parent.is_dir():
        raise UserInputError(f"Cannot write {url.shown}: its folder does not exist; create it first.")
    if url.scheme != "postgresql" and not Path(url.database).exists():
        if url.scheme == "duckdb":
            _import("duckdb", url)
        return
    with _told(url):
        exists = bool(sql_types(url))
    if exists and not overwrite:
        raise UserInputError(f"{url.shown} already exists; choose another table or add --overwrite.")


def sql_types(url: TableUrl) -> Types:
    """The database's own type of each column; nothing if there is no such table."""
    with _told(url):
        if url.scheme == "sqlite":
            with closing(_open_sqlite(url, "ro")) as base:
                found = base.execute(f"PRAGMA table_info({_quoted(url.table)})").fetchall()
                return {row[1]: row[2] for row in found}
        if url.scheme == "duckdb":
            duckdb = _import("duckdb", url)
            with duckdb.connect(url.database, read_only=True) as base:
                try:
                    found = base.execute(f"DESCRIBE {_name(url)}").fetchall()
                except duckdb.CatalogException:
                    return {}
                return {row[0]: row[1] for row in found}
        with _postgresql(url) as base, base.cursor() as cursor:
            return _postgresql_types(cursor, url)


def create_sql(url: TableUrl, parquet: Path, types: Mapping[str, str], *, overwrite: bool) -> None:
    """Make the rows of ``parquet`` the table ``url``, in one transaction.

    ``types`` are what ``sql_types`` said of columns that come from a database of the same kind.

    Raises:
        UserInputError: the database refuses.
    """
    writers = {"sqlite": _write_sqlite, "duckdb": _write_duckdb, "postgresql": _write_postgresql}
    with _told(url):
        writers[url.scheme](url, parquet, types, overwrite)


def _cut(frames: Iterable[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """Frames of ``rows`` rows, but for the last."""
    texts = pl.col(pl.Categorical, pl.Enum).cast(pl.String)
    kept: pl.DataFrame | None = None
    for frame in frames:
        plain = frame.with_columns(texts)
        kept = plain if kept is None else pl.concat([kept, plain])
        full = kept.height // rows * rows
        yield from kept[:full].iter_slices(rows) if full else ()
        kept = kept[full:]
    if kept is not None and (kept.height or not kept.width):
        yield kept


@contextmanager
def _told(url: TableUrl) -> Iterator[None]:
    """What the libraries raise, as one sentence; none of them repeats the password, and we don't either."""
    try:
        yield
    except (UserInputError, GeneratorExit, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserInputError(
            f"{url.shown} cannot be used: {reason.replace(url.database, 'the database')}."
        ) from None


def _import(module: str, url: TableUrl) -> Any:
    try:
        import importlib

        return importlib.import_module(module)
    except ImportError:
        raise UserInputError(f"For {url.scheme} databases: pip install 'snugtune[sql]'.") from None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _name(url: TableUrl) -> str:
    """The table's name for a statement; a point stands behind the schema, but not in SQLite."""
    return _quoted(url.table) if url.scheme == "sqlite" else ".".join(map(_quoted, url.table.split(".", 1)))


def _missing(url: TableUrl) -> UserInputError:
    return UserInputError(f"{url.shown}: there is no table {url.table!r}; check its name.")


# --- SQLite ----------------------------------------------------------------------------------------------


def _open_sqlite(url: TableUrl, mode: str) -> sqlite3.Connection:
    if mode == "ro" and not Path(url.database).is_file():
        raise UserInputError(f"{url.shown}: the file {url.database} does not exist; check the path.")
    return sqlite3.connect(f"file:{quote(url.database)}?mode={mode}", uri=True)


def _read_sqlite(url: TableUrl, rows: int) -> Iterator[pl.DataFrame]:
    names = list(sql_types(url))
    if not names:
        raise _missing(url)
    with closing(_open_sqlite(url, "ro")) as base:
        schema = _sqlite_schema(base, names, url)
        cursor = base.execute(f"SELECT {', '.join(map(_quoted, names))} FROM {_name(url)}")
        while batch := cursor.fetchmany(rows):
            columns = dict(zip(names, zip(*batch, strict=True), strict=True))
            yield pl.DataFrame(
                {name: _as(columns[name], dtype) for name, dtype in schema.items()}, schema=schema
            )


def _sqlite_schema(
    base: sqlite3.Connection, names: Sequence[str], url: TableUrl
) -> dict[str, type[pl.DataType]]:
    """By what the cells are: SQLite lets each be of another type, whatever was declared."""
    schema: dict[str, type[pl.DataType]] = {}
    for name, held in _sqlite_kinds(base, names, url).items():
        if "blob" in held and len(held) > 1:
            raise UserInputError(f"{url.shown}: column {name!r} holds both bytes and other values.")
        types = {
            frozenset({"integer"}): pl.Int64,
            frozenset({"real"}): pl.Float64,
            frozenset({"integer", "real"}): pl.Float64,
            frozenset({"blob"}): pl.Binary,
        }
        schema[name] = types.get(frozenset(held), pl.String)
    return schema


def _sqlite_kinds(base: sqlite3.Connection, names: Sequence[str], url: TableUrl) -> dict[str, set[str]]:
    """What kinds of cells each column holds."""
    kinds = ("integer", "real", "text", "blob")
    held: dict[str, set[str]] = {}
    for start in range(0, len(names), _ASKED_AT_ONCE):
        some = names[start : start + _ASKED_AT_ONCE]
        asked = ", ".join(f"max(typeof({_quoted(name)}) = '{kind}')" for name in some for kind in kinds)
        found = iter(base.execute(f"SELECT {asked} FROM {_name(url)}").fetchone())
        held |= {name: {kind for kind in kinds if next(found)} for name in some}
    return held


def _as(values: Sequence[Any], dtype: type[pl.DataType]) -> Sequence[Any]:
    if dtype != pl.String:
        return values
    return [value_text(value) for value in values]


def _write_sqlite(url: TableUrl, parquet: Path, types: Mapping[str, str], overwrite: bool) -> None:
    lazy = pl.scan_parquet(parquet, glob=False)
    schema, height = lazy.collect_schema(), lazy.select(pl.len()).collect().item()
    declared = [f"{_quoted(name)} {types.get(name) or _sqlite_type(of)}" for name, of in schema.items()]
    with closing(_open_sqlite(url, "rwc")) as base:
        base.isolation_level = None
        base.execute("BEGIN IMMEDIATE")  # rolled back when the connection closes without a commit
        if overwrite:
            base.execute(f"DROP TABLE IF EXISTS {_name(url)}")
        base.execute(f"CREATE TABLE {_name(url)} ({', '.join(declared)})")
        insert = f"INSERT INTO {_name(url)} VALUES ({', '.join('?' * len(schema))})"
        for start in range(0, height, 1 << 16):
            frame = lazy.slice(start, 1 << 16).collect()
            texts = [
                pl.col(name).cast(pl.String) for name, of in schema.items() if _sqlite_type(of) == "TEXT"
            ]
            base.executemany(insert, frame.with_columns(texts).iter_rows())
        base.execute("COMMIT")


def _sqlite_type(dtype: pl.DataType) -> str:
    """Days and times are text in SQLite, truths are 0 and 1: sqlite.org/datatype3.html."""
    if dtype.is_integer() or dtype == pl.Boolean:
        return "INTEGER"
    if dtype.is_float():
        return "REAL"
    return "BLOB" if dtype == pl.Binary else "TEXT"


# --- DuckDB ----------------------------------------------------------------------------------------------


def _read_duckdb(url: TableUrl, rows: int) -> Iterator[pl.DataFrame]:
    duckdb = _import("duckdb", url)
    if not Path(url.database).is_file():
        raise UserInputError(f"{url.shown}: the file {url.database} does not exist; check the path.")
    types = sql_types(url)
    if not types:
        raise _missing(url)
    columns = ", ".join(
        f"{_quoted(name)}::VARCHAR AS {_quoted(name)}" if _UNKNOWN_TO_POLARS.search(of) else _quoted(name)
        for name, of in types.items()
    )
    with duckdb.connect(url.database, read_only=True) as base:
        reader = base.sql(f"SELECT {columns} FROM {_name(url)}").to_arrow_reader(rows)
        for batch in reader:
            yield _frame(batch)


def _write_duckdb(url: TableUrl, parquet: Path, types: Mapping[str, str], overwrite: bool) -> None:
    names = pl.scan_parquet(parquet, glob=False).collect_schema().names()
    columns = ", ".join(
        f"CAST({_quoted(name)} AS {types[name]}) AS {_quoted(name)}" if name in types else _quoted(name)
        for name in names
    )
    with _import("duckdb", url).connect(url.database) as base:
        base.execute("BEGIN")
        if overwrite:
            base.execute(f"DROP TABLE IF EXISTS {_name(url)}")
        rows = f"read_parquet('{str(parquet).replace(chr(39), chr(39) * 2)}')"
        base.execute(f"CREATE TABLE {_name(url)} AS SELECT {columns} FROM {rows}")
        base.execute("COMMIT")


# --- PostgreSQL ------------------------------------------------------------------------------------------


def _postgresql(url: TableUrl) -> Any:
    """A connection; without a password in the address, libpq finds one as psql does."""
    return _import("adbc_driver_postgresql.dbapi", url).connect(url.database)


def _postgresql_types(cursor: Any, url: TableUrl) -> Types:
    """As in ``CREATE TABLE``; pg_attribute is documented in PostgreSQL's manual, chapter 53.7."""
    cursor.execute(
        "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        (_name(url),),
    )
    return dict(cursor.fetchall())


def _is_arrow(declared: str) -> bool:
    """Whether ``declared``, such as "character varying(20)", is a type that needs no text between."""
    return declared.partition("(")[0] in _ARROW_TYPES


def _read_postgresql(url: TableUrl, rows: int) -> Iterator[pl.DataFrame]:  # noqa: ARG001
    with _postgresql(url) as base, base.cursor() as cursor:
        types = _postgresql_types(cursor, url)
        if not types:
            raise _missing(url)
        columns = ", ".join(
            _quoted(name) if _is_arrow(of) else f"{_quoted(name)}::text AS {_quoted(name)}"
            for name, of in types.items()
        )
        cursor.execute(f"SELECT {columns} FROM {_name(url)}")
        for batch in cursor.fetch_record_batch():
            yield _frame(batch)


def _write_postgresql(url: TableUrl, parquet: Path, types: Mapping[str, str], overwrite: bool) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    schema, _, table = url.table.rpartition(".")
    with ParquetFile(parquet) as file, _postgresql(url) as base, base.cursor() as cursor:
        if overwrite:
            cursor.execute(f"DROP TABLE IF EXISTS {_name(url)}")
        reader = pyarrow.RecordBatchReader.from_batches(file.schema_arrow, file.iter_batches())
        cursor.adbc_ingest(table, reader, mode="create", db_schema_name=schema or None)
        for name, of in types.items():
            if name in file.schema_arrow.names and not _is_arrow(of):
                column = _quoted(name)
                cursor.execute(f"ALTER TABLE {_name(url)} ALTER {column} TYPE {of} USING {column}::{of}")
        base.commit()


def _frame(batch: Any) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame
