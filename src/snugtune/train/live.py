"""What a run that is being written says of itself now, from its journal; needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from snugtune.files import CLAIM, being_written
from snugtune.train.journal import LOG, MEMORY, METRICS
from snugtune.train.recovery import states_folder

SENTENCES_KEPT = 200

DONE = "run.json"


@dataclass
class Live:
    """The state of a run so far; steps and losses are those of the journal, the newest last.

    ``steps`` is how many there will be, ``done`` and ``total`` count the phase's units; None where not known.
    """

    phase: str | None = None
    total: int | None = None
    done: int = 0
    steps: int | None = None
    step: int = 0
    elapsed_s: float = 0.0
    learning_rate: float | None = None
    peak_gib: float | None = None
    losses: list[float] = field(default_factory=list)
    looks: list[dict[str, Any]] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)

    @property
    def remaining_s(self) -> float | None:
        """Of training, at the pace so far."""
        if self.steps is None or not self.step:
            return None
        return self.elapsed_s / self.step * (self.steps - self.step)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "remaining_s": self.remaining_s}

    def take_log(self, line: Mapping[str, Any]) -> None:
        """A line of ``log.jsonl``."""
        if "phase" in line:
            self.phase, self.total, self.done = line["phase"], line.get("total"), 0
        self.done = line.get("done", self.done)
        self.steps = line.get("steps", self.steps)
        if "say" in line:
            self.sentences = [*self.sentences, line["say"]][-SENTENCES_KEPT:]

    def take_metrics(self, line: Mapping[str, Any]) -> None:
        """A line of ``metrics.jsonl``; where training went back, steps come once more."""
        if "eval_score" in line:
            self.looks = [look for look in self.looks if look["step"] < line["step"]] + [dict(line)]
        if "loss" in line:
            if line["step"] <= self.step:
                del self.losses[line["step"] - 1 :]
            self.losses.append(line["loss"])
            self.step, self.elapsed_s = line["step"], line["elapsed_s"]
            self.learning_rate = line["learning_rate"]

    def take_memory(self, line: Mapping[str, Any]) -> None:
        """A line of ``memory.jsonl``."""
        self.peak_gib = line.get("peak_gib", self.peak_gib)


class Watcher:
    """Follows the run ``run``, finished or being written, in this process's or another's folder.

    ``live`` is its state. A run that is started again in a new process (``.NAME.partial`` is another folder
    then) goes on where that process does; what was seen before stays.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.live = Live()
        self._finished_before = _identity(run / DONE)
        self._source: tuple[Path, int] | None = None
        self._followers: list[tuple[_Follower, Any]] = []
        self._seen_at_work = False
        self.look()

    @property
    def is_at_work(self) -> bool:
        """Whether a process writes the run, or another is about to go on with it.

        The states of a run that Ctrl-C completed wait for somebody who may never come.
        """
        return self.has_writer or (states_folder(self.run).is_dir() and not self.is_complete)

    @property
    def has_writer(self) -> bool:
        """Whether a process writes the run now."""
        return being_written(self.run) is not None

    @property
    def is_complete(self) -> bool:
        """Whether the run is there: the one that was followed, if one was seen at work."""
        found = _identity(self.run / DONE)
        return found is not None and (not self._seen_at_work or found != self._finished_before)

    def look(self) -> None:
        """Read what is new."""
        folder = being_written(self.run)
        if folder is not None:
            self._seen_at_work = True
        elif self.is_complete:
            folder = self.run
        if folder is not None and (folder, _made(folder)) != self._source:
            self._follow(folder)
        for follower, take in self._followers:
            for line in follower.new_lines():
                take(line)

    def _follow(self, folder: Path) -> None:
        if folder == self.run:
            # The finished folder repeats what was seen.
            self.live = Live()
        self._source = folder, _made(folder)
        live = self.live
        takes = ((LOG, live.take_log), (METRICS, live.take_metrics), (MEMORY, live.take_memory))
        self._followers = [(_Follower(folder / name), take) for name, take in takes]


class _Follower:
    """Reads the lines that are added to a file, from its start again if it is another file by now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity: tuple[int, int] | None = None
        self._offset = 0

    def new_lines(self) -> list[dict[str, Any]]:
        try:
            with self.path.open("rb") as file:
                found = _identity(self.path)
                if found != self._identity:
                    self._identity, self._offset = found, 0
                file.seek(self._offset)
                text = file.read()
        except OSError:
            return []
        # The last line may be half written.
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [line for line in map(_parsed, whole.splitlines()) if line]


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _made(folder: Path) -> int:
    """When a process claimed ``folder``, in ns: a later one's has the same name. 0 for a finished run."""
    try:
        return (folder / CLAIM).stat().st_mtime_ns
    except OSError:
        return 0


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that took its place."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino
