"""What a worker tells its supervisor: one JSON object a line, ``event`` and what belongs to it.

The calls of an observer go over as they are (``event`` is the method, ``arguments`` its arguments). The last
line is one of ``ENDS``: ``done``; ``error`` with ``type``, a name in ``snugtune.errors``, and ``message``;
``restart`` with ``message`` and ``kind`` (see ``RestartNeededError``); ``interrupted``; ``crash`` with
``traceback``.

Between them ``pulse`` tells what ``at_work`` was told of: how many pieces of work the device has ``done``,
and whether another is ``in_hand``.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from dataclasses import asdict
from operator import methodcaller
from typing import Any

from snugtune.progress import (
    Observer,
    PlanInfo,
    QuoteInfo,
    ResumedInfo,
    StepInfo,
    TrainedInfo,
    ValidationInfo,
)

ENDS = frozenset({"done", "error", "restart", "interrupted", "crash"})

_OBJECTS: dict[str, type[Any]] = {
    "on_step": StepInfo,
    "on_validation": ValidationInfo,
    "on_resumed": ResumedInfo,
    "on_plan": PlanInfo,
    "on_quote": QuoteInfo,
    "on_trained": TrainedInfo,
}
"""The calls whose argument is an object."""

_CALLS = frozenset({"say", "phase", "advance", *_OBJECTS})

PULSE = "pulse"


class RelayObserver(Observer):
    """Writes every call to the file descriptor ``handle``."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        # One that a signal handler may take while its own thread holds it.
        self._lock = threading.RLock()
        self._done = self._in_hand = 0

    def send(self, event: str, **content: Any) -> None:
        """Write one line. A reader that is gone is no error: whoever watches for its end acts on it."""
        # NumPy's numbers are no JSON of their own.
        text = json.dumps({"event": event, **content}, default=methodcaller("item"))
        line = memoryview(text.encode("ascii") + b"\n")
        with self._lock, suppress(BrokenPipeError):
            while line:
                line = line[os.write(self._handle, line) :]

    def pulse(self) -> None:
        """Tell what the device does; from a thread, for the one that works may have to wait for it."""
        self.send(PULSE, done=self._done, in_hand=self._in_hand > 0)

    def at_work(self, is_at_work: bool) -> None:
        """Counted, for the next pulse."""
        if is_at_work:
            self._in_hand += 1
        else:
            self._in_hand, self._done = self._in_hand - 1, self._done + 1

    def say(self, sentence: str) -> None:
        """Passed on."""
        self.send("say", arguments=[sentence])

    def phase(self, name: str, total: int | None = None) -> None:
        """Passed on."""
        self.send("phase", arguments=[name, total])

    def advance(self, done: int) -> None:
        """Passed on."""
        self.send("advance", arguments=[done])

    def on_step(self, info: StepInfo) -> None:
        """Passed on."""
        self.send("on_step", arguments=[asdict(info)])

    def on_validation(self, info: ValidationInfo) -> None:
        """Passed on."""
        self.send("on_validation", arguments=[asdict(info)])

    def on_resumed(self, info: ResumedInfo) -> None:
        """Passed on."""
        self.send("on_resumed", arguments=[asdict(info)])

    def on_plan(self, info: PlanInfo) -> None:
        """Passed on."""
        self.send("on_plan", arguments=[asdict(info)])

    def on_quote(self, info: QuoteInfo) -> None:
        """Passed on."""
        self.send("on_quote", arguments=[asdict(info)])

    def on_trained(self, info: TrainedInfo) -> None:
        """Passed on."""
        self.send("on_trained", arguments=[asdict(info)])


def read_event(line: bytes) -> dict[str, Any]:
    """What a line says; empty if it is none of ours, as when the interpreter prints at its start."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    is_ours = isinstance(event, dict) and event.get("event") in _CALLS | ENDS | {PULSE}
    return event if is_ours else {}


def replay(event: dict[str, Any], observer: Observer) -> None:
    """Make the call that ``event`` stands for; other events are left alone."""
    name = event.get("event")
    if name not in _CALLS:
        return
    arguments = event["arguments"]
    if name in _OBJECTS:
        arguments = [_OBJECTS[name](**arguments[0])]
    getattr(observer, name)(*arguments)
