"""What every stage of a fit needs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from snugtune.config import FitConfig
from snugtune.data.dataset import Data
from snugtune.evaluate.decision import Decision
from snugtune.evaluate.multilabel.decision import LabelSetDecision
from snugtune.memory.host import bound_primitive_caches
from snugtune.memory.segments import prefer_expandable_segments
from snugtune.model.backbone import Backbone, load_for_fit
from snugtune.model.precision import compute_dtype, pick_device
from snugtune.progress import Observer, PhaseClock
from snugtune.train.recovery import ON_CPU, Recovery
from snugtune.train.track import Tracker, tracking

Logits = dict[str, NDArray[np.float32]]
AnyDecision = Decision | LabelSetDecision


@dataclass(frozen=True)
class Job:
    """What every step needs: settings, data, the loaded model, where numbers are computed, the clock."""

    config: FitConfig
    data: Data
    backbone: Backbone
    device: torch.device
    dtype: torch.dtype
    clock: PhaseClock
    load_s: float

    @property
    def on_card(self) -> bool:
        """Whether a GPU computes."""
        return self.device.type == "cuda"

    @property
    def pad_token_id(self) -> int:
        """Of the tokenizer."""
        return int(self.backbone.tokenizer.pad_token_id)


def tracked(
    config: FitConfig, folder: Path, name: str, recovery: Recovery | None, observer: Observer
) -> AbstractContextManager[Tracker]:
    """Where the run is logged besides, if the settings name a place."""
    on_cpu = recovery is not None and recovery.caution >= ON_CPU
    settings = config.model_dump(mode="json")
    return tracking(config.track, folder, name, settings, on_cpu=on_cpu, say=observer.say)


def prepare(config: FitConfig, data: Data, clock: PhaseClock, recovery: Recovery | None) -> Job:
    """The model loaded for this data, on a device and in a number format that suit it.

    Raises:
        UserInputError: the model cannot be loaded (see ``load_backbone``), or ``fp16`` is asked for on a CPU.
    """
    on_cpu = recovery is not None and recovery.caution >= ON_CPU
    # Whatever loading draws at random, it draws by the run's seed.
    torch.manual_seed(config.seed)
    prefer_expandable_segments()
    bound_primitive_caches()
    device = torch.device("cpu") if on_cpu else pick_device()
    dtype = compute_dtype(config.model_copy(update={"fp16": False}) if on_cpu else config, device)
    started = clock.elapsed_s
    backbone = load_for_fit(config, data.labels, dtype=dtype, dropout=config.hidden_dropout, device=device)
    return Job(config, data, backbone, device, dtype, clock, clock.elapsed_s - started)


def class_rows(job: Job) -> NDArray[np.int64]:
    """Training rows of each class, (K,)."""
    y = job.data.parts["train"].y
    return y.sum(axis=0) if y.ndim == 2 else np.bincount(y, minlength=len(job.data.labels.names))
