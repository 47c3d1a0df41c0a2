"""Peak memory of a piece of work in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from snugtune.units import gib

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The most memory this process takes from ``restart`` on: the card's where there is one, else resident.

    Resident memory is the kernel's own high-water mark, which Linux lets a process set back
    (proc(5), ``clear_refs``); elsewhere it counts from the process's start.
    """

    def __init__(self, device: Any = None) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        self.before_gib = 0.0

    def restart(self) -> None:
        """Count from here."""
        if self._device is not None:
            import torch

            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()  # what an earlier turn left cached is not this one's
            torch.cuda.reset_peak_memory_stats(self._device)
            self.before_gib = gib(torch.cuda.memory_reserved(self._device))
            return
        with contextlib.suppress(OSError):
            CLEAR.write_text("5", encoding="ascii")
        self.before_gib = gib(_resident_bytes("VmRSS"))

    @property
    def peak_gib(self) -> float:
        if self._device is not None:
            import torch

            return gib(torch.cuda.max_memory_reserved(self._device))
        return gib(_resident_bytes("VmHWM"))

    def as_dict(self) -> dict[str, float]:
        """Before the work, at its peak, and the difference."""
        peak = self.peak_gib
        return {"before_gib": self.before_gib, "peak_gib": peak, "grown_gib": peak - self.before_gib}


class CachedPool:
    """What a card's caching allocator keeps for this process beside living tensors.

    Contestants that take turns give theirs back, or they would not fit side by side, and have it again before
    the clock starts: growing it anew is not what they are timed for. On a CPU there is nothing to do.
    """

    def __init__(self, device: Any) -> None:
        self._on_card = device.type == "cuda"

    @contextlib.contextmanager
    def given_back(self) -> Iterator[None]:
        """Inside, others can have it."""
        if not self._on_card:
            yield
            return
        import torch

        torch.cuda.synchronize()
        cached_bytes = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        torch.cuda.empty_cache()
        yield
        with contextlib.suppress(torch.OutOfMemoryError):
            # Segments that grow are one piece, of which blocks of any size are cut.
            torch.empty(cached_bytes, dtype=torch.uint8, device="cuda")


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, a module's own, in a fresh process; its error ends this one, too."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(theirs, function, args), daemon=True)
    child.start()
    theirs.close()
    try:
        error, value = ours.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f"the process ended without a word (exit code {child.exitcode})") from None
    child.join()
    if error:
        raise RuntimeError(error)
    return value


def _work(end: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        end.send((None, function(*args)))
    except Exception:
        end.send((traceback.format_exc(), None))


def _resident_bytes(name: str) -> int:
    if STATUS.exists():
        for line in STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
