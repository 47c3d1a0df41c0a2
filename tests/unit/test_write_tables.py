"""Every output format holds what it was given, or refuses it with a sentence and leaves nothing behind."""

import datetime as dt
import io
import json
import math
from decimal import Decimal

import openpyxl
import polars as pl
import pytest

from snugtune.data.table import read_table
from snugtune.errors import UserInputError
from snugtune.predict import write
from snugtune.predict.write import check_fits, check_output, write_tables

SUFFIXES = [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".xlsx"]
HOSTILE = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "https://example.org", "{=A1}", "0042", "_x000D_"]


def frame(texts, label="a", review=False):
    return pl.DataFrame(
        {"text": texts, "predicted_label": [label] * len(texts), "needs_review": [review] * len(texts)}
    )


def sheet_rows(path):
    book = openpyxl.load_workbook(path)
    rows = list(book.active.iter_rows())
    book.close()
    return rows


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_batches_become_one_table_in_order(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    counts = write_tables([frame(["one", "zwöi\nlines"]), frame(["three"], review=True)], path)
    assert counts == {"rows": 3, "needs_review": 1}
    assert read_table(path).frame["text"].to_list() == ["one", "zwöi\nlines", "three"]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_fault_midway_leaves_the_old_file_and_no_other(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    path.write_text("old")

    def frames():
        yield frame(["one"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tables(frames(), path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "old"


def test_parquet_takes_the_type_that_a_later_batch_shows(tmp_path):
    first = frame(["one"]).with_columns(note=pl.lit(None), size=pl.lit(1, pl.Int32))
    second = frame(["two"]).with_columns(note=pl.lit("late"), size=pl.lit(2.5))
    write_tables([first, second], tmp_path / "out.parquet")
    read = pl.read_parquet(tmp_path / "out.parquet")
    assert read["note"].to_list() == [None, "late"]
    assert read["size"].to_list() == [1.0, 2.5]


def test_parquet_keeps_every_type(tmp_path):
    given = frame(["one", "two"]).with_columns(
        day=pl.Series([dt.date(1850, 1, 2), None]),
        parts=pl.Series([[1, 2], []]),
        raw=pl.Series([b"\xff", None]),
        number=pl.Series([math.inf, math.nan]),
    )
    write_tables([given, given], tmp_path / "out.parquet")
    assert pl.read_parquet(tmp_path / "out.parquet").equals(pl.concat([given, given]))


def test_excel_text_is_text_whatever_it_looks_like(tmp_path):
    path = tmp_path / "out.xlsx"
    write_tables([frame(HOSTILE, label="=cmd|' /C calc'!A0")], path)
    rows = sheet_rows(path)[1:]
    for row in rows:
        assert [cell.data_type for cell in row[:2]] == ["s", "s"]
        assert row[0].hyperlink is None
    assert rows[0][0].value == "=1+1"
    assert read_table(path).frame["text"].to_list() == HOSTILE


def test_excel_cells_keep_their_type(tmp_path):
    values = {
        "day": (dt.date(2024, 2, 29), dt.datetime(2024, 2, 29)),
        "time": (dt.datetime(2024, 2, 29, 13, 5, 6), dt.datetime(2024, 2, 29, 13, 5, 6)),
        "clock": (dt.time(13, 5), dt.time(13, 5)),
        "old": (dt.date(1850, 1, 2), "1850-01-02"),
        "whole": (12, 12),
        "amount": (12.5, 12.5),
        "price": (Decimal("9.90"), 9.9),
        "yes": (True, True),
        "account": (1234567890123456789, "1234567890123456789"),
        "infinite": (math.inf, "inf"),
        "nan": (math.nan, None),
        "none": (None, None),
        "list": ([1, None], "[1, null]"),
        "struct": ({"a": "ü"}, '{"a": "ü"}'),
        "bytes": (b"\xff", "/w=="),
        "span": (dt.timedelta(hours=1), "PT1H"),
    }
    given = frame(["one"]).with_columns(**{name: pl.Series([value]) for name, (value, _) in values.items()})
    write_tables([given], tmp_path / "out.xlsx")
    header, row = sheet_rows(tmp_path / "out.xlsx")
    found = {head.value: cell for head, cell in zip(header, row, strict=True)}
    for name, (_, expected) in values.items():
        assert found[name].value == expected, name
    assert found["day"].number_format == "yyyy-mm-dd"
    assert found["time"].number_format == "yyyy-mm-dd hh:mm:ss"


def test_excel_shows_the_clock_of_the_time_zone(tmp_path):
    moment = pl.Series([dt.datetime(2024, 7, 1, 10)], dtype=pl.Datetime("us", "UTC"))
    given = frame(["one"]).with_columns(at=moment.dt.convert_time_zone("Europe/Zurich"))
    write_tables([given], tmp_path / "out.xlsx")
    assert sheet_rows(tmp_path / "out.xlsx")[1][3].value == dt.datetime(2024, 7, 1, 12)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_text_files_hold_what_they_have_no_type_for(tmp_path, suffix):
    given = frame(["one"]).with_columns(
        parts=pl.Series([[1, 2]]),
        image=pl.Series([{"bytes": b"\xff"}]),
        raw=pl.Series([b"\xff"]),
        span=pl.Series([dt.timedelta(hours=1)]),
    )
    write_tables([given], tmp_path / f"out{suffix}")
    row = read_table(tmp_path / f"out{suffix}").frame.row(0, named=True)
    assert (row["parts"] if suffix == ".jsonl" else json.loads(row["parts"])) == [1, 2]
    assert json.loads(row["image"]) == {"bytes": "/w=="}
    assert (row["raw"], row["span"]) == ("/w==", "PT1H")


def test_more_rows_than_a_sheet_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "EXCEL_ROWS", 3)
    write_tables([frame(["a"]), frame(["b"])], tmp_path / "fits.xlsx")
    with pytest.raises(
        UserInputError, match=r"holds 2 rows .* this table has more; write \.csv or \.parquet"
    ):
        write_tables([frame(["a"]), frame(["b", "c"])], tmp_path / "out.xlsx")
    assert not (tmp_path / "out.xlsx").exists()
    with pytest.raises(UserInputError, match="holds 2 rows"):
        check_fits(frame(["c"]), "out.xlsx", rows_before=2)
    check_fits(frame(["c"]), "out.csv", rows_before=2)


@pytest.mark.parametrize("text", ["x" * 32_768, "\N{GRINNING FACE}" * 16_384])
def test_a_cell_longer_than_excel_holds(tmp_path, text):
    fits = text[: 32_767 if text[0] == "x" else 16_383]
    write_tables([frame(["a", fits])], tmp_path / "fits.xlsx")
    assert sheet_rows(tmp_path / "fits.xlsx")[2][0].value == fits
    with pytest.raises(UserInputError, match=r"Row 12 of the table has 32,768 characters in column 'text'"):
        check_fits(frame(["a", text]), "out.xlsx", rows_before=10)
    with pytest.raises(UserInputError, match="Row 2 "):
        write_tables([frame(["a", text])], tmp_path / "out.xlsx")
    write_tables([frame(["a", text])], tmp_path / "out.csv")


def test_more_columns_than_a_sheet_holds():
    wide = pl.DataFrame({f"c{i}": [1] for i in range(16_380)})
    check_fits(wide, "out.xlsx", more_columns=4)
    with pytest.raises(UserInputError, match="16,384 columns"):
        check_fits(wide, "out.xlsx", more_columns=5)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_csv_safe_changes_our_labels_alone(tmp_path, start, suffix):
    path = tmp_path / f"out{suffix}"
    given = frame([f"{start}1"], label=f"{start}cmd")
    write_tables([given], path)
    assert read_table(path).frame.row(0)[:2] == (f"{start}1", f"{start}cmd")
    write_tables([given, frame(["two"], label="plain = 1")], path, csv_safe=True)
    read = read_table(path).frame
    assert read.row(0)[:2] == (f"{start}1", f"'{start}cmd")
    assert read.row(1)[:2] == ("two", "plain = 1")


def test_csv_safe_is_for_csv(tmp_path):
    with pytest.raises(UserInputError, match="csv_safe is for CSV"):
        write_tables([frame(["a"])], tmp_path / "out.xlsx", csv_safe=True)


def test_a_stream_gets_csv():
    stream = io.BytesIO()
    assert write_tables([frame(["a,b"]), frame(["c"])], stream)["rows"] == 2
    assert stream.getvalue().decode() == 'text,predicted_label,needs_review\n"a,b",a,false\nc,a,false\n'


def test_outputs_that_cannot_be_written_are_refused_before_any_work(tmp_path):
    (tmp_path / "there.csv").write_text("old")
    (tmp_path / "folder.csv").mkdir()
    for name, words in {
        "out.doc": r"name it with one of \.csv",
        "out": r"name it with one of \.csv",
        "nowhere/out.csv": "nowhere does not exist; create it first",
        "folder.csv": "is a folder",
        "there.csv": "already exists; choose another --output or add --overwrite",
    }.items():
        with pytest.raises(UserInputError, match=words):
            check_output(tmp_path / name)
    check_output(tmp_path / "there.csv", overwrite=True)
    check_output(tmp_path / "new.xlsx")
