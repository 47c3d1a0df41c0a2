"""Several devices that train one model: what each holds, and how long they wait for what they exchange.

Without sharding every device holds everything, and once a step the trained tensors' gradients go round. With
sharding (FSDP2) weights, gradients and the optimiser's state are divided, and each layer is gathered from all
devices before it runs, forward and back. Estimates: a ring, at a stated rate of the link between devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from snugtune.errors import UserInputError
from snugtune.memory.surface import Rehearses
from snugtune.memory.trace import GRADIENTS, STATE, UPDATE, WEIGHTS, Storage, Trace

LINK_GB_S = 10.0
"""Assumed of the link between two devices, in each direction: what a PCIe 3.0 slot of 16 lanes (15.75 GB/s
by its specification) leaves after its protocol and a copy through the host."""

DIVIDED = frozenset({WEIGHTS, GRADIENTS, STATE, UPDATE})
"""Categories of tensors of which each device holds its share."""

GATHERED = "layers gathered from all devices"

UNITS_WHOLE = 2
"""Layers that are whole at the same time: the one that runs, and the next, which is fetched meanwhile."""


@dataclass(frozen=True)
class Fleet:
    """So many ``devices`` of one kind, ``link_gb_s`` (10**9 bytes a second) apart; ``sharded`` or not."""

    devices: int = 1
    sharded: bool = False
    link_gb_s: float = LINK_GB_S

    @property
    def shards(self) -> int:
        """Parts into which weights are divided."""
        return self.devices if self.sharded else 1

    def share(self, n: int) -> int:
        """The most of ``n`` examples that one device has to compute."""
        return math.ceil(n / self.devices)

    def exchange_s(self, gathered_bytes: float, summed_bytes: float) -> tuple[float, float]:
        """Seconds to gather and seconds to add up so much, each by a ring over all devices.

        A ring passes (n - 1) / n of the bytes to gather or to reduce and scatter them, and twice that to add
        them up for all (Patarasuk & Yuan 2009, J. Parallel Distrib. Comput. 69, section 3).
        """
        passed = (self.devices - 1) / self.devices / (self.link_gb_s * 1e9)
        return gathered_bytes * passed, summed_bytes * passed * (1 if self.sharded else 2)


ONE_DEVICE = Fleet()


def fleet_of(devices: int, sharding: str, link_gb_s: float = LINK_GB_S) -> Fleet:
    """The fleet that the user describes; ``sharding`` is ``none`` or ``full``.

    Raises:
        UserInputError: there is no device, or nothing passes between them.
    """
    if devices < 1:
        raise UserInputError(f"--devices must be at least 1, not {devices}.")
    if not 0 < link_gb_s < math.inf:
        raise UserInputError(f"--link must be more than 0, not {link_gb_s:g}.")
    return Fleet(devices, sharding == "full" and devices > 1, link_gb_s)


@dataclass(frozen=True)
class Units:
    """Parameters of the largest repeated layer, of all of them, and of what is left (embeddings, head)."""

    layer: int
    layers: int
    rest: int

    @property
    def gathered(self) -> int:
        """Parameters that are whole at the same time while the model runs divided."""
        return self.rest + min(UNITS_WHOLE * self.layer, self.layers)


class Divided:
    """The rehearsal of one device among ``shards``: its share of what is divided, and what it gathers."""

    def __init__(self, rehearsal: Rehearses, shards: int, gathered_bytes: int) -> None:
        self._rehearsal, self._shards, self._gathered_bytes = rehearsal, shards, gathered_bytes

    def trace(self, micro_batch: int, length: int, *, work: bool = False, tokens: int | None = None) -> Trace:
        """The trace of one step."""
        whole = self._rehearsal.trace(micro_batch, length, work=work, tokens=tokens)
        storages = [self._divided(storage) for storage in whole.storages]
        # There from the first event to the last.
        events = np.concatenate([[len(storages) + 1], whole.events]).astype(np.int64)
        gathered = Storage(self._gathered_bytes, GATHERED, "gathered", "")
        return Trace([*storages, gathered], events, whole.work, whole.demands)

    def _divided(self, storage: Storage) -> Storage:
        if storage.category not in DIVIDED:
            return storage
        return replace(storage, n_bytes=-(-storage.n_bytes // self._shards))
