"""The run folder: the model saved and checked in a new process, the bill, the records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from snugtune.config import write_config
from snugtune.cost.meter import EnergyMeter
from snugtune.data.tokens import tokenize
from snugtune.evaluate.baseline import TfidfBaseline
from snugtune.files import write_json
from snugtune.model.adapter import is_peft
from snugtune.model.artifact import FullPrecision, Saved, check_reloads, compare_full_precision, save_model
from snugtune.model.parameters import ParameterReport
from snugtune.report.card import write_card
from snugtune.report.page import write_report
from snugtune.report.record import RunFacts, write_lines, write_predictions, write_record
from snugtune.stages.job import AnyDecision, Job
from snugtune.stages.judging import Judged, Scores, levels_of_labels
from snugtune.stages.training import Trained, Trainee
from snugtune.train.forward import predict_logits
from snugtune.train.long_texts import Reading
from snugtune.train.recovery import Recovery
from snugtune.train.spending import Spending
from snugtune.train.step import device_of

ROWS_TO_CHECK = 16
"""Held-out rows on which the saved model must repeat the trained one's logits."""


@dataclass(frozen=True)
class Reload:
    """What the check in a new process found: the largest difference of a logit, and without quantisation."""

    largest_logit_difference: float
    without_quantization: FullPrecision | None


@dataclass(frozen=True)
class Finished:
    """What the stages of a run found out, as far as it is told."""

    reading: Reading
    trainee: Trainee
    trained: Trained
    decision: AnyDecision
    scores: Scores
    judged: Judged
    saved: Path
    reload: Reload
    cost: dict[str, Any]
    audit: dict[str, Any] | None
    recovery: Recovery | None


def save(
    job: Job, model: torch.nn.Module, baseline: TfidfBaseline, decision: AnyDecision, folder: Path
) -> Path:
    """The model's folder and, where the decision needs it, the baseline's; returns the former."""
    job.clock.phase("save")
    saved = folder / ("adapter" if is_peft(model) else "model")
    save_model(model.to("cpu"), job.backbone.tokenizer, saved, job.backbone.max_length)
    if decision.uses_baseline:
        baseline.save(folder / "baseline")
    return saved


def _stock_logits(job: Job, model: torch.nn.Module, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the first validation rows, what stock classes must repeat: they cut long texts off."""
    if job.config.long_texts == "truncate":
        return logits[:ROWS_TO_CHECK]
    texts = job.data.parts["validation"].texts[:ROWS_TO_CHECK]
    cut = tokenize(texts, job.backbone.tokenizer, job.backbone.max_length)
    device = device_of(model)
    return predict_logits(model, cut, pad_token_id=job.pad_token_id, device=device)


def check_saved(
    job: Job, model: torch.nn.Module, folder: Path, logits: NDArray[np.float32], parameters: ParameterReport
) -> Reload:
    """The folder loaded in a new process, as it was measured and, if that was in 4 bits, on full weights."""
    texts = job.data.parts["validation"].texts[:ROWS_TO_CHECK]
    names, max_length = job.data.labels.names, job.backbone.max_length
    expected = _stock_logits(job, model, logits)
    saved = Saved(folder, texts, expected, names, max_length, is_peft(model))
    return Reload(check_reloads([saved])[0], compare_full_precision(saved, parameters.all))


def bill(
    job: Job, spending: Spending, trained: Trained, energy: EnergyMeter, scores: Scores
) -> dict[str, Any]:
    """What the run took, beside what was quoted."""
    return spending.bill(
        job.clock.seconds, trained.result, peak_bytes=trained.peaks.measured_bytes, energy=energy.used(),
        baseline_score=scores.baseline_metrics["validation"][job.config.metric],
    )  # fmt: skip


def write(job: Job, done: Finished, folder: Path) -> dict[str, Any]:
    """All that is told of the run, into its folder; returns the record, as in ``run.json``."""
    trainee, result, peaks, scores = done.trainee, done.trained.result, done.trained.peaks, done.scores
    write_config(job.config, folder / "config.yaml")
    write_lines(result.metrics, folder / "metrics.jsonl")
    write_lines(result.memory, folder / "memory.jsonl")
    write_predictions(
        job.data, scores.told(job.data.labels), folder / "predictions.parquet",
        texts=job.config.report_texts,
    )  # fmt: skip
    facts = RunFacts(
        config=job.config, data=job.data, truncation=done.reading.tokens["train"].truncation,
        long_texts=done.reading.as_dict(), imbalance=trainee.balanced.as_dict(),
        parameters=trainee.parameters, model_folder=done.saved.name, max_length=job.backbone.max_length,
        device=job.device, dtype=job.dtype, result=result, predicted_peak_bytes=peaks.predicted_bytes,
        measured_peak_bytes=peaks.measured_bytes, memory_limit_bytes=peaks.limit_bytes,
        restarts=done.recovery.history if done.recovery else (),
        decision=done.decision, levels=levels_of_labels(job), metrics=scores.metrics,
        baseline_metrics=scores.baseline_metrics,
        rows_checked=min(ROWS_TO_CHECK, len(job.data.parts["validation"])),
        largest_logit_difference=done.reload.largest_logit_difference,
        without_quantization=done.reload.without_quantization,
        seconds=_seconds(job, done.recovery), cost=done.cost,
        frozen_pass=None if trainee.frozen is None else trainee.frozen.as_dict(), audit=done.audit,
        automation=done.judged.automation, verdict=done.judged.verdict, devices=job.group.size,
    )  # fmt: skip
    write_json(folder / "reference.json", done.judged.reference)
    record = write_record(facts, folder / "run.json")
    write_card(record, folder / "README.md")
    _report(job, folder)
    return record


def _seconds(job: Job, recovery: Recovery | None) -> dict[str, float]:
    """Those of each phase of this process, of ``earlier`` ones, and of all together."""
    seconds, earlier_s = job.clock.seconds(), recovery.spent_s if recovery else 0.0
    return {**seconds, "earlier": earlier_s, "total": seconds["total"] + earlier_s}


def _report(job: Job, folder: Path) -> None:
    """The page for people, of the files in the folder; one that cannot be drawn costs nobody the run."""
    try:
        write_report(folder, texts=job.config.report_texts)
    except Exception as error:
        job.clock.say(f"The report could not be written ({error}); snugtune report tries it again.")
