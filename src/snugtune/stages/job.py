"""What every stage of a fit needs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from snugtune.config import FitConfig
from snugtune.data.dataset import Data
from snugtune.errors import UserInputError
from snugtune.evaluate.decision import Decision
from snugtune.evaluate.multilabel.decision import LabelSetDecision
from snugtune.files import staged_folder
from snugtune.memory.host import bound_primitive_caches
from snugtune.memory.segments import prefer_expandable_segments
from snugtune.model.backbone import Backbone, load_for_fit
from snugtune.model.peft_config import DECOMPOSING_INITS
from snugtune.model.precision import compute_dtype, pick_device
from snugtune.progress import Observer, PhaseClock
from snugtune.train.group import ALONE, Group
from snugtune.train.recovery import ON_CPU, Recovery
from snugtune.train.track import Tracker, tracking

UNFIT_STARTS = (*DECOMPOSING_INITS, "eva")
"""First weights of LoRA that have not been made to work on weights that are divided."""

SHARDED_METHODS = frozenset({"lora", "head", "full", "bitfit", "ia3"})
"""Methods that are tested on weights that are divided."""

Logits = dict[str, NDArray[np.float32]]
AnyDecision = Decision | LabelSetDecision


@dataclass(frozen=True)
class Job:
    """What every step needs: settings, data, the loaded model, where numbers are computed, the clock.

    ``float32_instead``: a new process would compute in float32, should float16 not hold the gradients.
    """

    config: FitConfig
    data: Data
    backbone: Backbone
    device: torch.device
    dtype: torch.dtype
    clock: PhaseClock
    load_s: float
    group: Group = ALONE
    float32_instead: bool = False

    @property
    def on_card(self) -> bool:
        """Whether a GPU computes."""
        return self.device.type == "cuda"

    @property
    def pad_token_id(self) -> int:
        """Of the tokenizer."""
        return int(self.backbone.tokenizer.pad_token_id)


def tracked(
    config: FitConfig, folder: Path, name: str, recovery: Recovery | None, observer: Observer, group: Group
) -> AbstractContextManager[Tracker]:
    """Where the run is logged besides, if the settings name a place; by the first process of a group."""
    on_cpu = recovery is not None and recovery.caution >= ON_CPU
    settings = config.model_dump(mode="json")
    return tracking(
        config.track if group.is_first else None, folder, name, settings, on_cpu=on_cpu, say=observer.say
    )


@contextmanager
def run_folder(out: str | Path, group: Group, *, overwrite: bool) -> Iterator[Path]:
    """Where the run is written until it is complete: by the first process of the ``group``. What another
    one leaves there goes with it.
    """
    if group.is_first:
        with staged_folder(out, overwrite=overwrite, marker="run.json") as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="snugtune-") as name:
            yield Path(name)


def prepare(
    config: FitConfig, data: Data, clock: PhaseClock, recovery: Recovery | None, group: Group = ALONE
) -> Job:
    """The model loaded for this data, on a device and in a number format that suit it.

    Raises:
        UserInputError: the model cannot be loaded (see ``load_backbone``), or ``fp16`` is asked for on a CPU.
    """
    _check_sharding(config, group)
    if config.sharding == "full" and group.is_alone:
        clock.say("There is one device only, so --sharding full divides nothing.")
    on_cpu = recovery is not None and recovery.caution >= ON_CPU
    # Whatever loading draws at random, it draws by the run's seed.
    torch.manual_seed(config.seed)
    prefer_expandable_segments()
    bound_primitive_caches()
    # A driver may not answer.
    clock.at_work(True)
    device = torch.device("cpu") if on_cpu else pick_device()
    dtype = compute_dtype(config.model_copy(update=_other_format(recovery)), device)
    clock.at_work(False)
    if group.sharded and dtype == torch.float16:
        # Whether a gradient has overflowed would be another answer on each device.
        raise UserInputError(
            "--sharding full computes in bfloat16 or float32, and this GPU has float16 only; add --no-bf16 "
            "or leave --sharding out."
        )
    started = clock.elapsed_s
    backbone = load_for_fit(config, data.labels, dtype=dtype, dropout=config.hidden_dropout, device=device)
    # A format that was asked for stays.
    float32_instead = group.is_alone and recovery is not None and recovery.watched and not config.fp16
    load_s = clock.elapsed_s - started
    return Job(config, data, backbone, device, dtype, clock, load_s, group, float32_instead)


def _other_format(recovery: Recovery | None) -> dict[str, bool]:
    """What a process that goes on after another sets otherwise, of the settings of number formats."""
    if recovery is None:
        return {}
    if recovery.float32:
        return {"fp16": False, "bf16": False}
    return {"fp16": False} if recovery.caution >= ON_CPU else {}


def _check_sharding(config: FitConfig, group: Group) -> None:
    """What has not been made to work on weights that are divided.

    Raises:
        UserInputError: it is asked for.
    """
    if not group.sharded:
        return
    unfit = {
        f"method {config.method!r}": config.method not in SHARDED_METHODS,
        "load_in_4bit": config.load_in_4bit,
        "fp16": config.fp16,
        # Their frozen halves are kept by hooks on whole parameters.
        f"init_lora_weights={config.init_lora_weights!r}": config.init_lora_weights in UNFIT_STARTS,
        "long_texts='auto'": config.long_texts == "auto",
    }
    for what, asked in unfit.items():
        if asked:
            raise UserInputError(f"--sharding full does not go with {what}; leave one of the two out.")


def load_again(job: Job) -> PreTrainedModel:
    """The model as ``prepare`` loaded it, on the host."""
    torch.manual_seed(job.config.seed)
    return load_for_fit(
        job.config, job.data.labels, dtype=job.dtype, dropout=job.config.hidden_dropout, device=job.device
    ).model


def class_rows(job: Job) -> NDArray[np.int64]:
    """Training rows of each class, (K,)."""
    y = job.data.parts["train"].y
    return y.sum(axis=0) if y.ndim == 2 else np.bincount(y, minlength=len(job.data.labels.names))
