"""The guard's cases on a card: how they are drawn, what is compared, and when all of it passes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PRECISIONS = ("float32", "bfloat16")
"""Of every other case; in bfloat16 texts are packed where the card can."""

LEAST_GIB, MOST_GIB = 0.1, 4.0
"""Of a fit's share: the weights alone take .1 GiB, and nothing here needs more than the most."""

LEAST_ROOM, MOST_ROOM, NO_ROOM = 0.02, 1.5, -0.2
"""Of what a training takes beside its model, in shares; the last is less than the model itself."""

ABSURD_EVERY = 10

STAGES = ("load", "prepare", "train")
"""From the start of loading to the plan, to the first step, to the end of training."""

LEAST_HOLD_S, MOST_HOLD_S = 1.0, 40.0
"""How long the memory is held: the supervisor waits 1, 5 and 30 s before it goes to the CPU."""

NOISE_FACTOR = 3.0
FLOOR = {"float32": 1e-4, "bfloat16": 1e-2}
"""A case must stay within ``NOISE_FACTOR`` times the distance of two undisturbed trainings, one of them in
smaller micro-batches, or within the floor, whichever is more: relative to the norm of what was trained."""

CARD, CPU, NEW_PROCESS = "card", "cpu", "new process"
"""Where a case ended: on the card, on the CPU, or, without a supervisor, by asking for a new process."""


@dataclass(frozen=True)
class EngineCase:
    """A training inside one process: its memory is cut from a moment on.

    ``room`` is the share left of what training takes beside the model. The moments ``from_share`` and
    ``until_share`` (None: to the end) are shares of the time of an undisturbed training.
    """

    number: int
    precision: str
    room: float
    from_share: float
    until_share: float | None

    level = "engine"


@dataclass(frozen=True)
class CapCase:
    """A supervised fit whose processes may hold ``gib`` of the card."""

    number: int
    precision: str
    gib: float

    level = "cap"


@dataclass(frozen=True)
class HogCase:
    """A supervised fit beside which another process takes all memory for ``hold_s`` seconds.

    It begins when ``share`` of a stage's usual time has passed.
    """

    number: int
    precision: str
    stage: str
    share: float
    hold_s: float

    level = "hog"


Case = EngineCase | CapCase | HogCase
LEVELS = ("engine", "cap", "hog")


def key_of(case: Case) -> str:
    """The case's name, the same in every run."""
    return f"{case.level}-{case.number}"


def engine_cases(count: int, seed: int = 0) -> list[EngineCase]:
    """Rooms are spread evenly over orders of magnitude; a third of the cuts comes before the first step."""
    return [_engine_case(i, np.random.default_rng([seed, 0, i])) for i in range(count)]


def _engine_case(i: int, rng: np.random.Generator) -> EngineCase:
    room = NO_ROOM if i % ABSURD_EVERY == ABSURD_EVERY - 1 else _log_uniform(rng, LEAST_ROOM, MOST_ROOM)
    begins = 0.0 if i % 3 == 0 else float(rng.uniform(0, 1))
    ends = float(rng.uniform(begins, 1.5)) if rng.random() < 0.5 else None
    return EngineCase(i, _precision(i), room, begins, ends)


def cap_cases(count: int, seed: int = 0) -> list[CapCase]:
    """Shares are spread evenly over orders of magnitude."""
    rngs = (np.random.default_rng([seed, 1, i]) for i in range(count))
    return [CapCase(i, _precision(i), _log_uniform(rng, LEAST_GIB, MOST_GIB)) for i, rng in enumerate(rngs)]


def hog_cases(count: int, seed: int = 0) -> list[HogCase]:
    """Moments are spread evenly over the stages and inside each."""
    return [_hog_case(i, np.random.default_rng([seed, 2, i])) for i in range(count)]


def _hog_case(i: int, rng: np.random.Generator) -> HogCase:
    stage = STAGES[i % len(STAGES)]
    hold_s = _log_uniform(rng, LEAST_HOLD_S, MOST_HOLD_S)
    return HogCase(i, _precision(i), stage, float(rng.uniform(0, 1)), hold_s)


def _precision(i: int) -> str:
    return PRECISIONS[i % 2]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def part_of(cases: Sequence[Any], part: tuple[int, int]) -> list[Any]:
    """Part ``i`` of ``n`` (from 1): each has cases of all kinds."""
    i, n = part
    return list(cases[i - 1 :: n])


