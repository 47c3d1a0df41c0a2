"""A fit on long texts whose class stands in the middle, through to predictions from the saved folder."""

import json

import numpy as np
import polars as pl
import pytest
from test_run_folder_docs import check_record

from snugtune.config import make_config
from snugtune.fit import fit
from snugtune.predict.evaluation import evaluate_table
from snugtune.predict.predictor import Predictor
from snugtune.progress import Observer
from tiny import FILLER, LABELS, TOPICS, write_model


def write_table(path, rows=480):
    rng = np.random.default_rng(0)
    labels = [LABELS[i % 3] for i in range(rows)]
    texts = []
    for i, label in enumerate(labels):
        filler = rng.choice(FILLER, 4 if i % 4 == 0 else 40).tolist()
        texts.append(
            " ".join([*filler[: len(filler) // 2], *[TOPICS[label]] * 2, *filler[len(filler) // 2 :]])
        )
    pl.DataFrame({"text": texts, "label": labels}).write_csv(path)
    return texts


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    texts = write_table(folder / "table.csv")
    settings = {
        "train": str(folder / "table.csv"), "model": str(write_model(folder / "model")), "max_length": 16,
        "long_texts": "auto", "num_train_epochs": 1, "mix_with_baseline": False, "validation_fraction": 0.3,
        "imbalance": "weights", "metric": "f1_macro",
    }  # fmt: skip
    said = Sentences()
    fit(make_config(settings), folder / "run", observer=said)
    return folder, texts, said.said


class Sentences(Observer):
    def __init__(self):
        self.said = []

    def say(self, sentence):
        self.said.append(sentence)


def test_windows_are_chosen_told_and_used_again(fitted):
    folder, texts, said = fitted
    record = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))
    check_record(record)
    assert record["long_texts"]["chosen"] == "windows"
    assert record["long_texts"]["candidates"]["windows"]["price"] > 1.5
    assert record["data"]["truncation"]["tokens_cut"] == 0
    assert record["imbalance"] == {
        "asked": "weights", "chosen": "weights", "trained_tau": 0.5, "candidates": None
    }  # fmt: skip
    assert record["decision"]["mixture"]["tau"] == record["decision"]["mixture"]["trained_tau"] == 0.5
    assert record["metrics"]["test"]["accuracy"] > 0.8
    assert record["metrics"]["test"]["slices"]["by_length"][-1]["to"] > 30
    assert any("read by 'windows'" in sentence for sentence in said)
    card = (folder / "run" / "README.md").read_text(encoding="utf-8")
    assert "stock `pipeline`" in card
    predictor = Predictor.load(folder / "run")
    told = pl.read_parquet(folder / "run" / "predictions.parquet").filter(pl.col("part") == "test")
    again = predictor.columns([texts[i] for i in told["row"]])
    assert again["predicted_label"].to_list() == told["predicted_label"].to_list()
    np.testing.assert_allclose(again["confidence"], told["confidence"], atol=1e-4)


def test_evaluation_reads_whole_texts_and_counts_them_not_windows(fitted):
    folder, texts, _ = fitted

    class Counts(Observer):
        done = 0

        def advance(self, done):
            self.done += done

    counts = Counts()
    found = evaluate_table(Predictor.load(folder / "run"), folder / "table.csv", observer=counts)
    assert found["metrics"]["accuracy"] > 0.8
    assert counts.done == len(texts)
