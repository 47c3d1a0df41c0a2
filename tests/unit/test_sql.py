"""Tables of databases in and out; no password is shown or kept."""

import datetime as dt
import sqlite3
from decimal import Decimal

import polars as pl
import pytest

from databases import PASSWORD, QUOTED, postgresql
from snugtune.config import FitConfig
from snugtune.data.sql import sql_types
from snugtune.data.table import iter_tables, read_table
from snugtune.errors import UserInputError
from snugtune.predict.predictor import ADDED_COLUMNS
from snugtune.predict.write import check_output, write_tables
from snugtune.table_url import hide_password, parse_table_url, with_table
from workbooks import labelled, predicted


def labelled_texts(texts):
    return labelled(pl.DataFrame({"text": texts})).select(ADDED_COLUMNS)


# --- addresses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:s%3Acret@h:5/d?table=a.b", "postgresql://u@h:5/d?table=a.b"),
        ("postgres://u@h/d?table=t&password=secret", "postgres://u@h/d?table=t"),
        ("sqlite:///x.db?table=t", "sqlite:///x.db?table=t"),
        ("https://u:p@example.org/a.csv", "https://u:p@example.org/a.csv"),
        ("a.csv", "a.csv"),
    ],
)
def test_a_password_is_taken_out_and_remembered(url, shown):
    assert hide_password(url) == shown
    assert hide_password(shown) == shown
    assert FitConfig(train=url).train == shown


def test_the_database_gets_the_password():
    shown = hide_password("postgres://u:s%2Fx@h:5/d?table=a.b&sslmode=require")
    found = parse_table_url(shown)
    assert found.database == "postgresql://u:s%2Fx@h:5/d?sslmode=require"
    assert (found.table, found.shown) == ("a.b", shown)


def test_files_by_three_slashes_and_by_four():
    assert parse_table_url("sqlite:///a%20b.db?table=t").database == "a b.db"
    assert parse_table_url("duckdb:////tmp/x.duckdb?table=t").database == "/tmp/x.duckdb"
    for url, words in (("sqlite:///x.db", "names no table"), ("sqlite://x.db?table=t", "names no file")):
        with pytest.raises(UserInputError, match=words):
            parse_table_url(url)


def test_a_number_sign_is_a_part_of_a_name(tmp_path):
    assert parse_table_url("sqlite:///a#b.db?table=t").database == "a#b.db"
    assert hide_password("postgresql://u:a#b@h/d?table=t") == "postgresql://u@h/d?table=t"
    assert with_table("sqlite:///a#b.db", "t") == "sqlite:///a#b.db?table=t"
    url = f"sqlite:///{tmp_path}/a#b.db?table=t"
    pl.DataFrame({"text": ["a"]}).write_parquet(tmp_path / "a.parquet")
    predicted(tmp_path / "a.parquet", url)
    assert read_table(url).frame["text"].to_list() == ["a"]


def test_the_table_by_an_option():
    assert with_table("sqlite:///x.db", "my table") == "sqlite:///x.db?table=my%20table"
    assert with_table("a.csv", None) == "a.csv"
    for source, words in (("a.csv", "--table is for databases"), ("sqlite:///x.db?table=a", "already names")):
        with pytest.raises(UserInputError, match=words):
            with_table(source, "t")


# --- SQLite ----------------------------------------------------------------------------------------------


@pytest.fixture
def sqlite(tmp_path):
    with sqlite3.connect(tmp_path / "a.db") as base:
        base.execute('CREATE TABLE "my ""table" (id INTEGER, text TEXT, mixed, price NUMERIC(9,2), raw BLOB)')
        rows = [(1, "a", None, 1.5, b"\xff"), (2, "=b", "x", 2, None), (3, None, 7, None, b"")]
        base.executemany('INSERT INTO "my ""table" VALUES (?, ?, ?, ?, ?)', rows)
    base.close()
    return f"sqlite:///{tmp_path / 'a.db'}?table=my%20%22table"


def test_sqlite_is_read_by_what_the_cells_are(sqlite):
    frame = read_table(sqlite).frame
    assert frame.rows() == [
        (1, "a", None, 1.5, b"\xff"), (2, "=b", "x", 2.0, None), (3, None, "7", None, b""),
    ]  # fmt: skip
    assert [part.height for part in iter_tables(sqlite, rows_per_batch=2)] == [2, 1]


