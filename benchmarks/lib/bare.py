"""A bare training loop over our wrapped model: what is left when the engine takes nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from snugtune.config import FitConfig
from snugtune.data.batches import epoch_steps, micro_batches, packed_tokens, padded_tokens
from snugtune.model.packing import pack
from snugtune.train.forward import Inputs, autocast, classify, collate

from .common import synchronize
from .datasets import TokenData
from .ours import packs, wrap_model
from .speed import Turn


@dataclass(frozen=True)
class Batch:
    """A micro-batch that lies on the device."""

    inputs: Inputs
    target: Tensor


class BareLoop:
    """Forward, backward, clipping and fused AdamW on micro-batches that are on the device beforehand.

    Steps and micro-batches are cut as the engine cuts them, and packed where it would pack. The device is
    waited for once, at the end of a turn. Nothing is guarded, told, validated or kept.
    """

    def __init__(self, data: TokenData, config: FitConfig) -> None:
        self._data, self._config = data, config
        self._packed = packs(data.backbone.model.config, config, data.device, data.dtype)
        self._model, _ = wrap_model(data, config)
        self._model.train()
        self._trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=1e-4, weight_decay=0.0, fused=True)
        self._padded_tokens = 0
        self._steps = self._cut()

    def about(self) -> dict[str, Any]:
        """Whether texts are packed, and tokens of a micro-batch."""
        return {"packed": self._packed, "tokens_per_micro_batch": self._config.tokens_on_cpu}

    def turn(self, phase: str) -> Turn:
        """One epoch; there is no other phase."""
        if phase != "training":
            raise ValueError(f"a bare loop trains, it has no {phase}")
        synchronize(self._data.device)
        began = time.perf_counter()
        for step in self._steps:
            self._optimizer_step(step)
        synchronize(self._data.device)
        seconds = time.perf_counter() - began
        lengths = self._data.train.tokens.lengths
        return Turn(seconds, len(lengths), int(lengths.sum()), self._padded_tokens)

    def _optimizer_step(self, step: list[Batch]) -> None:
        examples = sum(len(batch.target) for batch in step)
        for batch in step:
            with autocast(self._data.device, self._data.dtype):
                logits = classify(self._model, batch.inputs)
            (cross_entropy(logits.float(), batch.target, reduction="sum") / examples).backward()
        clip_grad_norm_(self._trained, self._config.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _cut(self) -> list[list[Batch]]:
        lengths = self._data.train.tokens.lengths
        size = packed_tokens if self._packed else padded_tokens
        found = []
        for texts in epoch_steps(
            lengths, self._config.step_examples, np.random.default_rng(self._config.seed)
        ):
            parts = micro_batches(texts, lengths, self._config.tokens_on_cpu, packed=self._packed)
            self._padded_tokens += sum(size(part, lengths) for part in parts)
            found.append([self._batch(part) for part in parts])
        return found

    def _batch(self, rows: Any) -> Batch:
        data = self._data
        target = torch.from_numpy(data.train.y[rows]).to(data.device)
        if not self._packed:
            pad = data.backbone.tokenizer.pad_token_id
            return Batch(collate(data.train.tokens, rows, pad, data.device), target)
        texts = pack([data.train.tokens.ids[i] for i in rows], self._model)
        return Batch(texts.to(lambda tensor: tensor.to(data.device)), target)
