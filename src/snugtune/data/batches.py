"""Which examples make an optimiser step, and how a step is cut into micro-batches.

The first decides the result, the second only memory and speed: they are separate functions, and the second
never looks at anything but lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

STEPS_PER_POOL = 16
"""Steps whose examples are sorted by length together: enough that each step's texts are of like length."""


def epoch_steps(
    lengths: NDArray[np.int64],
    step_examples: int,
    rng: np.random.Generator,
    probabilities: NDArray[np.float64] | None = None,
) -> Iterator[NDArray[np.int64]]:
    """One epoch as optimiser steps of ``step_examples`` indices each (the last may hold fewer).

    The examples are shuffled (or, with ``probabilities`` (N,), as many are drawn by them), cut into pools,
    sorted by length inside each pool and sliced into steps; the steps are then shuffled, so that length does
    not rise through a pool.
    """
    order = rng.permutation(len(lengths)) if probabilities is None else drawn(probabilities, rng)
    pool_size = step_examples * STEPS_PER_POOL
    steps: list[NDArray[np.int64]] = []
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        steps += [pool[i : i + step_examples] for i in range(0, len(pool), step_examples)]
    for i in rng.permutation(len(steps)):
        yield steps[i]


def shares(indices: NDArray[np.int64], lengths: NDArray[np.int64], processes: int) -> list[NDArray[np.int64]]:
    """Deal a step's ``indices`` out to so many ``processes``: each gets texts of like length, and about as
    many tokens as the others. With fewer texts than processes, some get none.

    It looks at lengths only, never at what a process has room for, so all of them deal alike.
    """
    ordered = indices[np.argsort(lengths[indices], kind="stable")]
    ends = np.cumsum(lengths[ordered])
    total = ends[-1] if len(ends) else 0
    # A text belongs to the process in whose equal part of all tokens its middle lies.
    middles = ends - lengths[ordered] / 2
    owners = np.minimum((middles * processes / max(total, 1)).astype(np.int64), processes - 1)
    return [ordered[owners == process] for process in range(processes)]


def one_length_batches(
    indices: NDArray[np.int64], lengths: NDArray[np.int64], tokens_per_micro_batch: int
) -> list[NDArray[np.int64]]:
    """``indices`` as micro-batches of texts of one length each, the shortest first: nothing is padded."""
    rows = indices[np.argsort(lengths[indices], kind="stable")]
    ends = np.flatnonzero(np.diff(lengths[rows])) + 1
    alike = np.split(rows, ends) if len(rows) else []
    return [part for same in alike for part in micro_batches(same, lengths, tokens_per_micro_batch)]


def drawn(probabilities: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """N of N examples, some more than once: each with its share ``probabilities`` (N,), in random order.

    Systematic sampling: an example expected ``e`` times comes ``floor(e)`` or ``ceil(e)`` times, so that none
    is left out by chance that was expected once.
    """
    order = rng.permutation(len(probabilities))
    expected = np.cumsum(probabilities[order]) * len(order)
    points = np.arange(len(order)) + rng.random()
    places = np.minimum(np.searchsorted(expected, points, side="right"), len(order) - 1)
    return rng.permutation(order[places])


def steps_per_epoch(n: int, step_examples: int) -> int:
    """How many steps ``epoch_steps`` yields for ``n`` examples."""
    full_pools, rest = divmod(n, step_examples * STEPS_PER_POOL)
    return full_pools * STEPS_PER_POOL + math.ceil(rest / step_examples)


Size = Callable[[NDArray[np.int64], NDArray[np.int64]], int]
"""Tokens that a micro-batch (indices) takes, given the lengths of all texts."""


def padded_tokens(part: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
    """With every text padded to the longest."""
    return len(part) * int(lengths[part].max())


def packed_tokens(part: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
    """With one text behind the other."""
    return int(lengths[part].sum())


def micro_batches(
    indices: NDArray[np.int64],
    lengths: NDArray[np.int64],
    tokens_per_micro_batch: int,
    max_examples: int | None = None,
    max_padding: int | None = None,
    *,
    packed: bool = False,
) -> list[NDArray[np.int64]]:
    """Cut ``indices`` into micro-batches whose padded (or ``packed``) size stays within the token budget.

    Sorted by length, so that padding is small; a single text longer than the budget goes alone. With
    ``max_padding`` a micro-batch has at most so many tokens of it: few texts of many lengths fit into one
    budget, and more than half of it may be padding.
    """
    ordered = indices[np.argsort(lengths[indices], kind="stable")]
    batches: list[NDArray[np.int64]] = []
    start = real = 0
    for stop, longest in enumerate(lengths[ordered].tolist(), 1):
        count, real = stop - start, real + longest
        padded = count * longest
        too_many = max_examples is not None and count > max_examples
        too_wide = max_padding is not None and padded - real > max_padding
        tokens = real if packed else padded
        if count > 1 and (too_many or too_wide or tokens > tokens_per_micro_batch):
            batches.append(ordered[start : stop - 1])
            start, real = stop - 1, longest
    if start < len(ordered):
        batches.append(ordered[start:])
    return batches
