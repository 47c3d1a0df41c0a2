"""Whole fits of tiny decoders on the CPU, to a folder that a new process loads."""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import LABELS, WIDE, texts_and_labels, write_family
from snugtune.config import make_config
from snugtune.fit import fit
from snugtune.model.quantization import FILE
from snugtune.predict.predictor import Predictor


@pytest.fixture
def table(tmp_path):
    texts, y = texts_and_labels(90)
    path = tmp_path / "table.csv"
    pl.DataFrame({"text": texts, "label": [LABELS[i] for i in y]}).write_csv(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen2", {}),
        ("llama", {"bf16": False}),
        ("qwen3", {"load_in_4bit": True}),
        ("llama", {"load_in_4bit": True, "bf16": False, "target_modules": "all-linear"}),
    ],
)
def test_a_tiny_decoder_from_table_to_predictions(table, tmp_path, family, settings):
    quantized = "load_in_4bit" in settings
    if quantized:
        pytest.importorskip("bitsandbytes")
    model = write_family(tmp_path / "published", family, **WIDE[family])
    usual = {"train": str(table), "model": str(model), "r": 4, "num_train_epochs": 2, "duplicates": "keep"}
    config = make_config({**usual, **settings})
    run = fit(config, tmp_path / "run")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    # The check in a new process is part of the fit: it raises where the folder does not load as trained.
    assert record["reload"]["largest_logit_difference"] < 1e-3
    assert record["metrics"]["validation"]["accuracy"] > 0.9
    assert (run / "adapter" / FILE).exists() == quantized
    assert (record["reload"]["without_quantization"] is not None) == quantized
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["base_model_name_or_path"] == str(model)
    embedding = 200 * 64
    assert record["parameters"]["parts"]["embeddings"]["all"] == embedding
    rows = pl.read_parquet(run / "predictions.parquet").filter(pl.col("part") == "validation")
    texts = pl.read_csv(table)["text"].to_list()
    again = Predictor.load(run).probabilities([texts[i] for i in rows["row"]])
    np.testing.assert_allclose(again.max(1), rows["confidence"], atol=1e-4)
