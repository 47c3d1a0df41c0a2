"""Running a model over token ids in micro-batches, without gradients: features and logits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snugtune.data.batches import micro_batches
from snugtune.data.tokens import Tokens

INFERENCE_TOKENS = 8192
"""Padded tokens per micro-batch without gradients: past it, two CPU cores gain nothing more."""


def collate(
    tokens: Tokens, indices: NDArray[np.int64], pad_token_id: int, device: torch.device
) -> dict[str, Tensor]:
    """Rows of ids as right-padded ``input_ids`` and ``attention_mask``, both (batch, longest)."""
    longest = int(tokens.lengths[indices].max())
    input_ids = np.full((len(indices), longest), pad_token_id, dtype=np.int64)
    mask = np.zeros((len(indices), longest), dtype=np.int64)
    for row, i in enumerate(indices):
        length = tokens.lengths[i]
        input_ids[row, :length] = tokens.ids[i]
        mask[row, :length] = 1
    return {
        "input_ids": torch.from_numpy(input_ids).to(device, non_blocking=True),
        "attention_mask": torch.from_numpy(mask).to(device, non_blocking=True),
    }


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Mixed precision in ``dtype``, or nothing for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def predict_logits(
    model: nn.Module,
    tokens: Tokens,
    *,
    pad_token_id: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    on_rows: Callable[[int], None] | None = None,
    max_examples: int | None = None,
) -> NDArray[np.float32]:
    """Logits (N, K) in the order of ``tokens``, at most ``max_examples`` texts at a time."""

    def logits(batch: dict[str, Tensor]) -> Tensor:
        out: Tensor = model(**batch).logits
        return out

    return _map_rows(model, logits, tokens, pad_token_id, device, dtype, on_rows, max_examples)


def layer_inputs(
    model: nn.Module,
    layer: nn.Module,
    tokens: Tokens,
    *,
    pad_token_id: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    on_rows: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """What ``layer`` of the frozen model is given for each text: (N, H), in the order of ``tokens``.

    A layer that sees every position (a decoder's ``score``) is read at the last real one.
    """
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))

    def features(batch: dict[str, Tensor]) -> Tensor:
        seen.clear()
        model(**batch)
        hidden = seen[0]
        if hidden.dim() == 2:
            return hidden
        last = batch["attention_mask"].sum(1) - 1
        return hidden[torch.arange(len(hidden), device=device), last]

    try:
        return _map_rows(model, features, tokens, pad_token_id, device, dtype, on_rows)
    finally:
        hook.remove()


def _map_rows(
    model: nn.Module,
    function: Callable[[dict[str, Tensor]], Tensor],
    tokens: Tokens,
    pad_token_id: int,
    device: torch.device,
    dtype: torch.dtype,
    on_rows: Callable[[int], None] | None,
    max_examples: int | None = None,
) -> NDArray[np.float32]:
    was_training = model.training
    model.eval()
    out: NDArray[np.float32] | None = None
    with torch.inference_mode(), autocast(device, dtype):
        for indices in micro_batches(np.arange(len(tokens)), tokens.lengths, INFERENCE_TOKENS, max_examples):
            values = function(collate(tokens, indices, pad_token_id, device)).float().cpu().numpy()
            if out is None:
                out = np.empty((len(tokens), values.shape[1]), dtype=np.float32)
            out[indices] = values
            if on_rows:
                on_rows(len(indices))
    model.train(was_training)
    return out if out is not None else np.empty((0, 0), dtype=np.float32)
