"""What an epoch computes: its micro-batches, cut from the real lengths of the texts as training cuts them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snugtune.data.batches import STEPS_PER_POOL, epoch_steps, micro_batches, shares

SAMPLE_ROWS = 8192
"""Texts whose micro-batches stand for those of all."""


@dataclass(frozen=True)
class Epoch:
    """The micro-batches of an epoch, in ``steps`` optimiser steps on so many ``devices``.

    ``tokens`` (M,) are what is computed of each micro-batch, the padding with them; ``pairs`` (M,) the sum of
    its texts' squared lengths (padded ones), which attention computes; ``texts`` (M,) how many it has;
    ``place`` (M,) tells step and device: ``devices * step + device``. ``scale`` is the whole epoch over the
    sample that was cut.
    """

    tokens: NDArray[np.float64]
    pairs: NDArray[np.float64]
    texts: NDArray[np.int64]
    place: NDArray[np.int64]
    steps: int
    devices: int
    scale: float

    def of_slowest(self, values: NDArray[np.float64]) -> float:
        """``values`` (M,) added up over the epoch, in each step those of the device that has most."""
        each = np.bincount(self.place, values, self.steps * self.devices)
        return self.scale * float(each.reshape(self.steps, self.devices).max(axis=1).sum())

    @property
    def passes(self) -> float:
        """Micro-batches of the device that has most in each step, added up over the epoch."""
        return self.of_slowest(np.ones(len(self.tokens)))


def cut_epoch(
    lengths: NDArray[np.int64],
    *,
    step_examples: int,
    tokens_per_micro_batch: int,
    max_examples: int | None = None,
    packed: bool = False,
    devices: int = 1,
) -> Epoch:
    """An epoch over texts of ``lengths`` (R,), or over a sample of whole pools of steps, put to scale.

    Args:
        lengths: of the texts, as they are cut, with virtual tokens.
        step_examples: of one optimiser step.
        tokens_per_micro_batch: the most of a micro-batch, padding with them unless texts are ``packed``.
        max_examples: the most texts of a micro-batch.
        packed: texts lie one behind the other, without padding.
        devices: that share each step.
    """
    rng = np.random.default_rng(0)
    pool = step_examples * STEPS_PER_POOL
    most = max(1, SAMPLE_ROWS // pool) * pool
    sample = lengths if len(lengths) <= most else lengths[rng.permutation(len(lengths))[:most]]
    found: list[tuple[int, int, int, int]] = []
    steps = 0
    for step in epoch_steps(sample, step_examples, rng):
        for device, share in enumerate(shares(step, sample, devices) if devices > 1 else [step]):
            parts = micro_batches(share, sample, tokens_per_micro_batch, max_examples, packed=packed)
            found += [
                (*_computed(sample[part], packed), len(part), devices * steps + device) for part in parts
            ]
        steps += 1
    tokens, pairs, texts, place = np.array(found, dtype=np.int64).reshape(-1, 4).T
    scale = len(lengths) / max(len(sample), 1)
    return Epoch(tokens.astype(float), pairs.astype(float), texts, place, steps, devices, scale)


def _computed(lengths: NDArray[np.int64], packed: bool) -> tuple[int, int]:
    """Tokens and pairs that are computed of one micro-batch."""
    if packed:
        return int(lengths.sum()), int((lengths**2).sum())
    longest = int(lengths.max())
    return len(lengths) * longest, len(lengths) * longest**2
