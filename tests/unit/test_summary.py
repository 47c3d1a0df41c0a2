"""The summary sheet counts what an independent count counts."""

import datetime as dt

import polars as pl
import pytest

from snugtune.errors import UserInputError
from snugtune.predict.summary import Summary
from workbooks import loaded, predicted


def frame(labels, texts=None, **columns):
    n = len(labels)
    return pl.DataFrame(
        {
            "text": texts or ["x"] * n,
            **columns,
            "predicted_label": labels,
            "confidence": [0.5 + i / 100 for i in range(n)],
            "needs_review": [i % 2 == 0 for i in range(n)],
        }
    )


def counted(*frames, **options):
    summary = Summary(("text",), ignored=("predicted_label", "confidence", "needs_review"), **options)
    assert len(list(summary.counted(frames))) == len(frames)
    return summary


def test_rows_by_label(tmp_path):
    summary = counted(frame(["a", "b", "a"]), frame(["a", "c"], texts=[" ", "x"]))
    assert summary.rows == {"a": 2, "b": 1, "c": 1}
    assert (summary.without_text, summary.with_text, summary.for_review) == (1, 4, 2)
    assert summary.confidence["a"] == pytest.approx(0.5 + 0.52)
    assert summary.date is None


@pytest.mark.parametrize(
    "dates",
    [
        ["2024-01-31", "2024-02-01 10:00:00", None, "2024-02-29T01:00"],
        ["31.01.2024", "01.02.2024", None, "29.02.2024"],
        ["01/31/2024", "02/01/2024", "", "02/29/2024"],
        [dt.date(2024, 1, 31), dt.date(2024, 2, 1), None, dt.date(2024, 2, 29)],
        ["1/31/24", "2/1/24", None, "2/29/24"],
        ["31.1.24", "1.2.24", None, "29.2.24"],
        ["1/31/2024 10:00", "2/1/2024 9:05", None, "2/29/2024 23:59:01"],
    ],
)
def test_months_of_whatever_is_a_date(dates):
    summary = counted(frame(["a", "b", "a", "a"], id=["1", "2", "3", "4"], day=dates))
    assert summary.date == "day"
    assert summary.months == {("2024-01", "a"): 1, ("2024-02", "b"): 1, ("", "a"): 1, ("2024-02", "a"): 1}


def test_what_may_be_read_in_two_ways_is_not_guessed():
    assert counted(frame(["a"], day=["01/02/2024"])).date is None
    assert counted(frame(["a", "a"], day=["2024-01-01", "soon"])).date is None
    with pytest.raises(UserInputError, match="Column 'day' holds no dates"):
        counted(frame(["a"], day=["01/02/2024"]), date="day")
    both = {"first": ["2024-01-01"], "second": ["2023-01-01"]}
    assert counted(frame(["a"], **both)).months == {("2024-01", "a"): 1}
    assert counted(frame(["a"], **both), date="second").months == {("2023-01", "a"): 1}


def test_a_row_counts_for_each_of_its_labels():
    summary = counted(frame(["a; b", "a", None], day=["2024-01-01"] * 3), separator=";")
    assert summary.rows == {"a": 2, "b": 1, "(none)": 1}
    assert summary.with_text == 3
    assert summary.of_month == {"2024-01": 3}


@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_the_sheet_says_what_the_rows_say(tmp_path, suffix):
    """Of a workbook given back and of a new one; the counts are made anew from the rows written."""
    given = pl.DataFrame(
        {"day": [f"2024-{1 + i % 3:02}-05" for i in range(90)], "text": [f"t{i}" for i in range(90)]}
    )
    source = tmp_path / f"in{suffix}"
    (given.write_csv if suffix == ".csv" else given.write_excel)(source)
    predicted(source, tmp_path / "out.xlsx", rows_per_batch=7)
    book = loaded(tmp_path / "out.xlsx")
    header, *rows = book.worksheets[0].iter_rows(values_only=True)
    written = pl.DataFrame(rows, schema=list(header), orient="row")
    sheet = book["Summary"]
    labels = {row[0]: row[1:5] for row in sheet.iter_rows(5, 12, 1, 5, values_only=True)}
    expected = written.group_by("predicted_label").agg(
        pl.len(), (pl.len() / 90).alias("share"), pl.col("needs_review").sum(), pl.col("confidence").mean()
    )
    assert {row[0]: row[1:] for row in expected.iter_rows()}.keys() == labels.keys()
    for label, *values in expected.iter_rows():
        assert labels[label] == pytest.approx(values)
    assert [row[0] for row in sheet.iter_rows(5, 8, 18, 18, values_only=True)] == [
        "2024-01", "2024-02", "2024-03", None,
    ]  # fmt: skip
    for _, *labels_of_month, every in sheet.iter_rows(5, 7, 18, 27, values_only=True):
        assert sum(labels_of_month) == every == 30
    assert len(sheet._charts) == 2
    assert sheet["A1"].font.b
    assert sheet["C5"].number_format == "0.00%"
