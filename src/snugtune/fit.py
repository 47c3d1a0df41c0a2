"""READ FIRST. The whole job, top to bottom: a table in, a model to trust out."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from snugtune.config import FitConfig, write_config
from snugtune.data.columns import Columns, choose_columns, join_texts
from snugtune.data.duplicates import near_duplicate_groups
from snugtune.data.labels import CleaningPolicy, CleanResult, LabelSet, clean
from snugtune.data.split import Split, split_rows
from snugtune.data.table import read_table
from snugtune.data.tokens import Tokens, tokenize
from snugtune.errors import RunInterruptedError, UserInputError
from snugtune.evaluate.calibration import fit_temperature, review_threshold, softmax
from snugtune.evaluate.metrics import classification_metrics, single_class_alarm
from snugtune.files import replacing, write_json, write_text
from snugtune.model.adapter import is_peft, load_trainable_state, trainable_state, wrap
from snugtune.model.artifact import check_reload, save_model
from snugtune.model.backbone import Backbone, load_backbone
from snugtune.model.head import find_head, write_probe
from snugtune.model.parameters import count_parameters
from snugtune.model.precision import compute_dtype, pick_device
from snugtune.progress import Observer
from snugtune.train.engine import Examples, TrainResult, train
from snugtune.train.forward import layer_inputs, predict_logits
from snugtune.train.probe import fit_probe

ROWS_TO_CHECK = 16
"""Held-out rows on which the saved model must repeat the trained one's logits."""


@dataclass(frozen=True)
class Data:
    """Cleaned, split data: texts and class ids ``y`` (N,) by part; -1 marks a label unseen in training."""

    texts: dict[str, list[str]]
    y: dict[str, NDArray[np.int64]]
    rows: dict[str, NDArray[np.int64]]
    labels: LabelSet
    columns: Columns
    cleaning: dict[str, Any]


def fit(
    config: FitConfig, out: str | Path, *, overwrite: bool = False, observer: Observer | None = None
) -> Path:
    """Train a classifier as ``config`` says and write the run folder ``out``; returns its path.

    Raises:
        UserInputError: the data, a setting or the folder cannot be used.
        TrainingError: the loss is not finite.
        ArtifactError: the saved model does not repeat the trained one's logits in a new process.
    """
    observer = observer or Observer()
    started = time.perf_counter()
    run = _claim_folder(Path(out), overwrite)

    data = load_data(config, observer)
    device = pick_device()
    dtype = compute_dtype(config, device)
    backbone = load_backbone(
        config.model, data.labels, dtype=dtype, revision=config.revision,
        max_length=config.max_length, dropout=config.hidden_dropout,
    )  # fmt: skip
    tokens = _tokenize_parts(data, backbone, observer)
    backbone.model.to(device)
    if config.probe_start:
        _start_from_probe(backbone, tokens["train"], data, config, device, dtype, observer)
    head_names = find_head(backbone.model, config.modules_to_save).modules_to_save
    model = wrap(backbone.model, config)
    parameters = count_parameters(model)
    observer.say(
        f"Training {parameters.trainable:,} of {parameters.all:,} parameters ({parameters.percent:.2f} %)."
    )
    observer.phase("train")
    result = train(
        model,
        Examples(tokens["train"], data.y["train"]),
        Examples(tokens["validation"], data.y["validation"]),
        config,
        head_names=head_names,
        pad_token_id=backbone.tokenizer.pad_token_id,
        dtype=dtype,
        device=device,
        observer=observer,
    )
    if result.best_step == 0 and result.interrupted and not config.probe_start:
        raise RunInterruptedError("Interrupted before anything was learned; nothing was written.")

    observer.phase("evaluate")
    final = _restore_full_precision(model, config, data, backbone, device)
    logits = {
        part: predict_logits(final, tokens[part], pad_token_id=backbone.tokenizer.pad_token_id, device=device)
        for part in ("validation", "test")
        if len(data.y[part])
    }
    decision = _calibrate(logits["validation"], data.y["validation"], config.precision_target)
    metrics = {
        part: classification_metrics(
            data.y[part], softmax(values, decision["temperature"]), data.labels.names
        )
        for part, values in logits.items()
    }
    for part, values in logits.items():
        if alarm := single_class_alarm(values.argmax(1), len(data.labels.names)):
            observer.say(f"Alarm on {part}: {alarm}")

    observer.phase("save")
    folder = run / ("adapter" if is_peft(final) else "model")
    final.to("cpu")
    save_model(final, backbone.tokenizer, folder, backbone.max_length)
    held_out = data.texts["validation"][:ROWS_TO_CHECK]
    difference = check_reload(
        folder, held_out, logits["validation"][:ROWS_TO_CHECK], data.labels.names,
        backbone.max_length, peft=is_peft(final),
    )  # fmt: skip
    write_config(config, run / "config.yaml")
    _write_metrics(result, run / "metrics.jsonl")
    _write_predictions(data, logits, decision["temperature"], run / "predictions.parquet")
    write_json(
        run / "run.json",
        {
            "format": 1,
            "config": config.model_dump(mode="json"),
            "labels": list(data.labels.names),
            "label_aliases": dict(data.labels.aliases),
            "columns": {"text": list(data.columns.text), "label": data.columns.label},
            "data": {
                "cleaning": data.cleaning,
                "rows": {part: len(y) for part, y in data.y.items()},
                "truncation": vars(tokens["train"].truncation),
            },
            "model": {"folder": folder.name, "source": config.model, "max_length": backbone.max_length},
            "parameters": parameters.as_dict(),
            "training": _training_record(result, dtype, device),
            "decision": decision,
            "metrics": metrics,
            "reload": {"rows": len(held_out), "largest_logit_difference": difference},
            "time": {"train_s": result.train_s, "total_s": time.perf_counter() - started},
            "cost": {"usd": _cost_usd(time.perf_counter() - started, config.price_per_hour_usd)},
            "versions": _versions(),
        },
    )
    return run


