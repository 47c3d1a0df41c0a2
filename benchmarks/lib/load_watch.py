"""What a server's processes take while it runs, and whether that grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil

MIB = 2**20

LEAST_SAMPLES = 12


@dataclass(frozen=True)
class Sample:
    """Memory, open files and threads of keeper and worker at ``at_s``; ``worker`` is its process id."""

    at_s: float
    worker: int
    worker_mib: float
    worker_files: int
    worker_threads: int
    keeper_mib: float
    keeper_files: int
    keeper_threads: int


def worker_of(keeper: psutil.Process) -> psutil.Process | None:
    """The process that serves, if there is one now."""
    try:
        return next(iter(keeper.children()), None)
    except psutil.Error:
        return None


def sample(keeper: psutil.Process, at_s: float) -> Sample | None:
    """What both take now; None where there is no worker."""
    worker = worker_of(keeper)
    if worker is None:
        return None
    try:
        return Sample(
            at_s, worker.pid, *_taken(worker), *_taken(keeper),
        )  # fmt: skip
    except psutil.Error:
        return None


def _taken(process: psutil.Process) -> tuple[float, int, int]:
    with process.oneshot():
        return process.memory_info().rss / MIB, process.num_fds(), process.num_threads()


def growth(samples: Sequence[Sample], since_s: float, until_s: float, field: str) -> dict[str, Any] | None:
    """The slope of ``field`` an hour, of one worker's life between two moments, with its 95 % interval.

    Theil and Sen's: the median of the slopes of all pairs, which single outliers do not move
    (``scipy.stats.theilslopes``). None where there are too few samples.
    """
    from scipy.stats import theilslopes

    chosen = [one for one in samples if since_s <= one.at_s <= until_s]
    chosen = [one for one in chosen if one.worker == chosen[-1].worker]
    if len(chosen) < LEAST_SAMPLES:
        return None
    values = [float(getattr(one, field)) for one in chosen]
    slope, _, low, high = theilslopes(values, [one.at_s / 3600 for one in chosen])
    return {
        "per_hour": float(slope), "low": float(low), "high": float(high), "samples": len(chosen),
        "minutes": (chosen[-1].at_s - chosen[0].at_s) / 60, "first": values[0], "last": values[-1],
        "max": max(values),
    }  # fmt: skip


def as_rows(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """For a result file."""
    return [{k: round(v, 2) for k, v in asdict(one).items()} for one in samples]
