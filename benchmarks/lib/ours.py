"""Our side of the benchmarks, from the package's own public parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snugtune.config import FitConfig, make_config
from snugtune.data.batches import steps_per_epoch
from snugtune.data.labels import LabelSet
from snugtune.files import write_json
from snugtune.model.adapter import on_trained, wrap
from snugtune.model.artifact import save_model
from snugtune.model.backbone import load_backbone
from snugtune.model.head import find_head
from snugtune.model.packing import is_packable, kernel_takes
from snugtune.progress import Observer, StepInfo, ValidationInfo
from snugtune.train import probe
from snugtune.train.checkpoints import Checkpoints
from snugtune.train.engine import Services, TrainResult, train
from snugtune.train.forward import layer_inputs
from snugtune.train.prefix import Prefix

from .datasets import TokenData
from .reference import TargetReachedError

Features = tuple[Any, ...]
State = dict[str, torch.Tensor]


def start_from_probe(data: TokenData, config: FitConfig, features: Features | None = None) -> State:
    """The probe, written into the head, on ``features`` or those of a new pass of the frozen model.

    Returns what training begins from.
    """
    model, part, validation = data.backbone.model, data.train, data.validation
    head = find_head(model, config.modules_to_save)
    of_train, held_out = features or frozen_features(data, config)
    chooser = probe.HeldOut(held_out, validation.y)
    return probe.start_from_probe(model, head, of_train, part.y, len(data.labels.names), chooser)


def frozen_features(data: TokenData, config: FitConfig) -> Features:
    """What the frozen model says of training and validation rows; nothing is taken from a cache."""
    model = data.backbone.model
    layer = find_head(model, config.modules_to_save).feature_layer
    return tuple(
        layer_inputs(
            model,
            layer,
            part.tokens,
            pad_token_id=data.backbone.tokenizer.pad_token_id,
            device=data.device,
            dtype=data.dtype,
        )
        for part in (data.train, data.validation)
    )


def wrap_model(data: TokenData, config: FitConfig) -> tuple[nn.Module, tuple[str, ...]]:
    """The trainable model on its device, and the names of its head's modules."""
    head_names = find_head(data.backbone.model, config.modules_to_save).modules_to_save
    return wrap(data.backbone.model.to(data.device), config), head_names


def train_ours(
    data: TokenData,
    model: nn.Module,
    head_names: tuple[str, ...],
    config: FitConfig,
    observer: Observer | None = None,
    begin_from: dict[str, torch.Tensor] | None = None,
    prefix: Prefix | None = None,
    checkpoints: Checkpoints | None = None,
) -> TrainResult:
    """The engine on ``model``, with the rows of ``data``."""
    return train(
        model,
        data.train,
        data.validation,
        config,
        head_names=head_names,
        pad_token_id=data.backbone.tokenizer.pad_token_id,
        dtype=data.dtype,
        device=data.device,
        begin_from=on_trained(model, begin_from or {}),
        services=Services(observer or Observer(), prefix=prefix, checkpoints=checkpoints),
        packed=packs(data.backbone.model.config, config, data.device, data.dtype),
    )


