"""An audit and fits of one table, in this process: the frozen model reads each text once for all of them."""

import json
import sys
from contextlib import contextmanager

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

import tiny
from snugtune.audit import audit
from snugtune.config import make_config
from snugtune.fit import fit
from snugtune.train import features
from snugtune.train.feature_store import LIMIT_VARIABLE


@pytest.fixture
def table(tmp_path):
    texts, labels = tiny.texts_and_labels(90)
    texts = [f"{text} {i} {i % 7}" for i, text in enumerate(texts)]
    path = tmp_path / "table.csv"
    other = ["even" if i % 2 else "odd" for i in range(len(texts))]
    pl.DataFrame({"text": texts, "label": labels, "other": other}).write_csv(path)
    return path


@pytest.fixture
def read_rows(monkeypatch, tmp_path):
    """Rows of each frozen pass that the model was asked for, as they happen."""
    rows = []
    layer_inputs = features.layer_inputs

    def counted(model, layer, tokens, **options):
        rows.append(len(tokens))
        return layer_inputs(model, layer, tokens, **options)

    monkeypatch.setenv("SNUGTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "layer_inputs", counted)
    # Another process would only say again that the folder loads.
    monkeypatch.setattr(sys.modules["snugtune.stages.keeping"], "check_reloads", lambda _saved: [0.0])
    return rows


@pytest.fixture
def kept(monkeypatch):
    """What keeps the lower layers' outputs in each fit."""
    made = []
    kept_prefix = sys.modules["snugtune.stages.training"].kept_prefix

    @contextmanager
    def seen(*arguments):
        with kept_prefix(*arguments) as prefix:
            yield made.append(prefix) or prefix

    monkeypatch.setattr(sys.modules["snugtune.stages.training"], "kept_prefix", seen)
    return made


def record_of(run):
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def trained(run):
    return record_of(run)["metrics"], load_file(run / "adapter" / "adapter_model.safetensors")


def test_audit_and_fits_share_one_pass(table, read_rows, kept, tmp_path, monkeypatch):
    model = str(tiny.write_model(tmp_path / "model", layers=2))
    settings = {"train": str(table), "model": model, "text": ("text",), "label": "label",
                "num_train_epochs": 2, "test_fraction": 0.0, "layers_to_transform": (1,)}  # fmt: skip
    record = audit(make_config(settings), tmp_path / "audit")
    n = record["audit"]["rows"]
    assert read_rows == [n]
    assert (record["frozen_pass"]["rows"], record["frozen_pass"]["rows_from_cache"]) == (n, 0)

    fit(make_config(settings), tmp_path / "first")
    fit(make_config(settings | {"label": "other", "r": 4, "lora_dropout": 0.1}), tmp_path / "other")
    assert read_rows == [n]
    for name in ("first", "other"):
        told = record_of(tmp_path / name)["frozen_pass"]
        assert (told["rows"], told["rows_from_cache"]) == (n, n)

    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    fit(make_config(settings), tmp_path / "uncached")
    assert [prefix.rows_kept for prefix in kept] == [n, n, n]
    assert read_rows == [n, n]  # training and validation rows, in one pass
    metrics, weights = trained(tmp_path / "first")
    plain_metrics, plain_weights = trained(tmp_path / "uncached")
    assert metrics == plain_metrics
    assert weights.keys() == plain_weights.keys()
    assert all(np.array_equal(weights[name], plain_weights[name]) for name in weights)
