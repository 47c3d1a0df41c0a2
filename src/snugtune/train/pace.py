"""How much longer training takes on this machine than was quoted: kept after runs, for later quotes.

A quote is made from a short forward pass; what a run of the same model on the same machine took knows the
rest of a step as well.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from snugtune.errors import UserInputError
from snugtune.files import write_json
from snugtune.memory.devices import Device
from snugtune.memory.plan import Plan
from snugtune.memory.residual import conditions_of
from snugtune.model.pooling import cache_folder

FORMAT, FILE_NAME = 3, "pace.json"
"""The format goes up when quotes are made in another way: what earlier ones missed says nothing of these."""

MOST_RUNS, OF_A_KIND = 200, 5
"""Runs kept in the file, the oldest go first; and the newest of one kind that make up its pace."""

LEAST_TRAIN_S = 10.0
"""Shorter runs tell of their start more than of their pace."""


def known_pace(plan: Plan, device: Device) -> float | None:
    """Real over quoted seconds of training, the median of runs like it; None without any."""
    kind = _kind(plan, device)
    found = [run["ratio"] for run in _read() if run["kind"] == kind]
    return median(found[-OF_A_KIND:]) if found else None


def record_pace(plan: Plan, device: Device, *, planned_s: float, measured_s: float) -> None:
    """Keep what training took. A folder that cannot be written is no reason to fail a run."""
    if measured_s < LEAST_TRAIN_S or planned_s <= 0:
        return
    runs = [*_read(), {"kind": _kind(plan, device), "ratio": measured_s / planned_s}][-MOST_RUNS:]
    with suppress(OSError, UserInputError):
        path = pace_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, "runs": runs})


def pace_file() -> Path:
    """Where they are kept, in the user's cache folder (``SNUGTUNE_CACHE``)."""
    return cache_folder() / FILE_NAME


def _kind(plan: Plan, device: Device) -> dict[str, Any]:
    conditions = asdict(conditions_of(device, plan.setup, plan.subject))
    return {**conditions, "model": plan.subject.model, "levers": list(plan.levers)}


def _read() -> list[dict[str, Any]]:
    """Every entry that can be read; a broken file or entry counts as none."""
    try:
        content: Any = json.loads(pace_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return []
    runs = content.get("runs")
    return [run for run in runs if _is_whole(run)] if isinstance(runs, list) else []


def _is_whole(run: Any) -> bool:
    ratio = run.get("ratio") if isinstance(run, dict) else None
    return isinstance(ratio, float) and ratio > 0 and isinstance(run.get("kind"), dict)
