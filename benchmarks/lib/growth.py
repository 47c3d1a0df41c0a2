"""The work of ``growth.py`` on one table, each in a process of its own, and what its growth is called."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .common import quiet_libraries
from .memory import PeakMemory

STEPS = {
    "read_table": "read",
    "clean": "labels",
    "near_duplicate_groups": "duplicates",
    "split_rows": "split",
}
"""Functions that ``snugtune.data.dataset`` calls, and what their steps are called here."""


def prepare(table: Path, run: Path, threads: int) -> dict[str, Any]:
    """Read, clean, group, split and tokenize a table as ``fit`` does; seconds by step."""
    from snugtune.config import FitConfig
    from snugtune.data import dataset
    from snugtune.data.tokens import tokenize

    predictor, memory = _begin(run, threads)
    with _timed(dataset) as seconds:
        data = dataset.load_data(FitConfig(train=str(table), text=("text",), label="label"))
        began = time.perf_counter()
        tokens = {
            name: tokenize(part.texts, predictor.tokenizer, predictor.max_length)
            for name, part in data.parts.items()
        }
        seconds["tokens"] = time.perf_counter() - began
    rows = sum(len(of) for of in tokens.values())
    return {"seconds": dict(seconds), "rows_kept": rows, "memory": memory.as_dict()}


def predict(table: Path, run: Path, threads: int) -> dict[str, Any]:
    """``snugtune predict`` from CSV to CSV."""
    from snugtune.predict.table import predict_table

    predictor, memory = _begin(run, threads)
    began = time.perf_counter()
    found = predict_table(predictor, table, table.with_suffix(".predicted.csv"), overwrite=True)
    seconds = {"prediction": time.perf_counter() - began}
    return {"seconds": seconds, "rows": found["rows"], "memory": memory.as_dict()}


def evaluate(table: Path, run: Path, threads: int) -> dict[str, Any]:
    """``snugtune evaluate``."""
    from snugtune.predict.evaluation import evaluate_table

    predictor, memory = _begin(run, threads)
    began = time.perf_counter()
    found = evaluate_table(predictor, table)
    seconds = {"evaluation": time.perf_counter() - began}
    return {"seconds": seconds, "rows": found["rows"], "memory": memory.as_dict()}


WORK = {"preparation": prepare, "prediction": predict, "evaluation": evaluate}


def _begin(run: Path, threads: int) -> tuple[Any, PeakMemory]:
    """The model loaded and warm; memory is counted from here."""
    quiet_libraries()
    # Its own parallelism is what tokenizing is measured with.
    import os

    import torch

    from snugtune.predict.predictor import Predictor

    os.environ.pop("TOKENIZERS_PARALLELISM", None)
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    predictor = Predictor.load(run)
    predictor.columns(["warm up"] * 64)
    memory = PeakMemory()
    memory.restart()
    return predictor, memory


@contextmanager
def _timed(module: Any) -> Iterator[dict[str, float]]:
    """Inside, seconds spent in each of ``STEPS`` are added up under its name."""
    seconds: dict[str, float] = {}
    originals = {name: getattr(module, name) for name in STEPS}

    def wrapped(name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return originals[name](*args, **options)
            finally:
                seconds[STEPS[name]] = seconds.get(STEPS[name], 0.0) + time.perf_counter() - began

        return call

    for name in STEPS:
        setattr(module, name, wrapped(name))
    try:
        yield seconds
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


def slope(rows: Sequence[int], seconds: Sequence[float]) -> float | None:
    """The exponent b of seconds = a rows^b that fits best on logarithms; 1 is linear. None of one point."""
    if len(rows) < 2:
        return None
    return float(np.polyfit(np.log(rows), np.log(np.maximum(seconds, 1e-6)), 1)[0])
