"""A table written in the format it came in keeps what is the user's."""

import datetime as dt
import json

import polars as pl
import pytest

from snugtune.data.table import read_table
from snugtune.errors import UserInputError
from snugtune.predict.predictor import ADDED_COLUMNS
from workbooks import LABELS, labelled, predicted


def test_a_line_of_json_is_kept_letter_by_letter(tmp_path):
    lines = [
        '{"text": "a", "n": 1.10, "big": 123456789012345678901234567890, "o": {"z": [1, {"y": null}]}}',
        '  {"n": 1e3,"text":"\\u00e9 b"  }  ',
        "",
        "{}",
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    for rows in (1, 2, 9):
        assert predicted(tmp_path / "in.jsonl", tmp_path / "out.jsonl", rows_per_batch=rows)["rows"] == 3
        out = (tmp_path / "out.jsonl").read_text().splitlines()
        assert out[0].startswith(lines[0][:-1] + ', "predicted_label": ')
        assert out[1].startswith('{"n": 1e3,"text":"\\u00e9 b", "predicted_label": ')
        assert list(json.loads(out[2])) == list(ADDED_COLUMNS)
        for line, text in zip(out, ["a", "é b", ""], strict=True):
            expected = labelled(pl.DataFrame({"text": [text]})).row(0)[1:]
            assert [json.loads(line)[name] for name in ADDED_COLUMNS] == list(expected)


def test_fields_of_an_earlier_prediction_are_replaced(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"confidence": "high", "text": "a", "note": "\\"confidence\\""}\n')
    predicted(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert list(row) == ["text", "note", *ADDED_COLUMNS]
    assert isinstance(row["confidence"], float)


def test_parquet_keeps_types_that_are_read_as_text(tmp_path):
    frame = pl.DataFrame(
        {
            "text": ["a", "b", "c"],
            "kind": pl.Series(["x", "y", "x"], dtype=pl.Enum(["x", "y"])),
            "place": pl.Series(["p", None, "p"], dtype=pl.Categorical),
            "small": pl.Series([1, 2, 3], dtype=pl.Int8),
            "at": [dt.datetime(2024, 1, 1, 10)] * 3,
            "parts": [[{"a": 1}], [], None],
            "needs_review": ["old"] * 3,
        }
    )
    frame.write_parquet(tmp_path / "in.parquet")
    for rows in (1, 2, 9):
        predicted(tmp_path / "in.parquet", tmp_path / "out.parquet", rows_per_batch=rows)
        out = pl.read_parquet(tmp_path / "out.parquet")
        kept = frame.drop("needs_review")
        assert out.select(kept.columns).equals(kept)
        assert out.select(kept.columns).schema == kept.schema
        assert out.select("text", *ADDED_COLUMNS).equals(labelled(frame.select("text")))


def test_a_parquet_file_that_changes_meanwhile(tmp_path):
    from snugtune.predict.alike import writer_like

    pl.DataFrame({"text": ["a", "b"]}).write_parquet(tmp_path / "in.parquet")
    writer = writer_like(tmp_path / "in.parquet", tmp_path / "out.parquet", ADDED_COLUMNS)
    with pytest.raises(UserInputError, match="was changed while it was read"):
        writer([labelled(pl.DataFrame({"text": ["a"]}))], tmp_path / "out.parquet")


@pytest.mark.parametrize(("delimiter", "mark"), [(";", b"\xef\xbb\xbf"), ("|", b""), (",", b"\xef\xbb\xbf")])
def test_a_csv_keeps_its_delimiter_and_its_mark(tmp_path, delimiter, mark):
    rows = f'text{delimiter}id\n"a{delimiter}b"{delimiter}007\n=1+1{delimiter}\n'
    (tmp_path / "in.csv").write_bytes(mark + rows.encode())
    predicted(tmp_path / "in.csv", tmp_path / "out.csv", rows_per_batch=1)
    out = (tmp_path / "out.csv").read_bytes()
    assert out.startswith(mark + f"text{delimiter}id{delimiter}predicted_label".encode())
    read = read_table(tmp_path / "out.csv", delimiter=delimiter).frame
    assert read.select("text", "id").rows() == [(f"a{delimiter}b", "007"), ("=1+1", None)]


def test_a_csv_of_one_column_and_one_in_utf_16(tmp_path):
    (tmp_path / "in.csv").write_text("text\na\n")
    predicted(tmp_path / "in.csv", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().startswith("text,predicted_label,")
    (tmp_path / "in.csv").write_bytes("text\tid\nä\t1\n".encode("utf-16"))
    predicted(tmp_path / "in.csv", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes().startswith(b"\xef\xbb\xbftext\tid\t")


def test_every_label_is_told_in_every_format(tmp_path):
    pl.DataFrame({"text": [f"t{i}" for i in range(60)]}).write_csv(tmp_path / "in.csv")
    for name in ("out.csv", "out.jsonl", "out.parquet", "out.xlsx"):
        predicted(tmp_path / "in.csv", tmp_path / name)
        assert set(read_table(tmp_path / name).frame["predicted_label"]) == set(LABELS)
