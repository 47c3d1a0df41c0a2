"""A value has one name, whatever the format of the table it stands in."""

import datetime as dt
import json
import sqlite3
from decimal import Decimal

import openpyxl
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snugtune.config import make_config
from snugtune.data.cells import cell_texts, column_text, label_cells, list_items, value_text
from snugtune.data.dataset import load_data, load_usable
from snugtune.data.table import read_table
from snugtune.errors import UserInputError
from snugtune.train.survey import survey

WORDS = ["lost", "stolen", "broken", "late", "early", "wrong", "double", "never"]
TEXTS = [
    f"{WORDS[i % 8]} {WORDS[i // 8 % 8]} card{chr(97 + i % 26)} number{chr(97 + i // 26)}" for i in range(60)
]


def labels_of(path, **settings):
    return load_usable(make_config({"train": str(path), "label": "label", **settings})).labels.names


@pytest.fixture(params=["csv", "xlsx", "parquet", "jsonl", "sqlite", "duckdb"])
def write(request, tmp_path):
    """Writes texts and labels (None for blank) in a format, and gives the address of the table."""

    def csv(labels):
        frame = pl.DataFrame({"text": TEXTS, "label": [value_text(value) for value in labels]})
        frame.write_csv(tmp_path / "a.csv")
        return tmp_path / "a.csv"

    def xlsx(labels):
        book = openpyxl.Workbook()
        for row in [("text", "label"), *zip(TEXTS, labels, strict=True)]:
            book.active.append(row)
        book.save(tmp_path / "a.xlsx")
        return tmp_path / "a.xlsx"

    def parquet(labels):
        pl.DataFrame({"text": TEXTS, "label": labels}).write_parquet(tmp_path / "a.parquet")
        return tmp_path / "a.parquet"

    def jsonl(labels):
        rows = [json.dumps({"text": text, "label": of}) for text, of in zip(TEXTS, labels, strict=True)]
        (tmp_path / "a.jsonl").write_text("\n".join(rows))
        return tmp_path / "a.jsonl"

    def sqlite(labels):
        with sqlite3.connect(tmp_path / "a.db") as base:
            base.execute("CREATE TABLE t (text TEXT, label REAL)")
            base.executemany("INSERT INTO t VALUES (?, ?)", zip(TEXTS, labels, strict=True))
        return f"sqlite:///{tmp_path}/a.db?table=t"

    def duckdb(labels):
        base = pytest.importorskip("duckdb").connect(str(tmp_path / "a.duckdb"))
        base.execute("CREATE TABLE t (text VARCHAR, label DOUBLE)")
        base.executemany("INSERT INTO t VALUES (?, ?)", list(zip(TEXTS, labels, strict=True)))
        base.close()
        return f"duckdb:///{tmp_path}/a.duckdb?table=t"

    return locals()[request.param]


def test_whole_numbers_have_one_name_though_a_blank_made_them_floats(write):
    path = write([float(i % 3) if i % 10 else None for i in range(60)])
    assert labels_of(path) == ("0", "1", "2")


def test_other_numbers_have_one_name(write):
    path = write([(0.5, 0.00001, 2.0)[i % 3] for i in range(60)])
    assert labels_of(path) == ("0.5", "1e-05", "2")


