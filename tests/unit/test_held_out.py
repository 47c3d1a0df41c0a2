"""Texts of a run's held-out rows are found again by what they are, wherever they now stand."""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import LABELS, texts_and_labels
from snugtune.config import make_config
from snugtune.errors import UserInputError
from snugtune.predict.held_out import read_held_out
from trained import HELD_OUT, ROWS, write_records

TEXTS, Y = texts_and_labels(ROWS)
HELD = set(TEXTS[-HELD_OUT:])


def written(tmp_path, **settings):
    """A run folder without a model, and its record; its table is ``table.csv`` beside it."""
    run = tmp_path / "run"
    run.mkdir()
    pl.DataFrame({"text": TEXTS, "label": [LABELS[i] for i in Y]}).write_csv(tmp_path / "table.csv")
    logits = np.random.default_rng(0).standard_normal((ROWS, 3)).astype(np.float32)
    config = make_config({"train": str(tmp_path / "table.csv"), **settings})
    write_records(run, config, "adapter", TEXTS, np.array(Y), logits)
    return run, json.loads((run / "run.json").read_text(encoding="utf-8"))


def test_rows_come_with_what_was_recorded_of_them(tmp_path):
    run, record = written(tmp_path)
    found = read_held_out(run, record, rows=1000)
    assert set(found.texts) == HELD
    assert found.recorded["label"].to_list() == [LABELS[Y[TEXTS.index(text)]] for text in found.texts]
    assert found.recorded["confidence"].null_count() == 0


def test_fewer_rows_are_always_the_same(tmp_path):
    run, record = written(tmp_path)
    few = read_held_out(run, record, rows=5)
    assert len(few) == 5
    assert few.texts == read_held_out(run, record, rows=1000).first(5).texts


def test_a_table_that_was_sorted_and_moved(tmp_path):
    run, record = written(tmp_path)
    moved = tmp_path / "moved.parquet"
    frame = pl.read_csv(tmp_path / "table.csv").sort("text")
    pl.concat([frame, pl.DataFrame({"text": ["new"], "label": ["Card"]})]).write_parquet(moved)
    (tmp_path / "table.csv").unlink()
    with pytest.raises(UserInputError, match=r"table\.csv.*is not there; name it with --rows"):
        read_held_out(run, record, rows=10)
    assert set(read_held_out(run, record, rows=1000, table=moved).texts) == HELD


def test_another_table(tmp_path):
    run, record = written(tmp_path)
    (tmp_path / "other.csv").write_text("text,label\nsomething else,Card\n")
    with pytest.raises(UserInputError, match=r"None of the held-out rows .* is in .*other\.csv"):
        read_held_out(run, record, rows=10, table=tmp_path / "other.csv")
    (tmp_path / "other.csv").write_text("words,label\nsomething else,Card\n")
    with pytest.raises(UserInputError, match="text"):
        read_held_out(run, record, rows=10, table=tmp_path / "other.csv")


def test_a_separate_test_file_is_read_as_well(tmp_path):
    here = tmp_path / "test.csv"
    pl.DataFrame({"text": TEXTS[-10:], "label": ["Card"] * 10}).write_csv(here)
    run, record = written(tmp_path, test=str(here))
    pl.DataFrame({"text": TEXTS[:-10], "label": ["Card"] * (ROWS - 10)}).write_csv(tmp_path / "table.csv")
    assert set(read_held_out(run, record, rows=1000).texts) == HELD


def test_a_run_without_predictions(tmp_path):
    run, record = written(tmp_path)
    (run / "predictions.parquet").write_bytes(b"damaged")
    with pytest.raises(UserInputError, match="missing or damaged"):
        read_held_out(run, record, rows=10)
