"""Short real passes over some of the texts: how fast this machine is, now. The quote is made from them.

The texts are read twice: as the frozen pass reads them, in micro-batches as large as they may be, and as
training does, a step's few examples at a time. With short texts a step is so small that what surrounds its
products counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from snugtune.config import FitConfig
from snugtune.data.batches import micro_batches
from snugtune.data.tokens import Tokens, choose_rows
from snugtune.memory.guard import Guard
from snugtune.memory.timing import PADDING
from snugtune.methods import METHODS
from snugtune.train.forward import INFERENCE_TOKENS, predict_logits

TRIAL_TOKENS = {"cpu": 4096, "cuda": 65_536}
"""Of the texts that are read: a second's work on two cores, and enough to keep a card busy."""

WARM_UP = 8
"""Share of them, as a divisor, read beforehand: what is set up at the first call is no part of the pace."""


def frozen_pass_s(
    model: nn.Module,
    tokens: Tokens,
    *,
    pad_token_id: int,
    device: torch.device,
    dtype: torch.dtype,
    guard: Guard,
    seed: int = 0,
) -> float:
    """Seconds that one frozen pass over all of ``tokens`` will take, by a pass over a few of them.

    Raises:
        RestartNeededError: not even a single text fits into memory.
    """
    chosen = some_rows(tokens.lengths, _trial_tokens(device), seed)

    def read(rows: NDArray[np.int64]) -> None:
        part = choose_rows([tokens], rows)
        predict_logits(model, part, pad_token_id=pad_token_id, device=device, dtype=dtype, guard=guard)

    seconds = _timed([chosen], read)
    budget = min(INFERENCE_TOKENS, guard.evaluation.tokens)
    read_positions = padded_positions(tokens.lengths[chosen], budget)
    return seconds / read_positions * PADDING * float(tokens.lengths.sum())


def stepwise_pass_s(
    model: nn.Module,
    tokens: Tokens,
    *,
    step_examples: int,
    pad_token_id: int,
    device: torch.device,
    dtype: torch.dtype,
    guard: Guard,
    seed: int = 0,
) -> float:
    """Seconds of a forward pass over ``tokens``, ``step_examples`` texts at a time, by some such steps.

    Each is cut as training cuts it.

    Raises:
        RestartNeededError: not even a single text fits into memory.
    """
    order = np.random.default_rng(seed).permutation(len(tokens.lengths))
    steps = np.array_split(order, np.arange(step_examples, len(order), step_examples))
    held = np.cumsum([tokens.lengths[rows].sum() for rows in steps])
    chosen = steps[: max(1, int(np.searchsorted(held, _trial_tokens(device), side="right")))]

    def read(rows: NDArray[np.int64]) -> None:
        for part in micro_batches(rows, tokens.lengths, guard.training.tokens):
            predict_logits(
                model, choose_rows([tokens], part), pad_token_id=pad_token_id, device=device, dtype=dtype,
                guard=guard,
            )  # fmt: skip

    seconds = _timed(chosen, read)
    return seconds * float(held[-1]) / float(held[len(chosen) - 1])


def _timed(parts: list[NDArray[np.int64]], read: Callable[[NDArray[np.int64]], None]) -> float:
    read(parts[0][: max(1, len(parts[0]) // WARM_UP)])
    started = time.perf_counter()
    for rows in parts:
        read(rows)
    return time.perf_counter() - started


def _trial_tokens(device: torch.device) -> int:
    return TRIAL_TOKENS.get(device.type, TRIAL_TOKENS["cpu"])


def training_passes(config: FitConfig, lengths: NDArray[np.int64], *, checkpointed: bool) -> float:
    """What training on texts of ``lengths`` takes, in frozen forward passes.

    Layers ``checkpointed`` are run once more, and virtual tokens are computed with each text.
    """
    longer = 1 + config.virtual_tokens * len(lengths) / max(1, int(lengths.sum()))
    return (METHODS[config.method].passes + checkpointed) * longer


def some_rows(lengths: NDArray[np.int64], most_tokens: int, seed: int) -> NDArray[np.int64]:
    """Rows drawn at random that hold about ``most_tokens``; at least one."""
    order = np.random.default_rng(seed).permutation(len(lengths))
    held = np.cumsum(lengths[order])
    return np.asarray(order[: max(1, int(np.searchsorted(held, most_tokens, side="right")))])


def padded_positions(lengths: NDArray[np.int64], budget: int) -> int:
    """What is computed of texts of these ``lengths`` in micro-batches of so many tokens, padding too."""
    cut = micro_batches(np.arange(len(lengths)), lengths, budget)
    return sum(len(rows) * int(lengths[rows].max()) for rows in cut)