def test_floats_of_a_test_file_are_the_whole_numbers_of_the_training_table(tmp_path):
    more = [f"{text} again and again" for text in TEXTS[:30]]
    pl.DataFrame({"text": TEXTS, "label": [i % 3 for i in range(60)]}).write_csv(tmp_path / "a.csv")
    given = [float(i % 3) if i else None for i in range(30)]
    pl.DataFrame({"text": more, "label": given}).write_parquet(tmp_path / "b.parquet")
    data = load_data(make_config({"train": str(tmp_path / "a.csv"), "test": str(tmp_path / "b.parquet")}))
    assert data.parts["test"].y.tolist() == [i % 3 for i in range(1, 30)]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_not_a_number_is_no_label_and_no_text(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    given = [float("nan") if i % 10 == 0 else float(i % 3) for i in range(60)]
    if suffix == "parquet":
        pl.DataFrame({"text": TEXTS, "label": given}).write_parquet(path)
    else:
        rows = zip(TEXTS, given, strict=True)
        path.write_text("\n".join(json.dumps({"text": text, "label": of}) for text, of in rows))
    assert labels_of(path) == ("0", "1", "2")
    assert cell_texts(read_table(path).frame["label"])[:2] == ["", "1"]
    assert survey(make_config({"train": str(path), "model": str(tmp_path / "none")})).labels == 3


def test_bytes_are_text(tmp_path):
    frame = pl.DataFrame(
        {
            "text": [text.encode() for text in TEXTS],
            "label": [b"Fees" if i % 2 else "é".encode() for i in range(60)],
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    usable = load_usable(make_config({"train": str(tmp_path / "a.parquet")}))
    assert usable.labels.names == ("Fees", "é")
    assert usable.texts[0] == TEXTS[0]


@pytest.mark.parametrize("column", ["text", "label"])
def test_bytes_that_are_no_text_are_located(tmp_path, column):
    columns = {"text": [text.encode() for text in TEXTS], "label": [b"Fees", b"Card"] * 30}
    columns[column][41] = b"caf\xe9"
    pl.DataFrame(columns).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserInputError, match=rf"Column '{column}' of .*a\.parquet, row 42 .* UTF-8 \(0xE9\)"):
        labels_of(tmp_path / "a.parquet", text=["text"])


def test_days_and_times_have_the_names_of_a_workbook(tmp_path):
    moments = [dt.datetime(2024, 1, 1 + i % 3, 0, 0, i % 2) for i in range(60)]
    pl.DataFrame({"text": TEXTS, "label": moments}).write_parquet(tmp_path / "a.parquet")
    book = openpyxl.Workbook()
    for row in [("text", "label"), *zip(TEXTS, moments, strict=True)]:
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    names = labels_of(tmp_path / "a.parquet")
    assert names[:2] == ("2024-01-01", "2024-01-01 00:00:01")
    assert labels_of(tmp_path / "a.xlsx") == names


def test_added_days_are_those_of_the_training_table(tmp_path):
    days = [dt.datetime(2024, 1, 1 + i % 3) for i in range(60)]
    pl.DataFrame({"text": TEXTS, "label": days}).write_parquet(tmp_path / "a.parquet")
    more = pl.DataFrame({"text": ["one quite new", "another one that is new"], "label": days[:2]})
    more.write_parquet(tmp_path / "more.parquet")
    config = {"train": str(tmp_path / "a.parquet"), "add": str(tmp_path / "more.parquet")}
    data = load_data(make_config(config))
    assert data.labels.names == ("2024-01-01", "2024-01-02", "2024-01-03")
    assert data.parts["train"].y[-2:].tolist() == [0, 1]


def test_columns_of_every_type_are_text():
    hour = dt.time(1, 2, 3)
    for values, expected in (
        ([True, None], ["TRUE", None]),
        ([1, None], ["1", None]),
        ([Decimal("1.50"), Decimal("2.00"), Decimal("10")], ["1.5", "2", "10"]),
        ([Decimal("10"), Decimal("200")], ["10", "200"]),
        ([hour, hour.replace(microsecond=4)], ["01:02:03", "01:02:03.000004"]),
        ([dt.timedelta(1, 3), None], ["1 day, 0:00:03", None]),
        ([dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)], ["2024-01-01 00:00:00+00:00"]),
        ([b"a", None], ["a", None]),
        ([None], [None]),
    ):
        assert column_text(pl.Series(values)).to_list() == expected
    assert column_text(pl.Series([0.1, 3.0, 1e-5], dtype=pl.Float32)).to_list() == ["0.1", "3", "1e-05"]
    assert label_cells(pl.Series([" a ", None])) == ["a", ""]
    with pytest.raises(UserInputError, match="Column 'o' of the table holds lists or structures"):
        column_text(pl.Series("o", [object()], dtype=pl.Object))


def test_days_that_no_calendar_has_are_located():
    days = pl.Series("day", [None, 0, 2**31 - 1], dtype=pl.Int32).cast(pl.Date)
    with pytest.raises(UserInputError, match=r"Column 'day' of a\.parquet, row 3 holds a day outside"):
        column_text(days, source="a.parquet", row_of=lambda i: i + 1)
    assert column_text(days[:2]).to_list() == [None, "1970-01-01"]


@given(
    st.one_of(
        st.lists(st.none() | st.floats(), min_size=1),
        st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1),
        st.lists(st.none() | st.datetimes(), min_size=1),
        st.lists(st.none() | st.dates(), min_size=1),
        st.lists(st.none() | st.times(), min_size=1),
        st.lists(st.none() | st.booleans(), min_size=1),
        st.lists(st.none() | st.timedeltas(dt.timedelta(-(10**5)), dt.timedelta(10**5)), min_size=1),
    )
)
def test_a_column_and_its_values_agree(values):
    assert column_text(pl.Series(values)).to_list() == [value_text(value) for value in values]


def test_items_of_lists_are_named_alike():
    lists = pl.Series("of", [[1.0, None, 2.5], None, [], [float("nan"), 3.0]])
    assert list_items(lists) == [["1", "2.5"], None, [], ["3"]]
    nothing = pl.Series("of", [[], None], dtype=pl.List(pl.String))
    assert list_items(nothing) == [[], None]
    with pytest.raises(UserInputError, match="Column 'of' of the table, row 3 holds bytes"):
        list_items(pl.Series("of", [[b"a"], [], [b"b", b"\xff"]]), row_of=lambda i: i + 1)
    with pytest.raises(UserInputError, match="lists or structures"):
        list_items(pl.Series("of", [[[1]]]))


@pytest.mark.parametrize("error", ["#N/A", "#SPILL!", "#CALC!", "#GETTING_DATA"])
def test_errors_of_every_excel_are_no_value(tmp_path, error):
    book = openpyxl.Workbook()
    for row in [("text", "label"), ("a", "x"), ("b", error)]:
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    assert read_table(tmp_path / "a.xlsx").frame["label"].to_list() == ["x", None]
