"""Contestants of the training-throughput benchmark: each can be given a turn on the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from snugtune.config import FitConfig
from snugtune.data.batches import micro_batches
from snugtune.train.forward import INFERENCE_TOKENS, predict_logits

from .common import best_time_s, synchronize
from .datasets import TokenData
from .ours import TimedSteps, train_ours, wrap_model
from .reference import StepCallback, make_trainer


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


class PaddingMeter:
    """Counts rows, real tokens and positions that pass through a model while it trains."""

    def __init__(self, model: nn.Module) -> None:
        self._seen: list[tuple[int, Tensor, int]] = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: nn.Module, _args: Any, inputs: dict[str, Any]) -> None:
        if model.training:
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


class Ours:
    """Our engine with its default settings, one epoch a turn."""

    def __init__(self, data: TokenData, config: FitConfig) -> None:
        self._data = data
        self._config = config.model_copy(update={"num_train_epochs": 1, "early_stopping_patience": None})
        self._model, self._head_names = wrap_model(data, config)
        self._meter = PaddingMeter(self._model)

    def turn(self) -> Turn:
        timed = TimedSteps(self._meter.clear)
        train_ours(self._data, self._model, self._head_names, self._config, timed)
        return self._meter.turn(timed.seconds)


class Recipe:
    """The Trainer's recipe, one epoch a turn."""

    def __init__(self, data: TokenData, padding: Any) -> None:
        self._callback = StepCallback()
        self._trainer = make_trainer(
            data.backbone.source,
            data.train,
            len(data.labels.names),
            dtype=data.dtype,
            device=data.device,
            padding=padding,
            max_length=data.backbone.max_length,
            callback=self._callback,
            num_train_epochs=1,
        )
        self._meter = PaddingMeter(self._trainer.model)

    def turn(self) -> Turn:
        self._trainer.train()
        return self._meter.turn(self._callback.ended_s - self._callback.began_s)


def forward_share(data: TokenData) -> dict[str, float]:
    """Our forward pass over the training rows against a bare loop over the same weight matrices.

    ``bound_s`` has nothing but the encoder's linear layers, on tensors of the same micro-batches: no
    attention, no norm, no activation. ``share`` is bound_s / forward_s.
    """
    model, tokens = data.backbone.model.eval(), data.train.tokens
    batches = micro_batches(np.arange(len(tokens)), tokens.lengths, INFERENCE_TOKENS)
    sizes = [len(rows) * int(tokens.lengths[rows].max()) for rows in batches]
    layers = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and ".layer." in name]
    inputs = {
        (n, layer.in_features): torch.randn(n, layer.in_features, device=data.device).to(layer.weight.dtype)
        for n in sizes
        for layer in layers
    }

    def bare() -> None:
        for n in sizes:
            for layer in layers:
                linear(inputs[n, layer.in_features], layer.weight, layer.bias)
        synchronize(data.device)

    def forward() -> None:
        predict_logits(
            model, tokens, pad_token_id=data.backbone.tokenizer.pad_token_id,
            device=data.device, dtype=data.dtype,
        )  # fmt: skip

    with torch.inference_mode():
        bound_s, forward_s = best_time_s(bare), best_time_s(forward)
    return {"forward_s": forward_s, "bound_s": bound_s, "share": bound_s / forward_s}
