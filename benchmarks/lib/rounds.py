"""Contestants of one process that take turns, round after round."""

from __future__ import annotations

import time
from typing import Any


def take_turns(contestants: dict[str, Any], phase: str, repeats: int, limit_s: float) -> dict[str, list[Any]]:
    """``repeats`` turns of each at ``phase``, after one to warm up; no new round begins after ``limit_s``.

    At least one round is measured. A machine that slows down for a minute slows all of them, so ratios are
    taken between turns of one round.
    """
    turns: dict[str, list[Any]] = {name: [] for name in contestants}
    started = time.perf_counter()
    for round_ in range(repeats + 1):
        if round_ > 1 and time.perf_counter() - started > limit_s:
            break
        for name, contestant in contestants.items():
            turn = contestant.turn(phase)
            if round_:
                turns[name].append(turn)
                print(f"{phase}, {name}: {turn.tokens_per_s:.0f} real tokens/s in {turn.seconds:.1f} s")
    return turns
