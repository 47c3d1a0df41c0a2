"""What a table writer wrote comes back the same, whole or in batches."""

import csv
import json
import tempfile
from pathlib import Path

import openpyxl
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl.utils.escape import escape, unescape

from snugtune.data.table import iter_tables, read_table

# Cells: any text, without NUL (no text file holds it) and surrogates (no UTF-8 does); "" and None are one.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
CELL = st.one_of(
    st.none(),
    st.text(CHARACTERS, min_size=1, max_size=20),
    st.text(",;|\t\"'\n\r ab", min_size=1, max_size=20),
)
# What openpyxl can write: it leaves _xaaaa_ as it is, which every reader takes for a character.
SHEET_CELL = st.text("abc é\n_x", min_size=1, max_size=12).filter(lambda text: unescape(escape(text)) == text)
QUICK = settings(max_examples=60, deadline=None)


@st.composite
def tables(draw, cell=CELL, min_width=1):
    width = draw(st.integers(min_width, 4))
    rows = draw(st.lists(st.lists(cell, min_size=width, max_size=width), min_size=1, max_size=12))
    return pl.DataFrame(rows, schema={f"c{i}": pl.String for i in range(width)}, orient="row")


def agree(path, frame, batch, **options):
    table = read_table(path, **options)
    assert table.frame.equals(frame)
    batches = list(iter_tables(path, rows_per_batch=batch, **options))
    assert pl.concat(batches).equals(frame)
    assert all(piece.height == batch for piece in batches[:-1])


@QUICK
@given(
    tables(),
    st.sampled_from(",;\t|"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(1, 5),
)
def test_csv(frame, delimiter, codec, end, batch):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.csv")
        with path.open("w", encoding=codec, newline="") as file:
            writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator=end)
            writer.writerow(frame.columns)
            writer.writerows(frame.iter_rows())
        agree(path, frame, batch, delimiter=delimiter)


@QUICK
@given(tables(min_width=2), st.sampled_from(",;\t|"))
def test_csv_with_the_delimiter_found(frame, delimiter):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.csv")
        frame.write_csv(path, separator=delimiter, quote_style="non_numeric")
        agree(path, frame, 3)


@QUICK
@given(tables(), st.integers(1, 5))
def test_parquet(frame, batch):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.parquet")
        frame.write_parquet(path)
        agree(path, frame, batch)


@QUICK
@given(tables(), st.integers(1, 5), st.booleans())
def test_json_lines(frame, batch, ascii_only):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        lines = (json.dumps(row, ensure_ascii=ascii_only) for row in frame.iter_rows(named=True))
        path.write_bytes("\n".join(lines).encode())
        agree(path, frame, batch)


@settings(max_examples=25, deadline=None)
@given(tables(SHEET_CELL), st.integers(1, 5))
def test_workbook(frame, batch):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.xlsx")
        book = openpyxl.Workbook()
        book.active.append(frame.columns)
        for row in frame.iter_rows():
            book.active.append([escape(cell) for cell in row])
        book.save(path)
        book.close()
        agree(path, frame, batch)
