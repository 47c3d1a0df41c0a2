"""How a table is cut into batches and written changes no row."""

import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from snugtune.data.table import read_table
from snugtune.predict.predictor import Predictor
from snugtune.predict.write import write_tables

WORDS = [*tiny.FILLER, *" ".join(tiny.TOPICS.values()).split(), "", "unheard-of"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=70).map(" ".join), min_size=1, max_size=40)

# Any text without surrogates (no UTF-8 has them) and NUL (no CSV does); "" and null are one in a CSV.
CELL = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
# Sheets hold no non-characters (XML 1.0 has no way to write them).
SHEET_CELL = st.none() | st.text("=+-@'\"\t\r\n <&>é_x000D_\N{GRINNING FACE}a", min_size=1, max_size=12)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return Predictor.load(tiny.write_run(folder / "run", tiny.write_model(folder / "model")))


@settings(max_examples=10, deadline=None)
@given(TEXTS)
def test_the_batch_size_changes_no_row(predictor, texts):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.parquet")
        pl.DataFrame({"text": texts}).write_parquet(path)
        whole, *others = (pl.concat(predictor.tables(path, rows_per_batch=rows)) for rows in (1000, 7, 1))
    for other in others:
        assert other["text"].to_list() == texts
        # float32 sums over other padding round differently; this head multiplies that by its large weights.
        assert np.abs(other["confidence"] - whole["confidence"]).max() < 5e-6
        # Equal probabilities may be ranked either way by the last bit; this model has none but by accident.
        assert other.drop("confidence").equals(whole.drop("confidence"))


@st.composite
def batches(draw, cell):
    width = draw(st.integers(1, 3))
    rows = draw(st.lists(st.lists(cell, min_size=width, max_size=width), min_size=1, max_size=9))
    frame = pl.DataFrame(rows, schema={f"c{i}": pl.String for i in range(width)}, orient="row")
    # A column of every row filled: a line of one empty cell would be a blank line.
    frame = frame.with_columns(needs_review=pl.lit(True))
    return frame, list(frame.iter_slices(draw(st.integers(1, 4))))


def agree(frame, parts, name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        assert write_tables(parts, path) == {"rows": frame.height, "needs_review": frame.height}
        read = read_table(path).frame
    assert read.columns == frame.columns
    for column in frame.columns[:-1]:
        if column in read.columns:
            assert read[column].to_list() == frame[column].to_list()


@settings(max_examples=30, deadline=None)
@given(batches(CELL), st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.parquet"]))
def test_what_is_written_is_read_back(frame_and_parts, name):
    agree(*frame_and_parts, name)


@settings(max_examples=20, deadline=None)
@given(batches(SHEET_CELL))
def test_what_is_written_to_a_sheet_is_read_back(frame_and_parts):
    frame, parts = frame_and_parts
    # The reader of sheets leaves out columns without a value only if they have no name either.
    agree(frame, parts, "a.xlsx")