def load_data(config: FitConfig, observer: Observer | None = None) -> Data:
    """Read, clean, de-duplicate and split the tables ``config`` names, telling what was found."""
    observer = observer or Observer()
    observer.phase("data")
    columns, cleaned = _read_clean(config, config.train, config.text, config.label, config.min_class_count)
    for sentence in cleaned.report.sentences():
        observer.say(sentence)
    labels = LabelSet(tuple(sorted(set(cleaned.labels))), cleaned.report.aliases)
    y = labels.encode(cleaned.labels)
    groups = near_duplicate_groups(cleaned.texts)
    test_fraction = 0.0 if config.test else config.test_fraction
    split = split_rows(y, groups, validation=config.validation_fraction, test=test_fraction, seed=config.seed)
    data = _by_part(split, cleaned, y, labels, columns)
    return _with_test_file(data, config, observer) if config.test else data


def _claim_folder(out: Path, overwrite: bool) -> Path:
    if out.exists() and not out.is_dir():
        raise UserInputError(f"The output {out} is a file; name a folder.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserInputError(
            f"The folder {out} already holds something; choose another --out or add --overwrite."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserInputError(
            f"Cannot create the folder {out}: {error.strerror}; choose another --out."
        ) from None
    return out


def _read_clean(
    config: FitConfig, source: str, text: Sequence[str] | None, label: str | None, min_class_count: int
) -> tuple[Columns, CleanResult]:
    table = read_table(source, sheet=config.sheet, encoding=config.encoding, delimiter=config.delimiter)
    columns = choose_columns(table.frame, source=table.source, text=text, label=label)
    assert columns.label is not None
    given = [None if v is None else str(v) for v in table.frame[columns.label].to_list()]
    policy = CleaningPolicy(
        duplicates=config.duplicates,
        conflicts=config.conflicts,
        merge_label_variants=config.merge_label_variants,
        min_class_count=min_class_count,
    )
    return columns, clean(join_texts(table.frame, columns.text), given, policy, source=table.source)


def _by_part(
    split: Split, cleaned: CleanResult, y: NDArray[np.int64], labels: LabelSet, columns: Columns
) -> Data:
    parts = {name: split.indices(name) for name in ("train", "validation", "test")}
    return Data(
        texts={name: [cleaned.texts[i] for i in rows] for name, rows in parts.items()},
        y={name: y[rows] for name, rows in parts.items()},
        rows={name: cleaned.row[rows] for name, rows in parts.items()},
        labels=labels,
        columns=columns,
        cleaning=cleaned.report.as_dict(),
    )


def _with_test_file(data: Data, config: FitConfig, observer: Observer) -> Data:
    """The test file as it is: only rows with no text or no label are left out."""
    assert config.test is not None
    table = read_table(config.test, sheet=None, encoding=config.encoding, delimiter=config.delimiter)
    columns = choose_columns(
        table.frame, source=table.source, text=data.columns.text, label=data.columns.label
    )
    assert columns.label is not None
    texts = join_texts(table.frame, columns.text)
    given = [str(v).strip() if v is not None else "" for v in table.frame[columns.label].to_list()]
    rows = np.array([i for i, text in enumerate(texts) if text.strip() and given[i]], dtype=np.int64)
    if not len(rows):
        raise UserInputError(
            f"The test file {config.test} has no row with both a text and a label; check it."
        )
    labels = [given[i] for i in rows]
    if unseen := data.labels.unseen(labels):
        observer.say(
            f"{sum(unseen.values())} rows of {config.test} carry {len(unseen)} labels unseen in training; "
            "they are predicted but not scored."
        )
    return Data(
        texts={**data.texts, "test": [texts[i] for i in rows]},
        y={**data.y, "test": data.labels.encode(labels)},
        rows={**data.rows, "test": rows},
        labels=data.labels,
        columns=data.columns,
        cleaning=data.cleaning,
    )


def _tokenize_parts(data: Data, backbone: Backbone, observer: Observer) -> dict[str, Tokens]:
    tokens = {
        part: tokenize(texts, backbone.tokenizer, backbone.max_length) for part, texts in data.texts.items()
    }
    observer.say(tokens["train"].truncation.sentence())
    return tokens


def _start_from_probe(
    backbone: Backbone,
    tokens: Tokens,
    data: Data,
    config: FitConfig,
    device: torch.device,
    dtype: torch.dtype,
    observer: Observer,
) -> None:
    observer.phase("probe", len(tokens))
    head = find_head(backbone.model, config.modules_to_save)
    features = layer_inputs(
        backbone.model, head.feature_layer, tokens, pad_token_id=backbone.tokenizer.pad_token_id,
        device=device, dtype=dtype, on_rows=observer.advance,
    )  # fmt: skip
    probe = fit_probe(features, data.y["train"], len(data.labels.names), head)
    write_probe(head, probe)


def _restore_full_precision(
    model: torch.nn.Module, config: FitConfig, data: Data, backbone: Backbone, device: torch.device
) -> torch.nn.Module:
    """The trained tensors on the backbone's published weights: exactly what a user of the folder loads."""
    state = trainable_state(model)
    fresh = load_backbone(config.model, data.labels, revision=config.revision, max_length=config.max_length)
    final = wrap(fresh.model, config)
    load_trainable_state(final, state)
    final.config._name_or_path = backbone.source  # type: ignore[union-attr]
    return final.to(device).eval()


def _calibrate(logits: NDArray[np.float32], y: NDArray[np.int64], precision: float) -> dict[str, float]:
    temperature = fit_temperature(logits, y)
    probabilities = softmax(logits, temperature)
    threshold = review_threshold(probabilities.max(1), probabilities.argmax(1) == y, precision)
    return {
        "temperature": temperature,
        "confidence_threshold": threshold,
        "precision_target": precision,
    }


def _write_metrics(result: TrainResult, path: Path) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in result.metrics))


