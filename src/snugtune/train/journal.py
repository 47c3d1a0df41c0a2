"""The run's journal: what happens is appended to its folder while it happens, for whoever looks on.

``metrics.jsonl`` and ``memory.jsonl`` grow line by line (the finished run writes them anew, complete; so does
training that goes on from an earlier step, up to that step), and
``log.jsonl`` tells phases and sentences with the seconds since the beginning: ``{"elapsed_s", "phase",
"total"}``, ``{"elapsed_s", "done"}`` (units of the phase so far), ``{"elapsed_s", "steps"}`` (how many there
will be) and ``{"elapsed_s", "say"}``.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from snugtune.errors import UserInputError
from snugtune.files import write_text
from snugtune.progress import Observer, ResumedInfo, StepInfo, ValidationInfo

METRICS, MEMORY, LOG = "metrics.jsonl", "memory.jsonl", "log.jsonl"

ADVANCE_EVERY_S = 1.0
"""The least time between two lines on how far a phase is."""


class Journal(Observer):
    """Appends to the files in ``folder``. A disk that takes no line is no reason to end a run."""

    def __init__(self, folder: Path, *, elapsed_s: float = 0.0) -> None:
        self._folder = folder
        self._started = time.perf_counter() - elapsed_s
        self._done, self._told_at, self._steps = 0, 0.0, 0

    def say(self, sentence: str) -> None:
        """A line of ``log.jsonl``."""
        self._log(say=sentence)

    def phase(self, name: str, total: int | None = None) -> None:
        """A line of ``log.jsonl``."""
        self._done, self._told_at = 0, self._elapsed_s
        self._log(phase=name, total=total)

    def advance(self, done: int) -> None:
        """A line of ``log.jsonl``, at most once a second."""
        self._done += done
        if self._elapsed_s - self._told_at >= ADVANCE_EVERY_S:
            self._told_at = self._elapsed_s
            self._log(done=self._done)

    def on_step(self, info: StepInfo) -> None:
        """A line of ``metrics.jsonl`` and, if memory was measured, of ``memory.jsonl``."""
        if info.steps != self._steps:
            self._steps = info.steps
            self._log(steps=info.steps)
        at = {"step": info.step}
        elapsed = {"elapsed_s": info.elapsed_s}
        self._append(METRICS, {**at, "loss": info.loss, "learning_rate": info.learning_rate, **elapsed})
        if info.memory is not None:
            self._append(MEMORY, {**at, **elapsed, **info.memory})

    def on_validation(self, info: ValidationInfo) -> None:
        """A line of ``metrics.jsonl``."""
        line = {"step": info.step, "epoch": info.epoch, "eval_score": info.score}
        self._append(METRICS, {**line, "eval_loss": info.log_loss, "best": info.best})

    def on_resumed(self, info: ResumedInfo) -> None:
        """Both files hold the lines until that step, no more and no fewer."""
        for name, lines in ((METRICS, info.metrics), (MEMORY, info.memory)):
            with suppress(OSError, UserInputError):
                write_text(self._folder / name, "".join(map(_line, lines)))

    @property
    def _elapsed_s(self) -> float:
        return time.perf_counter() - self._started

    def _log(self, **content: Any) -> None:
        self._append(LOG, {"elapsed_s": round(self._elapsed_s, 3), **content})

    def _append(self, name: str, line: dict[str, Any]) -> None:
        # Opened for each line: nothing is left open in a folder that is about to be renamed.
        with suppress(OSError), (self._folder / name).open("a", encoding="utf-8") as file:
            file.write(_line(line))


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"