def test_sqlite_round_trip_into_the_same_file_and_the_same_table(sqlite, tmp_path):
    output = sqlite.replace("my%20%22table", "done")
    assert predicted(sqlite, output, rows_per_batch=2)["rows"] == 3
    before, after = read_table(sqlite).frame, read_table(output).frame
    assert after.select(before.columns).equals(before)
    expected = labelled_texts(["a", "=b", ""]).with_columns(pl.col("needs_review").cast(pl.Int64))
    assert after.select(ADDED_COLUMNS).equals(expected)
    types = sql_types(parse_table_url(output))
    assert (types["price"], types["mixed"], types["confidence"]) == ("NUMERIC(9,2)", "TEXT", "REAL")
    with pytest.raises(UserInputError, match="already exists; choose another table or add --overwrite"):
        check_output(output)
    check_output(output, overwrite=True)
    with pytest.raises(UserInputError, match=r"cannot be used: table .*done.* already exists"):
        predicted(sqlite, output)
    write_tables([labelled(before)], str(tmp_path / "x.csv"))


def test_a_table_that_breaks_off_leaves_the_old_one(sqlite):
    def frames():
        yield labelled(read_table(sqlite).frame)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tables(frames(), sqlite)
    assert read_table(sqlite).frame.width == 5


def test_what_is_not_there(tmp_path, sqlite):
    for url, words in (
        (f"sqlite:///{tmp_path}/no.db?table=t", "does not exist"),
        (sqlite.replace("my%20%22table", "other"), "there is no table 'other'"),
    ):
        with pytest.raises(UserInputError, match=words):
            read_table(url)
    assert not (tmp_path / "no.db").exists()
    (tmp_path / "no.db").write_text("this is no database, only some text")
    with pytest.raises(UserInputError, match="file is not a database"):
        read_table(f"sqlite:///{tmp_path}/no.db?table=t")
    with pytest.raises(UserInputError, match="folder does not exist"):
        check_output(f"sqlite:///{tmp_path}/nowhere/a.db?table=t")


def test_sqlite_tables_may_have_very_many_columns(tmp_path):
    names = ["text", *(f"c{i}" for i in range(1_400))]
    with sqlite3.connect(tmp_path / "a.db") as base:
        base.execute(f"CREATE TABLE t ({', '.join(names)})")
        base.execute(
            f"INSERT INTO t VALUES ({', '.join('?' * len(names))})", ["a", *[1, 2.5, "x", None] * 350]
        )
    frame = read_table(f"sqlite:///{tmp_path / 'a.db'}?table=t").frame
    assert frame.shape == (1, 1_401)
    assert frame.select("text", "c0", "c1398", "c1399").row(0) == ("a", 1, "x", None)
    assert frame.schema["c1397"] == pl.Float64


# --- DuckDB ----------------------------------------------------------------------------------------------