def packs(shape: Any, config: FitConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a fit of a model of this ``shape`` would pack its texts (``snugtune/memory/plan.py``)."""
    if config.packing == "off" or config.virtual_tokens or dtype == torch.float32 or device.type != "cuda":
        return False
    has_kernel = torch.cuda.get_device_capability(device) >= (8, 0) and kernel_takes(shape)
    return has_kernel and is_packable(shape)


class Looker(Observer):
    """Looks at the model every ``look_every`` steps and takes the engine's own validation off the clock.

    The engine tells of a validation when it is over, so what lies between the step before and that
    moment is what it took.
    """

    def __init__(
        self, clock: Any, look: Callable[[int], bool], look_every: int, per_epoch: int, on_step: Any
    ) -> None:
        self._clock, self._look, self._every, self._per_epoch = clock, look, look_every, per_epoch
        self._on_step = on_step
        self._mark_s = clock.work_s
        self._seen = -1

    def on_step(self, info: StepInfo) -> None:
        over = self._on_step()
        if over or (info.step % self._every == 0 and info.step % self._per_epoch):
            self._look_at(info.step)
        if over:
            raise TargetReachedError
        self._mark_s = self._clock.work_s

    def on_validation(self, info: ValidationInfo) -> None:
        self._clock.take_back(self._clock.work_s - self._mark_s)
        self._look_at(info.step)
        self._mark_s = self._clock.work_s

    def _look_at(self, step: int) -> None:
        if step != self._seen and self._look(step):
            raise TargetReachedError
        self._seen = step


def fit_until(
    data: TokenData,
    config: FitConfig,
    clock: Any,
    look: Callable[[nn.Module, int], bool],
    *,
    look_every: int,
    on_step: Callable[[], bool],
) -> None:
    """From token ids: frozen pass, probe, training, until ``look`` or ``on_step`` says to stop."""
    data.backbone.model.to(data.device)
    begin_from = start_from_probe(data, config) if config.probe_start else {}
    model, head_names = wrap_model(data, config)
    per_epoch = steps_per_epoch(len(data.train.y), config.step_examples)
    observer = Looker(clock, lambda step: look(model, step), look_every, per_epoch, on_step)
    try:
        train_ours(data, model, head_names, config, observer, begin_from)
    except TargetReachedError:
        return


class TimedSteps(Observer):
    """Seconds from the end of the first validation to the last step: training alone.

    ``on_begin`` is called at that beginning; what the engine tried before does not count. What it does
    between that moment and the first step (the weights to begin from, a state to go back to) does, once for
    all rows of a turn: a second and more of training makes it small.
    """

    def __init__(self, on_begin: Callable[[], None] = lambda: None) -> None:
        self._on_begin = on_begin
        self._began_s = self._ended_s = 0.0

    def on_validation(self, info: ValidationInfo) -> None:
        if info.step == 0:
            self._on_begin()
            self._began_s = time.perf_counter()

    def on_step(self, info: StepInfo) -> None:
        if info.step == info.steps and torch.cuda.is_available():
            torch.cuda.synchronize()  # the last step has ended when the card has done it
        self._ended_s = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._ended_s - self._began_s


def write_untrained_run(folder: Path, n_classes: int, model: str = "minilm") -> Path:
    """A run folder whose head is as loaded: prediction takes as long as with a trained one."""
    torch.manual_seed(0)
    labels = LabelSet(tuple(f"class {i}" for i in range(n_classes)))
    backbone = load_backbone(model, labels)
    save_model(backbone.model, backbone.tokenizer, folder / "model", backbone.max_length)
    record = _record(labels, backbone.max_length, "model")
    write_json(folder / "run.json", record)
    return folder


def write_untrained_adapter_run(folder: Path, n_classes: int, model: str, seed: int) -> Path:
    """A run folder with a LoRA of the default settings, drawn at random, as `snugtune fit` would leave it."""
    torch.manual_seed(seed)
    labels = LabelSet(tuple(f"class {i}" for i in range(n_classes)))
    backbone = load_backbone(model, labels)
    adapted = wrap(backbone.model, make_config({"train": "none.csv", "model": model}))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    save_model(adapted, backbone.tokenizer, folder / "adapter", backbone.max_length)
    record = _record(labels, backbone.max_length, "adapter")
    write_json(folder / "run.json", record)
    return folder


def _record(labels: LabelSet, max_length: int, folder: str) -> dict[str, Any]:
    return {
        "labels": list(labels.names),
        "label_aliases": {},
        "columns": {"text": ["text"], "label": "label"},
        "model": {"folder": folder, "max_length": max_length},
        "decision": {"mixture": {}, "confidence_threshold": 0.5, "precision_target": 0.95},
    }
