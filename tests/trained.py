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
from snugtune.evaluate.multilabel.decision import decide_label_sets
from snugtune.evaluate.multilabel.metrics import label_set_metrics
from snugtune.model.adapter import wrap
from snugtune.model.artifact import save_model
from snugtune.model.backbone import load_backbone
from snugtune.model.head import find_head, write_probe
from snugtune.train.forward import layer_inputs, predict_logits
from snugtune.train.probe import fit_probes

CPU = torch.device("cpu")
ROWS, HELD_OUT, MAX_LENGTH = 90, 30, 10


def write_run(folder, family, *, several=False, long_texts="truncate", tokenizer=None, **settings):
    """The folder of a run of ``family`` beside its table and its base model; texts are cut to ten tokens.

    With ``several`` labels a text, every fourth text has two and every tenth none. ``tokenizer`` is
    used instead of the family's own.
    """
    folder = Path(folder)
    source = write_family(folder / "base", family)
    if tokenizer is not None:
        tokenizer.save_pretrained(source)
    texts, y = texts_and_labels(ROWS)
    table = folder / "table.csv"
    cells = [LABELS[i] for i in y]
    if several:
        sets = label_sets(y)
        cells = ["; ".join(np.array(LABELS)[row > 0]) for row in sets]
        settings["label_separator"] = ";"
    pl.DataFrame({"text": texts, "label": cells}).write_csv(table)
    rank = {} if settings.get("method") in ("full", "head") else {"r": 4}
    config = make_config(
        {"train": str(table), "model": str(source), "max_length": MAX_LENGTH, **rank, **settings}
    )
    labels = LabelSet(LABELS, {}, ";" if several else None)
    backbone = load_backbone(str(source), labels, max_length=MAX_LENGTH)
    tokenizer, model = backbone.tokenizer, backbone.model
    tokens = tokenize(texts, tokenizer, MAX_LENGTH, long_texts)
    options = {"pad_token_id": tokenizer.pad_token_id, "device": CPU}
    head = find_head(model)
    features = layer_inputs(model, head.feature_layer, tokenize(texts, tokenizer, MAX_LENGTH), **options)
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
    if several:
        write_set_records(run, config, saved, texts, sets, logits)
    else:
        write_records(run, config, saved, texts, np.array(y), logits)
    change_record(run, long_texts={"chosen": long_texts})
    return run


def label_sets(y):
    """Label sets (N, K) of texts of classes ``y``: every fourth has the next one, too, every tenth none."""
    sets = np.zeros((len(y), len(LABELS)), np.int8)
    for i, k in enumerate(y):
        if i % 10:
            sets[i, k] = 1
            sets[i, (k + 1) % len(LABELS)] = i % 4 == 0
    return sets


def change_record(run, **fields):
    """Write ``fields`` into ``run.json``."""
    path = run / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(record | fields), encoding="utf-8")


def write_set_records(run, config, saved, texts, sets, logits):
    """As ``write_records`` where a text may carry several labels: ``sets`` (N, K)."""
    held_out = np.arange(len(sets)) >= len(sets) - HELD_OUT
    decision = decide_label_sets(
        logits[held_out], None, sets[held_out], precision=0.5, objective="f1_micro", at_least_one=False
    ).decision
    predicted = decision.predict(decision.probabilities(logits))
    write_records(run, config, saved, texts, sets.argmax(1), logits)
    rows = pl.read_parquet(run / "predictions.parquet")
    names = np.array(LABELS, dtype=object)
    told = (
        [*("; ".join(names[row > 0]) for row in sets)],
        [*("; ".join(names[row]) for row in predicted.labels)],
    )
    rows.with_columns(
        label=pl.Series(told[0]),
        predicted_label=pl.Series(
            [cell if out else None for cell, out in zip(told[1], held_out, strict=True)]
        ),
        confidence=pl.Series(np.where(held_out, predicted.confidence, np.nan)).fill_nan(None),
    ).write_parquet(run / "predictions.parquet")
    told = predicted.rows(held_out)
    metrics = {"validation": label_set_metrics(sets[held_out], told, LABELS)}
    change_record(
        run, label_separator=";", decision=decision.as_dict(), metrics=metrics,
        baseline={"name": "TF-IDF + linear SVM", "metrics": metrics},
    )  # fmt: skip


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