def test_duckdb_round_trip_keeps_types(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(str(tmp_path / "a.duckdb")) as base:
        base.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')")
        base.execute(
            "CREATE TABLE t "
            '(id UTINYINT, text VARCHAR, day DATE, price DECIMAL(9,2), feel mood, "at" TIMESTAMP)'
        )
        base.execute("INSERT INTO t SELECT i, 't' || i, '2024-01-31', 1.10, 'ok', '2024-01-31 10:00' "
                     "FROM range(5) r(i)")  # fmt: skip
    source, output = (f"duckdb:///{tmp_path / 'a.duckdb'}?table={name}" for name in ("t", "done"))
    assert [part.height for part in iter_tables(source, rows_per_batch=2)] == [2, 2, 1]
    predicted(source, output, rows_per_batch=2)
    before, after = sql_types(parse_table_url(source)), sql_types(parse_table_url(output))
    assert {name: after[name] for name in before} == before
    assert read_table(output).frame.select(list(before)).equals(read_table(source).frame)
    assert read_table(output).frame["predicted_label"].to_list() == (
        labelled_texts([f"t{i}" for i in range(5)])["predicted_label"].to_list()
    )
    with pytest.raises(UserInputError, match="already exists"):
        check_output(output)
    with pytest.raises(UserInputError, match="there is no table 'x'"):
        read_table(source.replace("=t", "=x"))


def test_types_of_duckdb_that_polars_lacks_are_read_as_text_and_given_back(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(str(tmp_path / "a.duckdb")) as base:
        base.execute(
            "CREATE TABLE t AS SELECT 'a' AS text, INTERVAL '1 day 2 hours' AS wait, '101'::BIT AS bits, "
            "[INTERVAL 1 DAY] AS waits, TIMETZ '01:02:03+01' AS hour"
        )
    source, output = (f"duckdb:///{tmp_path / 'a.duckdb'}?table={name}" for name in ("t", "done"))
    frame = read_table(source).frame
    assert frame.row(0) == ("a", "1 day 02:00:00", "101", "[1 day]", "01:02:03+01")
    predicted(source, output)
    before, after = sql_types(parse_table_url(source)), sql_types(parse_table_url(output))
    assert {name: after[name] for name in before} == before
    assert read_table(output).frame.select(frame.columns).equals(frame)


def test_from_a_file_to_a_database_and_back(tmp_path):
    frame = pl.DataFrame({"text": ["a", "b"], "day": [dt.date(2024, 1, 1), None], "l": [[1], []]})
    frame.write_parquet(tmp_path / "a.parquet")
    for scheme in ("sqlite", "duckdb"):
        if scheme == "duckdb":
            pytest.importorskip("duckdb")
        url = f"{scheme}:///{tmp_path}/new.{scheme}?table=t"
        check_output(url)
        predicted(tmp_path / "a.parquet", url)
        predicted(url, tmp_path / f"{scheme}.csv")
        back = read_table(tmp_path / f"{scheme}.csv").frame
        assert back.select("text", "day", "l").rows() == [("a", "2024-01-01", "[1]"), ("b", None, "[]")]


# --- PostgreSQL ------------------------------------------------------------------------------------------


def test_postgresql_round_trip_without_a_word_of_the_password(tmp_path_factory):
    dbapi = pytest.importorskip("adbc_driver_postgresql.dbapi")
    with postgresql(tmp_path_factory.mktemp("pg")) as address:
        with dbapi.connect(address) as base, base.cursor() as cursor:
            cursor.execute('CREATE SCHEMA "my.s"')
            cursor.execute("CREATE SCHEMA s")
            cursor.execute(
                "CREATE TABLE s.t (id smallint, text varchar(20), day date, price numeric(9,2), "
                "u uuid, tags text[], at timestamptz)"
            )
            cursor.execute(
                "INSERT INTO s.t SELECT i, 't' || i, '2024-01-31', 1.10, "
                "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{a,b}', '2024-01-31 10:00Z' "
                "FROM generate_series(1, 5) i"
            )
            base.commit()
        source, output = f"{address}?table=s.t", f"{address}?table=s.done"
        table = read_table(source)
        assert PASSWORD not in table.source
        assert QUOTED not in table.source
        assert table.frame["price"].to_list() == ["1.10"] * 5
        assert [part.height for part in iter_tables(source, rows_per_batch=2)] == [2, 2, 1]
        assert predicted(source, output, rows_per_batch=2)["rows"] == 5
        before, after = sql_types(parse_table_url(source)), sql_types(parse_table_url(output))
        kept = [name for name in before if name != "text"]
        assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
        assert read_table(output).frame.select(list(before)).equals(table.frame)
        with dbapi.connect(address) as base, base.cursor() as cursor:
            cursor.execute("SELECT sum(price)::float8 FROM s.done WHERE needs_review IS NOT NULL")
            assert cursor.fetchone() == (float(Decimal("5.50")),)
        with pytest.raises(UserInputError, match="already exists") as told:
            check_output(output)
        assert QUOTED not in str(told.value)
        predicted(output, f"{address}?table=again")
        for url, words in (
            (f"{address}?table=nothing", "there is no table 'nothing'"),
            (f"{address.replace(QUOTED, 'wrong-one')}x?table=t", "cannot be used"),
        ):
            with pytest.raises(UserInputError, match=words) as told:
                read_table(url)
            assert not {PASSWORD, QUOTED, "wrong-one"} & set(str(told.value).split())
            assert "wrong-one" not in str(told.value)
