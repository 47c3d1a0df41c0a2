"""Whether a worker that says nothing computes or hangs. Needs no torch, nor a clock that could jump.

A sign of life proves little: a thread of the worker goes on talking while the one that trains waits for a
kernel that never ends. So what counts is work that the device has been given and has done
(``Observer.at_work``). Outside of such work a worker may be silent as long as it computes: tokens, linear
models and files take what they take, and how long nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from snugtune.relay import PULSE

LEAST_S = 1800.0
"""No silence that is shorter is held against a worker: more than the first kernels of a card take for which
the driver has yet to compile them, and than a swapping machine takes for a micro-batch."""

TIMES = 20.0
"""The longest silence that the run has broken by itself, in the same phase, may be surpassed that often."""

ASLEEP_TIMES = 2.0
"""So many times as patient with a worker that sleeps without having given the device any work."""

SLEEPING_SHARE = 0.01
"""Of a processor: who uses less is asleep. The thread that talks uses a hundredth of that."""

SLEEPING_BYTES = 2**16
"""Who reads and writes less between two looks is asleep; what the talking thread says is less."""

LOOKS = 30
"""A sleeper is looked at so many times before it is given up."""


@dataclass(frozen=True)
class Usage:
    """What a process and its children have used so far."""

    cpu_s: float
    io_bytes: int


class Silence:
    """How long a worker has got no further; one for a run, whose workers come one after another.

    Only time that the watching process has spent waiting counts, and none in which the worker was stopped
    (SIGSTOP, a debugger): neither does a machine that slept make a silence.

    Args:
        least_s: see ``LEAST_S``.

    ``hangs`` says when it has been too long, ``seconds`` and ``longest_s`` what was seen.
    """

    def __init__(self, least_s: float = LEAST_S) -> None:
        self._least_s = least_s
        self._patience = 1.0
        self._longest: dict[str | None, float] = {}
        self.begin(None)

    def begin(self, usage: Callable[[], Usage | None] | None) -> None:
        """A new worker; ``usage`` tells what it has used, or None where nobody can say."""
        self._usage = usage
        self.phase: str | None = None
        self._done, self._in_hand = 0, False
        self._restart_clocks()

    def _restart_clocks(self) -> None:
        self._of_device_s = self._asleep_s = self._since_look_s = 0.0
        self._seen: Usage | None = None

    @property
    def seconds(self) -> float:
        """How long the silence has been."""
        return max(self._of_device_s, self._asleep_s)

    @property
    def longest_s(self) -> float:
        """The longest silence that was broken in this phase."""
        return self._longest.get(self.phase, 0.0)

    @property
    def hangs(self) -> bool:
        """Whether the silence is longer than anything the run has shown could explain."""
        asleep_s = self._patience * ASLEEP_TIMES * self._least_s
        return self._of_device_s >= self._limit_s or self._asleep_s >= asleep_s

    @property
    def _limit_s(self) -> float:
        return self._patience * max(self._least_s, TIMES * self.longest_s)

    def heard(self, event: dict[str, Any]) -> None:
        """The worker said that: a pulse is news only if the device has done something since the last."""
        if event.get("event") != PULSE:
            self._broken()
        elif event["done"] != self._done:
            self._done, self._in_hand = event["done"], event["in_hand"]
            self._broken()
        elif self._in_hand and not event["in_hand"]:
            self._in_hand = False
            self._of_device_s = 0.0
        else:
            self._in_hand = event["in_hand"]
        if event.get("event") == "phase":
            self.phase = event["arguments"][0]

    def waited(self, seconds: float, *, is_stopped: bool = False) -> None:
        """So long nothing came, and somebody was there to hear it."""
        if is_stopped:
            self._seen = None
        elif self._in_hand:
            self._of_device_s += seconds
        elif self._done:
            # Before the first work on the device it may wait for a network, or for another's download.
            self._look(seconds)

    def given_up(self) -> None:
        """A worker was ended for its silence: should that have been wrong, the next has twice as long."""
        self._patience *= 2

    def _broken(self) -> None:
        if self._of_device_s:
            self._longest[self.phase] = max(self.longest_s, self._of_device_s)
        self._restart_clocks()

    def _look(self, seconds: float) -> None:
        self._since_look_s += seconds
        if self._since_look_s < self._least_s / LOOKS:
            return
        before, self._seen = self._seen, self._usage() if self._usage else None
        if before is not None and self._seen is not None and self._slept(before, self._seen):
            self._asleep_s += self._since_look_s
        else:
            self._asleep_s = 0.0
        self._since_look_s = 0.0

    def _slept(self, before: Usage, now: Usage) -> bool:
        cpu_s, io_bytes = now.cpu_s - before.cpu_s, now.io_bytes - before.io_bytes
        # A child that has ended took its share along.
        few = 0 <= cpu_s < SLEEPING_SHARE * self._since_look_s
        return few and 0 <= io_bytes < SLEEPING_BYTES


def usage_of(pid: int) -> Usage | None:
    """What the process and its children have used; None where the system does not say."""
    import psutil

    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return Usage(sum(map(_cpu_s, family)), sum(map(_io_bytes, family)))
    except (psutil.Error, OSError):
        return None


def is_stopped(pid: int) -> bool:
    """Whether somebody has stopped the process (SIGSTOP, a debugger); it can do nothing then."""
    import psutil

    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except (psutil.Error, OSError):
        return False


def _cpu_s(process: Any) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _io_bytes(process: Any) -> int:
    if not hasattr(process, "io_counters"):  # macOS counts none
        return 0
    found = process.io_counters()
    told = [getattr(found, name, 0) for name in ("read_bytes", "write_bytes", "read_chars", "write_chars")]
    return int(sum(told))


def innermost(stacks: str) -> str | None:
    """Where the main thread stands, of what ``faulthandler`` wrote; None if it wrote nothing.

    The oldest thread comes last.
    """
    last = stacks.strip().rpartition("most recent call first):\n")[2]
    found = [line for line in last.splitlines() if line.strip().startswith("File ")]
    if not found:
        return None
    _, path, rest = found[0].split('"')
    line, _, function = rest.removeprefix(", line ").partition(" in ")
    return f"{function} ({'/'.join(path.replace(chr(92), '/').split('/')[-3:])}, line {line})"
