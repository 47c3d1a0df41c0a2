"""Supervised fits on a card whose memory is cut, or beside a process that takes it all."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from snugtune.config import FitConfig, make_config
from snugtune.errors import SnugtuneError
from snugtune.progress import Observer, StepInfo, TrainedInfo
from snugtune.supervise import Supervisor

from . import capped_worker
from .guard_cases import (
    CARD,
    CPU,
    STAGES,
    CapCase,
    HogCase,
    counted,
    distance,
    judged,
    limit_of,
    losses_apart,
)
from .hog import Hog
from .lengths import cfpb_lengths
from .shapes import WORDS

CLASSES = 4
OF_CLASS = 0.3
"""Share of a text's words that tell its class."""

CUTS = 4
"""The undisturbed fit to compare with cuts its steps into about so many micro-batches."""

UNDISTURBED = ("first", "again", "cut")
"""Fits that nothing disturbs: as planned, again, and in smaller micro-batches."""

BEFORE, AFTER = "start", "after"
"""Stages beside ``STAGES``: before the data are read, and after the last step."""


def write_texts(path: Path, rows: int, max_length: int, words: tuple[str, ...] = WORDS) -> None:
    """A CSV of ``text`` and ``label``: as long as complaints, some of the words tell the class."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(cfpb_lengths(rows), max_length) - 2  # what is put around a text counts, too
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i, length in enumerate(np.maximum(lengths, 1).tolist()):
            label = i % CLASSES
            drawn = rng.choice(words[CLASSES:], length)
            drawn[rng.random(length) < OF_CLASS] = words[label]
            writer.writerow([" ".join(drawn.tolist()), f"class {label}"])


@dataclass(frozen=True)
class Settings:
    """What all fits have in common; each has a folder of its own below ``folder``."""

    folder: Path
    model: str
    table: Path
    max_length: int
    epochs: float
    threads: int
    host_hog_mib: int | None = None
    """On the host, where there is no card: how much the other process takes at most."""

    def config(self, precision: str, **more: Any) -> FitConfig:
        """Settings of one fit."""
        return make_config(
            {
                "train": str(self.table), "text": ("text",), "label": "label", "model": self.model,
                "max_length": self.max_length, "num_train_epochs": self.epochs, "audit": False,
                "early_stopping_patience": None, "bf16": precision == "bfloat16", **more,
            }
        )  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """What a finished fit left: what is told of it, its adapter's weights, the loss of every step."""

    told: dict[str, Any]
    best_step: int
    weights: Mapping[str, Any]
    losses: list[float]


class Watcher(Observer):
    """Notes what is said, at which stage a fit is and how long each took; calls ``on_stage`` at the first
    entry of each.
    """

    def __init__(self, on_stage: Callable[[str], None] = lambda _stage: None) -> None:
        self._on_stage = on_stage
        self.said: list[str] = []
        self.stage, self.step = BEFORE, 0
        self.began_s = time.perf_counter()
        self._since_s: dict[str, float] = {}

    def say(self, sentence: str) -> None:
        """Kept."""
        self.said.append(sentence)
        if sentence.startswith("Plan:"):
            self._enter("prepare")

    def phase(self, name: str, total: int | None = None) -> None:  # noqa: ARG002
        """Reading data is soon followed by loading; training is a phase of its own."""
        stage = {"data": "load", "train": "train"}.get(name)
        if stage is not None:
            self._enter(stage)

    def on_step(self, info: StepInfo) -> None:
        """Kept."""
        self.step = info.step

    def on_trained(self, info: TrainedInfo) -> None:  # noqa: ARG002
        """What comes after is no training."""
        self._enter(AFTER)

    def seconds(self) -> dict[str, float]:
        """Of each of ``STAGES``, at the first time."""
        ends = [self._since_s.get(stage, math.nan) for stage in (*STAGES, AFTER)]
        return dict(zip(STAGES, np.diff(ends).tolist(), strict=True))

    def _enter(self, stage: str) -> None:
        self.stage = stage
        if stage not in self._since_s:
            self._since_s[stage] = time.perf_counter()
            self._on_stage(stage)


