"""What a run measured, written once: ``run.json``, ``metrics.jsonl``, ``predictions.parquet``.

Everything shown elsewhere is made from these. ``docs/run-folder.md`` describes every field.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from snugtune.config import FitConfig
from snugtune.data.audit import shortened
from snugtune.data.dataset import Data
from snugtune.data.identity import text_id
from snugtune.data.label_sets import join_label_sets
from snugtune.data.labels import LabelSet
from snugtune.data.part import Part
from snugtune.data.tokens import Truncation
from snugtune.evaluate.decision import Decision
from snugtune.evaluate.levels import Level
from snugtune.evaluate.multilabel.decision import LabelSetDecision
from snugtune.evaluate.multilabel.metrics import PredictedSets, scored_rows
from snugtune.files import replacing, write_json, write_text
from snugtune.model.artifact import FullPrecision
from snugtune.model.parameters import ParameterReport
from snugtune.train.engine import TrainResult
from snugtune.units import gib

FORMAT = 1
"""Raised when a field changes its meaning or goes; new fields do not raise it."""

TEXT_CHARACTERS = 300
"""Of a wrongly classified text, kept to be shown as an example."""


@dataclass(frozen=True)
class RunFacts:
    """Everything a finished run knows about itself.

    ``seconds`` are those of each phase and in total, ``cost`` is the bill (``snugtune.cost.bill``).
    """

    config: FitConfig
    data: Data
    truncation: Truncation
    long_texts: dict[str, Any]
    imbalance: dict[str, Any]
    parameters: ParameterReport
    model_folder: str
    max_length: int
    device: torch.device
    dtype: torch.dtype
    result: TrainResult
    predicted_peak_bytes: int | None
    measured_peak_bytes: int
    memory_limit_bytes: int
    restarts: Sequence[str]
    decision: Decision | LabelSetDecision
    levels: Sequence[Level]
    metrics: dict[str, dict[str, Any]]
    baseline_metrics: dict[str, dict[str, Any]]
    rows_checked: int
    largest_logit_difference: float
    without_quantization: FullPrecision | None
    seconds: dict[str, float]
    cost: dict[str, Any]
    frozen_pass: dict[str, Any] | None
    audit: dict[str, Any] | None
    automation: dict[str, Any]
    verdict: dict[str, Any]
    devices: int = 1


def write_record(facts: RunFacts, path: Path) -> dict[str, Any]:
    """Write ``run.json`` and return what it holds."""
    record = run_record(facts)
    write_json(path, record)
    return record


def run_record(facts: RunFacts) -> dict[str, Any]:
    """The content of ``run.json``."""
    config, data = facts.config, facts.data
    return {
        "format": FORMAT,
        "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "labels": list(data.labels.names),
        "label_aliases": dict(data.labels.aliases),
        "label_separator": data.labels.separator,
        "label_levels": {level.column: list(level.implied) for level in facts.levels},
        "columns": {"text": list(data.columns.text), "label": _listed(data.columns.label)},
        "data": {
            "rows": {name: len(part) for name, part in data.parts.items()},
            "cleaning": data.cleaning,
            "truncation": asdict(facts.truncation),
            "test_rows_like_training": data.overlap,
            "first_row": data.first_row,
            "corrections": data.table.corrections,
            "additions": data.additions,
        },
        "audit": facts.audit,
        "frozen_pass": facts.frozen_pass,
        "long_texts": facts.long_texts,
        "imbalance": facts.imbalance,
        "model": {"source": config.model, "folder": facts.model_folder, "max_length": facts.max_length},
        "parameters": facts.parameters.as_dict(),
        "training": _training(facts),
        "memory": _memory(facts),
        "decision": facts.decision.as_dict(),
        "metrics": facts.metrics,
        "automation": facts.automation,
        "verdict": facts.verdict,
        "baseline": {"name": "TF-IDF + linear SVM", "metrics": facts.baseline_metrics},
        "reload": {
            "rows": facts.rows_checked,
            "largest_logit_difference": facts.largest_logit_difference,
            "without_quantization": facts.without_quantization and asdict(facts.without_quantization),
        },
        "time": _time(facts),
        "cost": facts.cost,
        "versions": _versions(*(["bitsandbytes"] if config.load_in_4bit else [])),
    }


def write_lines(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One JSON line for each row: of ``metrics.jsonl`` or of ``memory.jsonl``."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


@dataclass(frozen=True)
class Told:
    """What is said of N rows: the predicted label, or labels in one cell, and how sure that is, (N,)."""

    labels: list[str]
    confidence: NDArray[np.float64]

    @classmethod
    def of(cls, labels: LabelSet, probabilities: NDArray[np.float64]) -> Told:
        """The most probable class of each row of ``probabilities`` (N, K)."""
        names = np.array(labels.names, dtype=object)
        return cls(names[probabilities.argmax(1)].tolist(), probabilities.max(1))

    @classmethod
    def of_sets(cls, labels: LabelSet, predicted: PredictedSets) -> Told:
        """The label sets that were ``predicted``."""
        return cls(_joined(labels, predicted.labels), np.asarray(predicted.confidence, np.float64))


def write_predictions(data: Data, told: dict[str, Told], path: Path, *, texts: bool = True) -> None:
    """Row by row: the part it fell in and, where scored, what was predicted.

    ``row`` counts the data rows of its file from 0; test rows of a separate file count in that file, texts
    from reviews have none.
    ``text_id`` is the same for the same text in every run. ``text`` is the beginning of the texts that were
    classified wrongly, the examples of a report; with ``texts=False`` there is no such column.
    """
    frames = []
    for name, part in data.parts.items():
        columns: dict[str, Any] = {
            "row": [None if row < 0 else row for row in part.rows.tolist()],
            "part": [name] * len(part),
            "text_id": list(map(text_id, part.texts)),
            "label": _given(data.labels, part),
        }
        if name in told:
            predicted = told[name].labels
            columns["predicted_label"], columns["confidence"] = predicted, told[name].confidence
            if texts:
                rows = zip(part.texts, columns["label"], predicted, strict=True)
                columns["text"] = [
                    shortened(text, TEXT_CHARACTERS) if given not in (None, label) else None
                    for text, given, label in rows
                ]
        schema = {"row": pl.Int64, "label": pl.String, "text_id": pl.UInt64, "text": pl.String}
        frames.append(pl.DataFrame(columns, schema_overrides=schema))
    with replacing(path) as temporary:
        pl.concat(frames, how="diagonal").write_parquet(temporary)


def _given(labels: LabelSet, part: Part) -> list[str | None]:
    """The label of each row, or its labels in one cell; None where training saw none of them."""
    if part.y.ndim == 1:
        return list(np.array([*labels.names, None], dtype=object)[part.y])
    scored = scored_rows(part.y)
    return [cell if known else None for cell, known in zip(_joined(labels, part.y), scored, strict=True)]


def _joined(labels: LabelSet, y: NDArray[Any]) -> list[str]:
    assert labels.separator is not None
    return join_label_sets(labels.decode_sets(y), labels.separator)


def _listed(label: str | tuple[str, ...] | None) -> str | list[str] | None:
    return list(label) if isinstance(label, tuple) else label


def _training(facts: RunFacts) -> dict[str, Any]:
    result = facts.result
    return {
        "steps": result.steps,
        "best_step": result.best_step,
        "best_score": result.best_score,
        "stopped_early": result.stopped_early,
        "interrupted": result.interrupted,
        "diverged": result.diverged,
        "rollbacks": result.rollbacks,
        "packed": result.packed,
        "dtype": str(facts.dtype).removeprefix("torch."),
        "device": facts.device.type,
        "devices": facts.devices,
    }


def _memory(facts: RunFacts) -> dict[str, Any]:
    predicted = facts.predicted_peak_bytes
    return {
        "predicted_peak_gib": None if predicted is None else gib(predicted),
        "measured_peak_gib": gib(facts.measured_peak_bytes),
        "limit_gib": gib(facts.memory_limit_bytes),
        "measured_as": "max_memory_reserved" if facts.device.type == "cuda" else "resident memory",
        "events": [row for row in facts.result.memory if "event" in row],
        "restarts": list(facts.restarts),
    }


def _time(facts: RunFacts) -> dict[str, Any]:
    phases = {f"{name}_s": seconds for name, seconds in facts.seconds.items() if name != "train"}
    return {"train_s": facts.result.train_s, **phases}


def _versions(*more: str) -> dict[str, str]:
    packages = ("snugtune", "torch", "transformers", "peft", "accelerate", *more)
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