def _write_predictions(
    data: Data, logits: dict[str, NDArray[np.float32]], temperature: float, path: Path
) -> None:
    """Row by row: which part it fell in and, where scored, what was predicted."""
    names = np.array([*data.labels.names, None], dtype=object)
    frames = []
    for part, rows in data.rows.items():
        columns: dict[str, Any] = {
            "row": rows,
            "part": [part] * len(rows),
            "label": names[data.y[part]].tolist(),
        }
        if part in logits:
            probabilities = softmax(logits[part], temperature)
            columns["predicted_label"] = names[probabilities.argmax(1)].tolist()
            columns["confidence"] = probabilities.max(1).astype(np.float64)
        frames.append(pl.DataFrame(columns, schema_overrides={"label": pl.String}))
    with replacing(path) as temporary:
        pl.concat(frames, how="diagonal").write_parquet(temporary)


def _training_record(result: TrainResult, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    return {
        "steps": result.steps,
        "best_step": result.best_step,
        "best_score": result.best_score,
        "stopped_early": result.stopped_early,
        "interrupted": result.interrupted,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
    }


def _cost_usd(seconds: float, price_per_hour_usd: float | None) -> float | None:
    return None if price_per_hour_usd is None else seconds / 3600 * price_per_hour_usd


def _versions() -> dict[str, str]:
    packages = ("snugtune", "torch", "transformers", "peft", "accelerate")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
