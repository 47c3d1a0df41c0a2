"""Memory that is cut at chosen moments of some work: a card's, or a CPU's by a ledger of living tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch

from snugtune.memory.guard import CudaMemory, HostMemory, Memory
from snugtune.memory.trace import Ledger


class Scarcity(Protocol):
    """Memory that can be measured and cut."""

    guard_memory: Memory
    """What a guard asks."""

    def measured(self, work: Callable[[], Any]) -> tuple[int, int]:
        """Bytes held before ``work`` and at its peak."""

    def cut(self, n_bytes: int, from_s: float, until_s: float | None) -> Any:
        """A context in which no more than ``n_bytes`` can be had in between the two moments."""


def scarcity_of(device: torch.device) -> Scarcity:
    """The memory of ``device``."""
    return OfCard(device) if device.type == "cuda" else OfLedger()


class OfCard:
    """This process's share of a card, by the caching allocator's own limit."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._total_bytes = torch.cuda.get_device_properties(device).total_memory
        self.guard_memory: Memory = CudaMemory(device)

    def measured(self, work: Callable[[], Any]) -> tuple[int, int]:
        """By the allocator's counters, from an empty cache on."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        held_bytes = torch.cuda.memory_reserved(self._device)
        work()
        return held_bytes, torch.cuda.max_memory_reserved(self._device)

    @contextmanager
    def cut(self, n_bytes: int, from_s: float, until_s: float | None) -> Iterator[None]:
        """The limit is set from another thread where it comes later."""
        share = min(1.0, max(0, n_bytes) / self._total_bytes)
        try:
            with _at(from_s, lambda: self._limit(share)), _at(until_s, lambda: self._limit(1.0)):
                yield
        finally:
            self._limit(1.0)

    def _limit(self, share: float) -> None:
        """What is cached goes back, or a training that has its pool would notice nothing."""
        torch.cuda.set_per_process_memory_fraction(share)
        torch.cuda.empty_cache()


class OfLedger:
    """The tensors that are made inside, counted operator by operator; those from before are not."""

    def __init__(self) -> None:
        self.guard_memory: Memory = HostMemory()

    def measured(self, work: Callable[[], Any]) -> tuple[int, int]:
        """Nothing is held before."""
        with _Ledger(None) as ledger:
            work()
        return 0, ledger.peak_bytes

    @contextmanager
    def cut(self, n_bytes: int, from_s: float, until_s: float | None) -> Iterator[None]:
        """An operator that goes beyond the limit raises what a card's would."""
        with (
            _Ledger(None) as ledger,
            _at(from_s, lambda: ledger.limit(max(0, n_bytes))),
            _at(until_s, lambda: ledger.limit(None)),
        ):
            yield


class _Ledger(Ledger):
    """Raises where living tensors take more than the limit."""

    def __init__(self, limit_bytes: int | None) -> None:
        super().__init__()
        self.limit_bytes = limit_bytes
        self.peak_bytes = 0

    def limit(self, n_bytes: int | None) -> None:
        """From now on, at most so many (None: any number)."""
        self.limit_bytes = n_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        living_before = self._living_bytes()
        out = super().__torch_dispatch__(func, types, args, kwargs)
        living, limit = self._living_bytes(), self.limit_bytes
        # What lives already is not taken away; an operator that asks for more is refused.
        if limit is not None and living > max(limit, living_before):
            raise torch.OutOfMemoryError(f"CUDA out of memory. {living} of {limit} bytes.")
        self.peak_bytes = max(self.peak_bytes, living)
        return out

    def _living_bytes(self) -> int:
        return sum(self._n_bytes[index] for index, _ in self._alive.values())


@contextmanager
def _at(moment_s: float | None, work: Callable[[], None]) -> Iterator[None]:
    """``work`` is done so many seconds after the inside has begun, if it lasts so long; at 0 before it."""
    with ExitStack() as stack:
        if moment_s is not None and moment_s <= 0:
            work()
        elif moment_s is not None:
            timer = threading.Timer(moment_s, work)
            timer.daemon = True
            timer.start()
            stack.callback(timer.join)  # callbacks are called in reverse
            stack.callback(timer.cancel)
        yield
