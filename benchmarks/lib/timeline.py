"""Accuracy over seconds of work, and what two such lines say about each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Point:
    """After ``work_s`` seconds of work and ``step`` optimiser steps, ``accuracy`` on the test file."""

    work_s: float
    step: int
    accuracy: float


@dataclass(frozen=True)
class TimeLine:
    """The looks at one contestant, in order; ``work_s`` is all its work, up to the last moment."""

    points: tuple[Point, ...]
    work_s: float

    def seconds_to(self, accuracy: float) -> float | None:
        """Seconds of work at the first look that saw ``accuracy``; None if none did."""
        return next((p.work_s for p in self.points if p.accuracy >= accuracy), None)

    @property
    def best(self) -> float:
        """The highest accuracy seen."""
        return max((p.accuracy for p in self.points), default=0.0)

    def as_dict(self, target: float) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "seconds_to_target": self.seconds_to(target),
            "best_accuracy": self.best,
            "work_s": self.work_s,
            "points": [asdict(p) for p in self.points],
        }


def time_line(points: Sequence[dict[str, Any]], work_s: float) -> TimeLine:
    """From the points a contestant reported."""
    return TimeLine(tuple(Point(**point) for point in points), work_s)


def speedup(ours: TimeLine, theirs: TimeLine, target: float) -> dict[str, Any]:
    """How many times sooner ours reached ``target``.

    If theirs never did, its whole work stands in, and the ratio is a lower bound. If ours never did, there
    is no ratio.
    """
    our_s, their_s = ours.seconds_to(target), theirs.seconds_to(target)
    if our_s is None:
        return {"ratio": None, "lower_bound": False}
    return {"ratio": (their_s or theirs.work_s) / our_s, "lower_bound": their_s is None}
