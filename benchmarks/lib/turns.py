"""Contestants in processes of their own that take turns on one machine, a slice of seconds each.

A machine that slows down for a minute then slows all of them, and none runs while another does.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

DONE, ERROR, POINT, TURN = "done", "error", "point", "turn"


class WorkClock:
    """Seconds of work so far: it stands still in ``paused()`` and while another contestant has its turn."""

    def __init__(
        self,
        slice_s: float = float("inf"),
        pass_turn: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._slice_s, self._pass_turn, self._now = slice_s, pass_turn, now
        self._done_s, self._since, self._turn_from = 0.0, now(), 0.0
        self._running = True

    @property
    def work_s(self) -> float:
        """Seconds of work so far."""
        return self._done_s + (self._now() - self._since if self._running else 0.0)

    def restart(self) -> None:
        """Count from here: what went before was preparation."""
        self._done_s, self._since, self._turn_from = 0.0, self._now(), 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not work."""
        self._stop()
        try:
            yield
        finally:
            self._start()

    def take_back(self, seconds: float) -> None:
        """The last ``seconds`` were no work after all."""
        self._done_s -= seconds

    def offer_turn(self) -> None:
        """At a good place to stop: let the next one work if the slice is used up."""
        if self.work_s - self._turn_from >= self._slice_s:
            with self.paused():
                self._pass_turn()
            self._turn_from = self.work_s

    def _stop(self) -> None:
        self._done_s, self._running = self.work_s, False

    def _start(self) -> None:
        self._since, self._running = self._now(), True


Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """A contestant: ``function(clock, report, **options)``, a module's own so that a process can find it."""

    function: Callable[..., None]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a contestant reported, its seconds of work, and the error that ended it, if one did."""

    points: list[dict[str, Any]] = field(default_factory=list)
    work_s: float = 0.0
    error: str | None = None


def run_in_turns(
    jobs: dict[str, Job], slice_s: float, on_point: Callable[[str, dict[str, Any]], None] | None = None
) -> dict[str, Outcome]:
    """Run all ``jobs`` to their end, one at a time, ``slice_s`` seconds of work a turn."""
    context = multiprocessing.get_context("spawn")
    outcomes = {name: Outcome() for name in jobs}
    ends, processes = {}, []
    for name, job in jobs.items():
        ends[name], theirs = context.Pipe()
        processes.append(context.Process(target=_work, args=(theirs, job, slice_s), daemon=True))
        processes[-1].start()
        theirs.close()
    waiting = list(jobs)
    while waiting:
        name = waiting.pop(0)
        if _one_turn(ends[name], outcomes[name], lambda point, name=name: on_point and on_point(name, point)):
            waiting.append(name)
    for process in processes:
        process.join()
    return outcomes


def _one_turn(end: Any, outcome: Outcome, on_point: Report) -> bool:
    """Let one contestant work until it passes the turn on (True) or has ended (False)."""
    try:
        end.send(TURN)
        while True:
            kind, value = end.recv()
            if kind == TURN:
                return True
            if kind == POINT:
                outcome.points.append(value)
                on_point(value)
            elif kind == DONE:
                outcome.work_s = value
                return False
            else:
                outcome.error = value
                return False
    except (EOFError, OSError):
        outcome.error = "its process ended without a word"
        return False


def _work(end: Any, job: Job, slice_s: float) -> None:
    def pass_turn() -> None:
        end.send((TURN, None))
        end.recv()

    end.recv()
    clock = WorkClock(slice_s, pass_turn)
    try:
        job.function(clock, lambda point: end.send((POINT, point)), **job.options)
        end.send((DONE, clock.work_s))
    except Exception:
        end.send((ERROR, traceback.format_exc()))
