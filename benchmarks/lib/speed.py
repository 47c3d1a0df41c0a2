"""Contestants of the speed benchmarks: each can be given a turn at training, evaluating, predicting."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from snugtune.config import FitConfig
from snugtune.memory.plan import Plan
from snugtune.model.backbone import resolve
from snugtune.model.checkpointing import checkpoint_layers
from snugtune.model.head import find_head
from snugtune.model.offload import embedding_to_host
from snugtune.model.packing import plain
from snugtune.train.forward import predict_logits

from .common import synchronize
from .datasets import TokenData
from .ours import TimedSteps, train_ours, wrap_model
from .reference import SETTINGS, Padding, Rows, StepCallback, make_trainer

PHASES = ("training", "evaluation", "prediction")


@dataclass(frozen=True)
class Turn:
    """One pass over the rows."""

    seconds: float
    examples: int
    real_tokens: int
    padded_tokens: int

    @property
    def tokens_per_s(self) -> float:
        return self.real_tokens / self.seconds

    @property
    def examples_per_s(self) -> float:
        return self.examples / self.seconds

    @property
    def padding_waste(self) -> float:
        """Share of the positions computed that are padding."""
        return 1 - self.real_tokens / self.padded_tokens


class Contestant(Protocol):
    """Does each of ``PHASES`` once over the same rows."""

    def turn(self, phase: str) -> Turn:
        """One pass."""

    def about(self) -> dict[str, Any]:
        """How it was done, as far as that is not in its name."""


class PaddingMeter:
    """Counts rows, real tokens and positions that pass through a model.

    While ``training`` is set it counts only what passes through in training mode, so that the looks at
    validation rows in between do not count.
    """

    def __init__(self, model: nn.Module) -> None:
        self.training = True
        self._seen: list[tuple[int, Tensor | int, int]] = []
        # Packed texts go to the backbone at once.
        plain(model).base_model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, backbone: nn.Module, _args: Any, inputs: dict[str, Any]) -> None:
        if self.training and not backbone.training:
            return
        if "cu_seq_lens_k" in inputs:
            tokens = inputs["input_ids"].numel()
            self._seen.append((len(inputs["cu_seq_lens_k"]) - 1, tokens, tokens))
        else:
            mask = inputs["attention_mask"]
            self._seen.append((len(mask), mask.sum(), mask.numel()))

    def clear(self) -> None:
        """Forget what was seen."""
        self._seen.clear()

    def turn(self, seconds: float) -> Turn:
        """What was seen since the last call, as a turn of ``seconds``."""
        rows, real, padded = (sum(int(row[i]) for row in self._seen) for i in range(3))
        self.clear()
        return Turn(seconds, rows, real, padded)


def timed(meter: PaddingMeter, work: Callable[[], Any], device: torch.device) -> Turn:
    """``work`` without training, as a turn."""
    meter.training = False
    meter.clear()
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    seconds = time.perf_counter() - began
    meter.training = True
    return meter.turn(seconds)


class Ours:
    """Our engine and predictor; ``config`` has their settings, a ``plan`` micro-batches and levers.

    Prediction takes the merged model in ``predict_dtype``, as ``snugtune predict --dtype`` does.
    """

    def __init__(
        self,
        data: TokenData,
        config: FitConfig,
        predict_dtype: torch.dtype = torch.float32,
        plan: Plan | None = None,
    ) -> None:
        self._data, self._predict_dtype = data, predict_dtype
        update: dict[str, Any] = {"num_train_epochs": 1, "early_stopping_patience": None}
        if plan is not None:
            update["tokens_per_micro_batch"] = plan.tokens_per_micro_batch
        self._config = config.model_copy(update=update)
        if plan is not None and plan.setup.embedding_on_host:
            embedding_to_host(data.backbone.model)
        self._model, self._head_names = wrap_model(data, config)
        if plan is not None:
            checkpoint_layers(self._model, plan.setup.activation_checkpointing)
        self._meter = PaddingMeter(self._model)
        self._levers = () if plan is None else plan.levers
        self._packed: bool | None = None

    def about(self) -> dict[str, Any]:
        """How it trained: whether texts were packed, tokens of a micro-batch, the plan's levers."""
        return {
            "packed": self._packed,
            "tokens_per_micro_batch": self._config.tokens_per_micro_batch,
            "levers": list(self._levers),
        }

    def turn(self, phase: str) -> Turn:
        return {"training": self._train, "evaluation": self._evaluate, "prediction": self._predict}[phase]()

    def _train(self) -> Turn:
        taken = TimedSteps(self._meter.clear)
        result = train_ours(self._data, self._model, self._head_names, self._config, taken)
        self._packed = result.packed
        return self._meter.turn(taken.seconds)

    def _evaluate(self) -> Turn:
        return self._forward(self._model, self._meter, self._data.dtype)

    def _predict(self) -> Turn:
        with merged(self._model, self._predict_dtype) as model:
            return self._forward(model, PaddingMeter(model), torch.float32)

    def _forward(self, model: nn.Module, meter: PaddingMeter, dtype: torch.dtype) -> Turn:
        data = self._data

        def run() -> None:
            predict_logits(
                model, data.train.tokens, pad_token_id=data.backbone.tokenizer.pad_token_id,
                device=data.device, dtype=dtype,
            )  # fmt: skip

        return timed(meter, run, data.device)


@contextmanager
def merged(model: nn.Module, dtype: torch.dtype) -> Iterator[nn.Module]:
    """A copy of an adapted model with the adapter merged, as the predictor loads a finished run."""
    made: Any = copy.deepcopy(model).cpu()
    plain = made.merge_and_unload().to(dtype)
    final = find_head(plain).final.float()
    final.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(),))
    yield plain.to(next(model.parameters()).device).eval()


class Recipe:
    """The Trainer's recipe; ``overrides`` are of its settings.

    It trains the model as published. Evaluation is the Trainer's own; prediction is a loop over batches of
    the evaluation's size, in float32, without the Trainer.
    """

    def __init__(self, data: TokenData, config: FitConfig, padding: Padding, **overrides: Any) -> None:
        self._data = data
        self._callback = StepCallback()
        self._trainer = make_trainer(
            resolve(config.model),
            data.train,
            len(data.labels.names),
            dtype=data.dtype,
            device=data.device,
            padding=padding,
            max_length=data.backbone.max_length,
            callback=self._callback,
            num_train_epochs=1,
            **overrides,
        )
        self._meter = PaddingMeter(self._trainer.model)
        self._batch_size = (SETTINGS | overrides)["per_device_eval_batch_size"]

    def about(self) -> dict[str, Any]:
        """Nothing that its name does not say."""
        return {}

    def turn(self, phase: str) -> Turn:
        return {"training": self._train, "evaluation": self._evaluate, "prediction": self._predict}[phase]()

    def _train(self) -> Turn:
        self._meter.clear()
        self._trainer.train()
        return self._meter.turn(self._callback.ended_s - self._callback.began_s)

    def _evaluate(self) -> Turn:
        rows = Rows(self._data.train)
        return timed(self._meter, lambda: self._trainer.predict(rows), self._data.device)

    @torch.no_grad()
    def _predict(self) -> Turn:
        model, device = self._trainer.model.eval(), self._data.device
        rows = DataLoader(Rows(self._data.train), self._batch_size, collate_fn=self._trainer.data_collator)

        def run() -> None:
            for batch in rows:
                model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits.argmax(1).cpu()

        return timed(self._meter, run, device)
