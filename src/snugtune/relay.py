"""What a worker tells its supervisor: one JSON object a line, ``event`` and what belongs to it.

The calls of an observer go over as they are (``event`` is the method, ``arguments`` its arguments). The last
line is one of ``ENDS``: ``done``; ``error`` with ``type``, a name in ``snugtune.errors``, and ``message``;
``restart`` with ``message``; ``interrupted``; ``crash`` with ``traceback``.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict
from operator import methodcaller
from typing import Any

from snugtune.progress import Observer, QuoteInfo, ResumedInfo, StepInfo, TrainedInfo, ValidationInfo

ENDS = frozenset({"done", "error", "restart", "interrupted", "crash"})

_OBJECTS: dict[str, type[Any]] = {
    "on_step": StepInfo,
    "on_validation": ValidationInfo,
    "on_resumed": ResumedInfo,
    "on_quote": QuoteInfo,
    "on_trained": TrainedInfo,
}
"""The calls whose argument is an object."""

_CALLS = frozenset({"say", "phase", "advance", *_OBJECTS})


class RelayObserver(Observer):
    """Writes every call to the file descriptor ``handle``."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def send(self, event: str, **content: Any) -> None:
        """Write one line. A reader that is gone is no error: whoever watches for its end acts on it."""
        # NumPy's numbers are no JSON of their own.
        text = json.dumps({"event": event, **content}, default=methodcaller("item"))
        line = memoryview(text.encode("ascii") + b"\n")
        with suppress(BrokenPipeError):
            while line:
                line = line[os.write(self._handle, line) :]

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
    is_ours = isinstance(event, dict) and event.get("event") in _CALLS | ENDS
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