def fit(
    settings: Settings,
    name: str,
    config: FitConfig,
    watcher: Watcher,
    *,
    gib: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Fitted | dict[str, Any]:
    """A supervised fit in a folder of its own, of which nothing stays; what is told of it if it fails."""
    folder = settings.folder / name
    options = capped_worker.command_options(gib, folder / "cache", settings.threads)
    command = (sys.executable, str(Path(capped_worker.__file__).resolve()), *options)
    folder.mkdir(parents=True)
    began = time.perf_counter()
    try:
        Supervisor(
            config, folder / "run", overwrite=True, observer=watcher, command=command, sleep=sleep
        ).run()
        return _read(folder / "run", time.perf_counter() - began)
    except (SnugtuneError, RuntimeError) as error:
        seconds = time.perf_counter() - began
        return {"failed": str(error)[-2000:], "said": watcher.said[-5:], "seconds": seconds}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read(run: Path, seconds: float) -> Fitted:
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    training, memory = record["training"], record["memory"]
    told = {
        "ended": CARD if training["device"] == "cuda" else CPU,
        "packed": training["packed"],
        "dtype": training["dtype"],
        "measured_peak_gib": memory["measured_peak_gib"],
        "events": counted(memory["events"]),
        "restarts": memory["restarts"],
        "seconds": seconds,
    }
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    return Fitted(told, training["best_step"], weights, losses)


@dataclass(frozen=True)
class Undisturbed:
    """The fit to compare with, what others are allowed to be apart, and how long its stages took."""

    fitted: Fitted
    weights_limit: float
    losses_limit: float
    stage_s: dict[str, float]


def undisturbed_fit(settings: Settings, precision: str, which: str) -> tuple[Fitted, dict[str, float]]:
    """One of ``UNDISTURBED``, and how long its stages took.

    Raises:
        RuntimeError: it failed.
    """
    more = {"tokens_per_micro_batch": 32 * settings.max_length // CUTS} if which == "cut" else {}
    watcher = Watcher()
    fitted = fit(settings, f"undisturbed-{precision}-{which}", settings.config(precision, **more), watcher)
    if not isinstance(fitted, Fitted):
        raise RuntimeError(f"The undisturbed fit in {precision} failed: {fitted['failed']}")
    return fitted, watcher.seconds()


def yardstick(
    precision: str, fits: Mapping[str, tuple[Fitted, dict[str, float]]]
) -> tuple[Undisturbed, dict[str, Any]]:
    """What disturbed fits are compared with, and what is told of it; ``fits`` by ``UNDISTURBED``.

    Raises:
        ValueError: the undisturbed fits are not finite.
    """
    first, stage_s = fits["first"]
    apart = {name: _apart(fitted, first) for name, (fitted, _) in fits.items() if name != "first"}
    limits = [limit_of(precision, values) for values in zip(*apart.values(), strict=True)]
    told = {
        **first.told, "steps": len(first.losses), "best_step": first.best_step, "stage_s": stage_s,
        "noise": {name: dict(zip(("weights", "losses"), of, strict=True)) for name, of in apart.items()},
        "limits": dict(zip(("weights", "losses"), limits, strict=True)),
    }  # fmt: skip
    return Undisturbed(first, limits[0], limits[1], stage_s), told


def _apart(fitted: Fitted, expected: Fitted) -> tuple[float | None, float]:
    """Of weights, None where another look at validation was the best; and of losses."""
    same = fitted.best_step == expected.best_step
    return (
        distance(fitted.weights, expected.weights) if same else None,
        losses_apart(fitted.losses, expected.losses),
    )


def capped(settings: Settings, case: CapCase, beside: Undisturbed) -> dict[str, Any]:
    """A fit within the case's share of the card."""
    # The share stays as it is however long one waits.
    fitted = fit(
        settings, f"cap-{case.number}", settings.config(case.precision), Watcher(),
        gib=case.gib, sleep=lambda _seconds: None,
    )  # fmt: skip
    return _judged({"level": case.level, **asdict(case)}, fitted, beside)


def robbed(settings: Settings, case: HogCase, beside: Undisturbed) -> dict[str, Any]:
    """A fit beside another process that takes all memory at the case's moment."""
    timers: list[threading.Timer] = []
    moment: dict[str, Any] = {}

    def on_told(event: str) -> None:
        if event == "full":
            moment.update(
                at_s=time.perf_counter() - watcher.began_s, stage=watcher.stage, after_step=watcher.step,
                training_was_still_to_end=watcher.stage != AFTER,
            )  # fmt: skip

    def on_stage(stage: str) -> None:
        if stage == case.stage and not timers:
            delay_s = case.share * beside.stage_s[stage]
            timers.append(threading.Timer(delay_s, hog.take, (case.hold_s, on_told)))
            timers[0].start()

    with closing(Hog(settings.host_hog_mib)) as hog:
        watcher = Watcher(on_stage)
        fitted = fit(settings, f"hog-{case.number}", settings.config(case.precision), watcher)
        for timer in timers:
            timer.cancel()
            timer.join()
        told = {
            "level": case.level, **asdict(case), "moment": moment,
            "taken_bytes": {event: of["bytes"] for event, of in hog.told.items() if "bytes" in of},
        }  # fmt: skip
    return _judged(told, fitted, beside)


def _judged(told: dict[str, Any], fitted: Fitted | dict[str, Any], beside: Undisturbed) -> dict[str, Any]:
    if not isinstance(fitted, Fitted):
        return judged(told | fitted, weights=(None, beside.weights_limit), losses=(None, beside.losses_limit))
    weights, losses = _apart(fitted, beside.fitted)
    told |= {**fitted.told, "other_best_step": weights is None}
    return judged(told, weights=(weights, beside.weights_limit), losses=(losses, beside.losses_limit))
