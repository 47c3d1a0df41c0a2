"""Finished runs of tiny models of every architecture in about a second each: a probe, saved as an adapter."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import torch

from families import LABELS, texts_and_labels, write_family
from snugtune.config import make_config
from snugtune.data.identity import text_id
from snugtune.data.labels import LabelSet
from snugtune.data.tokens import tokenize
from snugtune.evaluate.calibration import softmax
from snugtune.evaluate.metrics import classification_metrics
from snugtune.model.adapter import wrap
from snugtune.model.artifact import save_model
from snugtune.model.backbone import load_backbone
from snugtune.model.head import find_head, write_probe
from snugtune.train.forward import layer_inputs, predict_logits
from snugtune.train.probe import fit_probes

CPU = torch.device("cpu")
ROWS, HELD_OUT, MAX_LENGTH = 90, 30, 10


def write_run(folder, family, **settings):
    """The folder of a run of ``family`` beside its table and its base model; texts are cut to ten tokens."""
    folder = Path(folder)
    source = write_family(folder / "base", family)
    texts, y = texts_and_labels(ROWS)
    table = folder / "table.csv"
    pl.DataFrame({"text": texts, "label": [LABELS[i] for i in y]}).write_csv(table)
    config = make_config(
        {"train": str(table), "model": str(source), "r": 4, "max_length": MAX_LENGTH, **settings}
    )
    backbone = load_backbone(str(source), LabelSet(LABELS, {}), max_length=MAX_LENGTH)
    tokenizer, model = backbone.tokenizer, backbone.model
    tokens = tokenize(texts, tokenizer, MAX_LENGTH)
    options = {"pad_token_id": tokenizer.pad_token_id, "device": CPU}
    head = find_head(model)
    features = layer_inputs(model, head.feature_layer, tokens, **options)
    probe, _ = fit_probes(features, np.array(y), len(LABELS), head)
    write_probe(head, probe)
    final = wrap(model, config)
    # An adapter that does something, so that leaving it out would show.
    for name, parameter in final.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    logits = predict_logits(final, tokens, **options)
    run = folder / "run"
    saved = "adapter" if config.method == "lora" else "model"
    save_model(final, tokenizer, run / saved, MAX_LENGTH)
    write_records(run, config, saved, texts, np.array(y), logits)
    return run


def write_records(run, config, saved, texts, y, logits):
    probabilities, names = softmax(logits), np.array(LABELS, dtype=object)
    part = np.where(np.arange(len(y)) < len(y) - HELD_OUT, "train", "validation")
    held_out = part == "validation"
    frame = pl.DataFrame(
        {
            "row": np.arange(len(y)), "part": part.tolist(), "text_id": list(map(text_id, texts)),
            "label": names[y].tolist(),
            "predicted_label": np.where(held_out, names[probabilities.argmax(1)], None).tolist(),
            "confidence": pl.Series(np.where(held_out, probabilities.max(1), np.nan)).fill_nan(None),
        },
        schema_overrides={"text_id": pl.UInt64, "label": pl.String, "predicted_label": pl.String},
    )  # fmt: skip
    frame.write_parquet(run / "predictions.parquet")
    metrics = classification_metrics(y[held_out], probabilities[held_out], LABELS)
    record = {
        "created_at": "2026-11-25T12:00:00+00:00", "config": config.model_dump(mode="json"),
        "labels": list(LABELS), "label_aliases": {},
        "columns": {"text": ["text"], "label": "label"},
        "data": {"rows": {"train": ROWS - HELD_OUT, "validation": HELD_OUT, "test": 0}},
        "model": {"source": config.model, "folder": saved, "max_length": MAX_LENGTH},
        "parameters": {"all": 1000, "trainable": 10, "percent": 1.0},
        "decision": {"mixture": {"weight": 0.0}, "confidence_threshold": 0.5, "precision_target": 0.95},
        "metrics": {"validation": metrics},
        "baseline": {"name": "TF-IDF + linear SVM", "metrics": {"validation": metrics}},
        "time": {"train_s": 1.0}, "versions": {"snugtune": "0"},
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