def distance(weights: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """How far trained tensors lie from others, relative to the norm of the others; infinite if not finite.

    LoRA's B begin at zero and so are all change; they are looked at apart from the rest, of which most is
    as it was drawn, and the larger of the two is told.
    """
    groups = [[name for name in expected if ("lora_B" in name) == is_b] for is_b in (True, False)]
    return max(_relative(_flat(weights, names), _flat(expected, names)) for names in groups)


def _flat(tensors: Mapping[str, Any], names: Sequence[str]) -> Any:
    return np.concatenate([np.zeros(0), *(np.asarray(tensors[name], np.float64).ravel() for name in names)])


def _relative(values: Any, expected: Any) -> float:
    if not np.isfinite(values).all():
        return math.inf
    apart = float(np.linalg.norm(values - expected))
    return 0.0 if apart == 0 else apart / max(float(np.linalg.norm(expected)), 1e-12)


def losses_apart(losses: Sequence[float], expected: Sequence[float]) -> float:
    """The largest difference of a step's loss; infinite where the steps are not the same."""
    if len(losses) != len(expected):
        return math.inf
    apart = np.abs(np.asarray(losses) - np.asarray(expected))
    return float(apart.max(initial=0.0)) if np.isfinite(apart).all() else math.inf


def limit_of(precision: str, noise: Sequence[float | None]) -> float:
    """The largest distance that rounding explains, from those of undisturbed trainings (None: not compared).

    Raises:
        ValueError: they are not finite, so nothing can be compared with them.
    """
    known = [value for value in noise if value is not None]
    if not all(map(math.isfinite, known)):
        raise ValueError("undisturbed trainings are not finite, or did not take the same steps")
    return max([FLOOR[precision], *(NOISE_FACTOR * value for value in known)])


def counted(events: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The guard's events by what they were, during what, and what was done."""
    kinds = (f"{event['event']}, {event.get('during')}: {event.get('action')}" for event in events)
    return dict(Counter(kinds))


def judged(told: dict[str, Any], **apart: tuple[float | None, float]) -> dict[str, Any]:
    """``told`` with what lies how far ``apart`` (None: not to be compared) and its limit.

    What is not finite is a failure. What ended on the CPU is told and not judged: its kernels are others.
    """
    for name, (value, limit) in apart.items():
        is_number = value is not None and math.isfinite(value)
        told |= {name: value if is_number else None, f"{name}_limit": limit}
        if value is not None and not is_number:
            told["failed"] = f"{name} are not finite, or not of the same steps"
    on_card = told.get("ended") == CARD
    told["within_limits"] = not on_card or all(
        value is None or value <= limit for value, limit in apart.values()
    )
    return told


def summary(
    cases: Mapping[str, Mapping[str, Any]], planted: Mapping[str, Mapping[str, Any]], levels: Sequence[str]
) -> dict[str, Any]:
    """Counts by level, and whether all of it passes: what does not, in words.

    ``planted`` are trainings that lost a micro-batch on purpose, which the comparison must find.
    """
    found = {level: _of_level([t for t in cases.values() if t["level"] == level]) for level in levels}
    faults = [f"{level}: {fault}" for level in levels for fault in _faults(found[level])]
    if "engine" in levels:
        faults += [] if planted else ["engine: no fault was planted to see that it would be found"]
        faults += [
            f"engine: a lost micro-batch is not told from rounding in {precision}"
            for precision, told in planted.items()
            if told["within_limits"]
        ]
    return {"levels": found, "passed": not faults, "faults": faults}


def _of_level(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ended = Counter(of.get("ended", "failed") for of in told)
    compared = [of["weights"] for of in told if of.get("weights") is not None and of.get("ended") == CARD]
    return {
        "cases": len(told),
        "failed": sum("failed" in of for of in told),
        "beyond_limits": sum("failed" not in of and not of["within_limits"] for of in told),
        "with_events": sum(_was_disturbed(of) for of in told),
        "with_events_and_ended_on_card": sum(
            _was_disturbed(of) and of.get("ended") == CARD and "failed" not in of for of in told
        ),
        "ended": dict(ended),
        "by_precision": dict(Counter(of["precision"] for of in told)),
        "packed": sum(bool(of.get("packed")) for of in told),
        "largest_distance_of_weights": max(compared, default=None),
    }


def _was_disturbed(told: Mapping[str, Any]) -> bool:
    return bool(told.get("events") or told.get("restarts"))


def _faults(found: Mapping[str, Any]) -> list[str]:
    if not found["cases"]:
        return ["there was no case"]
    told = {
        f"{found['failed']} of {found['cases']} cases failed": found["failed"],
        f"{found['beyond_limits']} cases trained another model": found["beyond_limits"],
        "memory ran out in no case that ended on the card": not found["with_events_and_ended_on_card"],
    }
    return [fault for fault, is_so in told.items() if is_so]
