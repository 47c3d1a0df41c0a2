"""Running a model over token ids in micro-batches, without gradients: features and logits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snugtune.data.batches import micro_batches, one_length_batches, packed_tokens, padded_tokens
from snugtune.data.tokens import Tokens
from snugtune.memory.guard import EVALUATION, Guard, device_memory
from snugtune.model.adapter import virtual_tokens
from snugtune.model.head import pooled_positions
from snugtune.model.packing import PackedTexts, pack, packed_logits, packs_on_cpu, row_size
from snugtune.model.sharding import is_sharded
from snugtune.train.group import ALONE, Group
from snugtune.train.readback import to_device

INFERENCE_TOKENS = 8192
"""Padded tokens per micro-batch without gradients: past it, two CPU cores gain nothing more."""

PACKED_TOKENS = 4096
"""Tokens per row of packed texts on a CPU: in float32 faster than 8,192, in bfloat16 as fast."""

MAX_PADDING = 128
"""Most tokens of padding in a micro-batch without gradients on a CPU, where they cost more than the few
milliseconds of one more micro-batch; a GPU would rather compute them."""


Inputs = dict[str, Tensor] | PackedTexts
"""A micro-batch as a model takes it: padded, or texts in one row."""

Around = Callable[[NDArray[np.int64]], AbstractContextManager[Any]]


def collate(
    tokens: Tokens, indices: NDArray[np.int64], pad_token_id: int, device: torch.device
) -> dict[str, Tensor]:
    """Some rows of ids as right-padded ``input_ids`` and ``attention_mask``, both (batch, longest).

    Where no text has a token, that is one column of padding.
    """
    lengths = tokens.lengths[indices]
    # Of an empty text, tokenizers without special tokens make no token; a model reads one at least.
    real = np.arange(max(1, int(lengths.max()))) < lengths[:, None]
    input_ids = np.full(real.shape, pad_token_id, dtype=np.int64)
    input_ids[real] = np.concatenate([tokens.ids[i] for i in indices])
    both = to_device(torch.from_numpy(np.stack([input_ids, real])), device)
    return {"input_ids": both[0], "attention_mask": both[1]}


def rows_to_pack(tokens: Tokens, indices: NDArray[np.int64], pad_token_id: int) -> list[NDArray[np.int32]]:
    """Ids of some rows; an empty text is a token of padding, as in ``collate``."""
    nothing = np.array([pad_token_id], dtype=np.int32)
    return [tokens.ids[i] if len(tokens.ids[i]) else nothing for i in indices]


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
    guard: Guard | None = None,
    around: Around | None = None,
    group: Group = ALONE,
) -> NDArray[np.float32]:
    """Logits (N, K) of the texts of ``tokens`` in their order, at most ``max_examples`` rows at a time.

    A text read in windows has the mean of theirs: the logarithmic pool of what each window says, with equal
    weights. Each process of the ``group`` computes a share of the rows, and all get the logits of all.

    Each micro-batch passes inside the context that ``around`` makes of its row numbers.

    Raises:
        RestartNeededError: not even a single text fits into memory.
    """
    max_padding = MAX_PADDING if device.type == "cpu" else None
    # What goes on around a batch may look for its rows in it.
    packed = around is None and _packs(model, device)

    def cut(rows: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
        if packed:
            return micro_batches(rows, tokens.lengths, budget, max_examples, packed=True)
        lengths = tokens.lengths + virtual_tokens(model)
        return micro_batches(rows, lengths, budget, max_examples, max_padding)

    found = _map_rows(
        model, partial(classify, model), tokens, cut, pad_token_id, device, dtype, on_rows, packed=packed,
        guard=guard, around=around, group=group,
    )  # fmt: skip
    return tokens.pooled(found)


def classify(model: nn.Module, inputs: Inputs) -> Tensor:
    """Logits (B, K) of a micro-batch."""
    if isinstance(inputs, PackedTexts):
        return packed_logits(model, inputs)
    logits: Tensor = model(**inputs).logits
    return logits


def layer_inputs(
    model: nn.Module,
    layer: nn.Module,
    tokens: Tokens,
    *,
    pad_token_id: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    on_rows: Callable[[int], None] | None = None,
    guard: Guard | None = None,
    group: Group = ALONE,
) -> NDArray[np.float32]:
    """What ``layer`` of the frozen model is given for each row: (R, H), in the order of ``tokens``.

    A layer that sees every position (a decoder's ``score``) is read where the model's own head reads it.
    On a CPU texts are packed, or only those of one length share a micro-batch: what a text gives depends on
    the others by no more than rounding. A GPU chooses its kernels by the size of a batch, so small ones would
    cost time and bring nothing.

    Each process of the ``group`` reads a share of the rows, and all get what all have read.
    """
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))

    packed = _packs(model, device)

    def features(inputs: Inputs) -> Tensor:
        seen.clear()
        try:
            classify(model, inputs)
        finally:
            # Kept, it would be held through a failure and its recovery.
            hidden = seen.pop() if seen else None
        assert hidden is not None
        if hidden.dim() == 2:
            return hidden
        if isinstance(inputs, PackedTexts):
            return hidden[:, 0]
        read = pooled_positions(inputs["input_ids"], pad_token_id)
        return hidden[torch.arange(len(hidden), device=device), read]

    def cut(rows: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
        if packed:
            return micro_batches(rows, tokens.lengths, budget, packed=True)
        if device.type == "cpu":
            return one_length_batches(rows, tokens.lengths, budget)
        return micro_batches(rows, tokens.lengths, budget)

    try:
        return _map_rows(
            model, features, tokens, cut, pad_token_id, device, dtype, on_rows, packed=packed, guard=guard,
            group=group,
        )  # fmt: skip
    finally:
        hook.remove()


def pass_rows(
    model: nn.Module,
    tokens: Tokens,
    *,
    around: Around,
    enough: Callable[[], bool],
    stop: type[Exception],
    pad_token_id: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    guard: Guard | None = None,
) -> None:
    """Let every row of ``tokens`` pass through ``model`` as far as what watches it wants, texts of one length
    together, for the sake of what that keeps.

    The watcher ends a pass by raising ``stop``; once it has ``enough``, no more rows pass.
    """

    def watched(batch: Inputs) -> Tensor:
        assert isinstance(batch, dict)
        if not enough():
            with suppress(stop):
                model(**batch)
        return torch.zeros(len(batch["input_ids"]), 1)

    def cut(rows: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
        return one_length_batches(rows, tokens.lengths, budget)

    _map_rows(
        model, watched, tokens, cut, pad_token_id, device, dtype, None, guard=guard, around=around
    )  # fmt: skip


def _map_rows(
    model: nn.Module,
    function: Callable[[Inputs], Tensor],
    tokens: Tokens,
    cut: Callable[[NDArray[np.int64], int], list[NDArray[np.int64]]],
    pad_token_id: int,
    device: torch.device,
    dtype: torch.dtype,
    on_rows: Callable[[int], None] | None,
    *,
    packed: bool = False,
    guard: Guard | None,
    around: Around | None = None,
    group: Group = ALONE,
) -> NDArray[np.float32]:
    guard = guard or Guard(device_memory(device))
    lengths = tokens.lengths + virtual_tokens(model)
    # By length in turn, so that all processes have as much to do.
    own = np.argsort(lengths, kind="stable")[group.rank :: group.size] if group.size > 1 else None
    most = PACKED_TOKENS if packed else INFERENCE_TOKENS
    parts = cut(np.arange(tokens.rows) if own is None else own, min(most, guard.evaluation.tokens))
    # Asked before the first pass: in the middle of them the others are waiting for layers.
    passes = group.most(len(parts)) if group.sharded else len(parts)
    found: list[NDArray[np.float32]] = []

    def inputs(indices: NDArray[np.int64]) -> Inputs:
        if not packed:
            return collate(tokens, indices, pad_token_id, device)
        size = row_size(packed_tokens(indices, tokens.lengths)) if in_bfloat16 else 0
        return pack(rows_to_pack(tokens, indices, pad_token_id), model, size)

    in_bfloat16 = torch.bfloat16 in (dtype, next((p.dtype for p in model.parameters()), None))

    def compute(indices: NDArray[np.int64]) -> NDArray[np.float32]:
        with around(indices) if around else nullcontext():
            values: NDArray[np.float32] = function(inputs(indices)).float().cpu().numpy()
        return values

    def run(indices: NDArray[np.int64]) -> None:
        values = compute(indices)
        if not found:
            # Zeros, for the other processes' rows are added to them.
            found.append(np.zeros((tokens.rows, values.shape[1]), dtype=np.float32))
        found[0][indices] = values
        if on_rows:
            on_rows(len(indices))

    was_training = model.training
    model.eval()
    try:
        with _without_gradients(model), autocast(device, dtype):
            # The longest first: what can fail fails in the first seconds.
            size = packed_tokens if packed else padded_tokens
            guard.each(parts[::-1], lengths, run, guard.evaluation, during=EVALUATION, size=size)
            # A layer is whole only while all processes ask for it.
            for _ in range(passes - len(parts)):
                compute(np.argmin(lengths).reshape(1))
    finally:
        model.train(was_training)
    return _of_all(found, tokens.rows, group, on_rows)


def _packs(model: nn.Module, device: torch.device) -> bool:
    return device.type == "cpu" and packs_on_cpu(model)


def _without_gradients(model: nn.Module) -> AbstractContextManager[Any]:
    # Weights that are gathered in inference mode could not be trained with afterwards.
    return torch.no_grad() if is_sharded(model) else torch.inference_mode()


def _of_all(
    found: list[NDArray[np.float32]], rows: int, group: Group, on_rows: Callable[[int], None] | None
) -> NDArray[np.float32]:
    """The rows (R, H) that the processes found, each its own."""
    width = group.most(found[0].shape[1] if found else 0)
    values = found[0] if found else np.zeros((rows if width else 0, width), dtype=np.float32)
    if not group.is_alone:
        group.add_up(torch.from_numpy(values))
        if on_rows:
            on_rows(rows - len(range(group.rank, rows, group.size)))
    return values
