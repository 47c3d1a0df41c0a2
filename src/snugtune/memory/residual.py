"""What predictions missed on this very machine: kept after real steps, added to later predictions.

A residual is measured peak less predicted peak, in bytes, of the same micro-batch and length. It comes from
kernels' own buffers and the libraries' habits, so it holds for one card, its driver, the versions of PyTorch
and Transformers, an architecture and the number formats; none of it says anything about another.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from datetime import date
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

from snugtune.errors import UserInputError
from snugtune.files import write_json
from snugtune.memory.devices import Device
from snugtune.memory.setup import Setup
from snugtune.model.pooling import cache_folder

FORMAT, FILE_NAME = 1, "residuals.json"

MOST_STEPS = 200
"""Steps kept in the file; the oldest go first."""


@dataclass(frozen=True)
class Subject:
    """What is trained: ``model`` as the user names it, its ``architecture`` (``model_type``), ``method``."""

    model: str
    architecture: str
    method: str


@dataclass(frozen=True)
class Conditions:
    """What a residual holds for. ``driver`` is empty for a card that is only planned for."""

    card: str
    driver: str
    torch: str
    transformers: str
    architecture: str
    method: str
    weights: str
    compute: str
    attention: str
    quantized: bool

    def covers(self, other: Conditions) -> bool:
        """Whether what was measured here holds there; an unknown driver is taken to be this one."""
        mine, theirs = asdict(self), asdict(other)
        if not (self.driver and other.driver):
            mine["driver"] = theirs["driver"] = ""
        return mine == theirs


@dataclass(frozen=True)
class Step:
    """One real step: its shape (micro-batch, tokens), peaks in bytes, and whose it was."""

    model: str
    micro_batch: int
    length: int
    predicted_bytes: int
    measured_bytes: int
    date: str

    @property
    def missed_bytes(self) -> int:
        """Measured less predicted."""
        return self.measured_bytes - self.predicted_bytes


@dataclass(frozen=True)
class Residual:
    """What real steps under the same conditions took; at least one step."""

    steps: tuple[Step, ...]

    def corrected(self, predicted_bytes: int) -> int:
        """The prediction put right by the step whose prediction was nearest to it (by ratio).

        The part missed may be the same at any size (a buffer) or grow with it (rounding, fragments); the
        reading that gives the larger peak is taken, so that a correction never promises too much.
        """
        if predicted_bytes <= 0:
            return predicted_bytes
        near = min(self.steps, key=lambda step: abs(math.log(predicted_bytes / step.predicted_bytes)))
        missed = near.missed_bytes
        # A fraction is exact, where a float loses bytes of large products.
        grown = round(Fraction(missed * predicted_bytes, near.predicted_bytes))
        return predicted_bytes + max(missed, grown)

    def measured(self, model: str, micro_batch: int, length: int, predicted_bytes: int) -> int | None:
        """The measured peak of this very step, if it was taken: same model, shape and prediction."""
        key = (model, micro_batch, length, predicted_bytes)
        for step in self.steps[::-1]:
            if (step.model, step.micro_batch, step.length, step.predicted_bytes) == key:
                return step.measured_bytes
        return None


def record_residual(
    device: Device,
    setup: Setup,
    subject: Subject,
    *,
    micro_batch: int,
    length: int,
    predicted_bytes: int,
    measured_bytes: int,
) -> None:
    """Keep what one real step took, where it was the step that was predicted and nothing was cut short.

    A folder that cannot be written is no reason to fail a run: then nothing is kept.
    """
    if min(micro_batch, length, predicted_bytes, measured_bytes) <= 0:
        return
    conditions = conditions_of(device, setup, subject)
    today = date.today().isoformat()
    step = Step(subject.model, micro_batch, length, int(predicted_bytes), int(measured_bytes), today)
    kept = [
        (other, old)
        for other, old in _read()
        if (other, old.model, old.micro_batch, old.length) != (conditions, subject.model, micro_batch, length)
    ]
    entries = [*kept, (conditions, step)][-MOST_STEPS:]
    rows = [{"conditions": asdict(c), "step": asdict(s)} for c, s in entries]
    path = residuals_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, "entries": rows})
    except (OSError, UserInputError):
        return


def residual_for(device: Device, setup: Setup, subject: Subject) -> Residual | None:
    """What is known from real steps under these conditions; None without any."""
    asked = conditions_of(device, setup, subject)
    steps = tuple(step for conditions, step in _read() if conditions.covers(asked))
    return Residual(steps) if steps else None


def conditions_of(device: Device, setup: Setup, subject: Subject) -> Conditions:
    """The conditions of a step on ``device`` with the packages installed here."""
    return Conditions(
        device.card or device.name, device.driver, version("torch"), version("transformers"),
        subject.architecture, subject.method, setup.weights, setup.compute, setup.attention, setup.quantized,
    )  # fmt: skip


def residuals_file() -> Path:
    """Where they are kept, in the user's cache folder (``SNUGTUNE_CACHE``)."""
    return cache_folder() / FILE_NAME


def _read() -> list[tuple[Conditions, Step]]:
    """Every entry that can be read; a broken file or entry counts as none."""
    try:
        content: Any = json.loads(residuals_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return []
    entries = content.get("entries")
    found = [_entry(row) for row in entries] if isinstance(entries, list) else []
    return [entry for entry in found if entry is not None]


def _entry(row: Any) -> tuple[Conditions, Step] | None:
    try:
        conditions, step = Conditions(**row["conditions"]), Step(**row["step"])
    except (TypeError, KeyError):
        return None
    right = all(type(getattr(step, f.name)).__name__ == f.type for f in fields(step))
    if not right or min(step.predicted_bytes, step.measured_bytes) <= 0:
        return None
    return conditions, step
