"""The energy a run takes, read from the hardware's own counters where they can be read.

An NVIDIA card counts the millijoules it has used since its driver was loaded
(``nvmlDeviceGetTotalEnergyConsumption``, Volta and newer; not for a part of a card under MIG). Linux shows
the counters of Intel's and AMD's processors under ``/sys/class/powercap`` as ``energy_uj``, of the whole
package, so other programs' share is in them; most systems let only root read them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snugtune.progress import Observer, StepInfo

POWERCAP = Path("/sys/class/powercap")

READ_EVERY_S = 60.0
"""A processor's counter starts again from 0 after 2**18 J on many machines: a quarter of an hour at 300 W."""

J_PER_WH = 3600.0


@dataclass(frozen=True)
class Energy:
    """What was used, in Wh, and by what: ``GPU``, ``CPU packages``, or both."""

    wh: float
    of: str


@dataclass(frozen=True)
class Counter:
    """A counter of joules; ``wraps_at`` is the value after which it starts from 0 again (0: never)."""

    of: str
    read_j: Callable[[], float]
    wraps_at: float = 0.0


class EnergyMeter(Observer):
    """Adds up what counters advance from the moment they are added.

    It is told of a run like any other observer, which is when it reads them. A counter that cannot be read
    any more is left out altogether: half of a figure would mislead.
    """

    def __init__(self, counters: Sequence[Counter] = ()) -> None:
        self._tallies: list[_Tally] = []
        self._read_at = 0.0
        self._earlier_j = 0.0
        self.add(counters)

    def add(self, counters: Sequence[Counter]) -> None:
        """Count from now on with these, too."""
        self._tallies += [_Tally(counter) for counter in counters]
        self._read()

    def carry_on(self, wh: float) -> None:
        """Earlier processes of the same run have used so much."""
        self._earlier_j = wh * J_PER_WH

    def used(self) -> Energy | None:
        """So far; None without a counter that can be read."""
        self._read()
        found = [tally for tally in self._tallies if tally.is_readable]
        if not found:
            return None
        joules = self._earlier_j + sum(tally.joules for tally in found)
        return Energy(joules / J_PER_WH, " + ".join(dict.fromkeys(tally.counter.of for tally in found)))

    def phase(self, name: str, total: int | None = None) -> None:  # noqa: ARG002
        """Read again."""
        self._read()

    def advance(self, done: int) -> None:  # noqa: ARG002
        """Read again if it is time to."""
        self._read_if_due()

    def on_step(self, info: StepInfo) -> None:  # noqa: ARG002
        """Read again if it is time to."""
        self._read_if_due()

    def _read_if_due(self) -> None:
        if time.monotonic() - self._read_at >= READ_EVERY_S:
            self._read()

    def _read(self) -> None:
        self._read_at = time.monotonic()
        for tally in self._tallies:
            tally.read()


class _Tally:
    """Joules that one counter has advanced since it was first read."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.joules = 0.0
        self.is_readable = True
        self._last: float | None = None

    def read(self) -> None:
        if not self.is_readable:
            return
        try:
            value = self.counter.read_j()
        except (OSError, ValueError, RuntimeError):
            self.is_readable = False
            return
        if self._last is not None:
            gained = value - self._last
            self.joules += gained if gained >= 0 else max(0.0, gained + self.counter.wraps_at)
        self._last = value


def processor_counters(powercap: Path = POWERCAP) -> list[Counter]:
    """One counter for each processor package; its cores and caches, below it, are part of it."""
    found = []
    for zone in sorted(powercap.glob("*-rapl:*")):
        with suppress(OSError, ValueError):
            if not (zone / "name").read_text(encoding="ascii").startswith("package"):
                continue
            (zone / "energy_uj").read_text(encoding="ascii")
            wraps_at = float((zone / "max_energy_range_uj").read_text(encoding="ascii")) / 1e6
            found.append(Counter("CPU packages", _microjoules(zone / "energy_uj"), wraps_at))
    return found


def _microjoules(path: Path) -> Callable[[], float]:
    return lambda: float(path.read_text(encoding="ascii")) / 1e6


def card_counters(uuid: str) -> list[Counter]:
    """The counter of the NVIDIA card of this ``uuid`` (as PyTorch tells it), if its driver has one."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return []
    return [Counter("GPU", lambda: _millijoules(pynvml, handle))]


def _millijoules(nvml: Any, handle: Any) -> float:
    try:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    except nvml.NVMLError as error:
        raise RuntimeError(str(error)) from error
