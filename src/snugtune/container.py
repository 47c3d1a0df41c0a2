"""What a container may have of the machine: the limits of Linux' control groups."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def available_memory_bytes(root: Path = CGROUPS, own: str | None = None) -> int:
    """Main memory that this process can still get: what is free, within what the container has left."""
    import psutil

    free = int(psutil.virtual_memory().available)
    _, left = memory_limit(root, own)
    return free if left is None else min(free, left)


def memory_limit(root: Path = CGROUPS, own: str | None = None) -> tuple[int | None, int | None]:
    """The smallest memory limit of the control groups we are in, and what is left of it; None without one.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (``memory.max``, ``memory.current``, and
    ``inactive_file`` of ``memory.stat``, which the kernel gives back) and cgroup-v1/memory.rst.
    """
    names = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    found = []
    for folder in _groups(root, "memory", own):
        for most, used in names:
            limit, usage = _number(folder / most), _number(folder / used)
            # Version 1 writes a number near 2**63 where there is no limit.
            if limit is not None and limit < 2**60:
                back = _reclaimable(folder / "memory.stat")
                found.append((limit, None if usage is None else max(0, limit - max(0, usage - back))))
    return min(found, key=lambda pair: pair[0], default=(None, None))


def cpu_quota(root: Path = CGROUPS, own: str | None = None) -> float | None:
    """The fewest cores' worth of time that a control group allows us; None without a quota.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (``cpu.max``) and scheduler/sched-bwc.rst.
    """
    found = []
    for folder in _groups(root, "cpu", own):
        words = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")
        ]  # fmt: skip
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]) > 0:
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def usable_cores() -> int:
    """Processor cores that this process may use: those that the scheduler and the container leave of all."""
    has_affinity = hasattr(os, "sched_getaffinity")  # on Linux
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _groups(root: Path, controller: str, own: str | None) -> Iterator[Path]:
    """The folders of our control group and those above it, of version 2 and of version 1."""
    if own is None:
        with suppress(OSError):
            own = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    yield root
    yield root / controller
    for line in (own or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        folder = (root / controller if controllers else root) / path.lstrip("/")
        while folder != root and root in folder.parents:
            yield folder
            folder = folder.parent


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].isdigit() else None


def _reclaimable(path: Path) -> int:
    words = _words(path)
    pairs = dict(zip(words[::2], words[1::2], strict=False))
    value = pairs.get("inactive_file", pairs.get("total_inactive_file", "0"))
    return int(value) if value.isdigit() else 0
