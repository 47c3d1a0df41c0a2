"""The memory a run really took: the accelerator's own high-water mark, or this process's resident memory."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import TracebackType

import psutil
import torch

from snugtune.units import gib

SAMPLING_INTERVAL_S = 0.02
"""Resident memory has no resettable high-water mark that every system offers, so a thread samples it."""


class PeakMeter:
    """Measures peak memory between entering and leaving, in bytes.

    On a GPU ``peak_bytes`` is what PyTorch's allocator reserved at most (``max_memory_reserved``); on a CPU
    the largest resident memory of the whole process, with its libraries and data.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sampler = None if device.type == "cuda" else _ResidentSampler()
        self._earlier_bytes = 0

    @property
    def peak_bytes(self) -> int:
        """The peak so far."""
        here = card_bytes(self.device).peak_reserved if self._sampler is None else self._sampler.look()
        return max(here, self._earlier_bytes)

    @property
    def is_of_this_process(self) -> bool:
        """Whether no earlier process of the run has a part in it."""
        return self._earlier_bytes == 0

    def was_at_least(self, peak_bytes: int) -> None:
        """An earlier process of the same run had this peak."""
        self._earlier_bytes = max(self._earlier_bytes, peak_bytes)

    def now(self) -> dict[str, float]:
        """What is taken now and was taken at most, in GiB, under the names of ``memory.jsonl``."""
        if self._sampler is not None:
            return {"resident_gib": gib(resident_bytes()), "peak_gib": gib(self.peak_bytes)}
        card = card_bytes(self.device)
        peak = max(card.peak_reserved, self._earlier_bytes)
        return {
            "allocated_gib": gib(card.allocated), "reserved_gib": gib(card.reserved), "peak_gib": gib(peak),
        }  # fmt: skip

    def __enter__(self) -> PeakMeter:
        if self._sampler is None:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sampler is not None:
            self._sampler.stop()


@dataclass(frozen=True)
class CardBytes:
    """What PyTorch's allocator has handed out and reserved on a card, and has reserved at most; bytes."""

    allocated: int
    reserved: int
    peak_reserved: int


NOTHING_YET = {f"{kind}_bytes": {"all": {"current": 0, "peak": 0}} for kind in ("allocated", "reserved")}


def card_bytes(device: torch.device) -> CardBytes:
    """What it counts now, asked for once: each of ``torch.cuda.memory_allocated`` and its like goes through
    every counter there is, which takes longer than many kernels.
    """
    # Before CUDA is initialised there is nothing.
    found = torch.cuda.memory_stats_as_nested_dict(device) or NOTHING_YET
    allocated, reserved = (found[f"{kind}_bytes"]["all"] for kind in ("allocated", "reserved"))
    return CardBytes(int(allocated["current"]), int(reserved["current"]), int(reserved["peak"]))


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


class _ResidentSampler:
    def __init__(self) -> None:
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snugtune-peak-meter", daemon=True)
        self._peak = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        self.look()

    def look(self) -> int:
        self._peak = max(self._peak, int(self._process.memory_info().rss))
        return self._peak

    def _run(self) -> None:
        while not self._done.wait(SAMPLING_INTERVAL_S):
            self.look()
