"""Ctrl-C, and a job scheduler's SIGTERM, held back until the weights are those of a whole step.

A signal may arrive in the middle of an update; what is learned then could neither be kept nor gone on from.
So whatever a signal's own handler raises is raised at the next place where that does no harm, a
micro-batch later at most. Who presses Ctrl-C again is obeyed at once.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

HELD = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupts:
    """Holds back what the handlers of ``HELD`` raise while it is entered; only a main thread gets signals.

    ``at_rest`` is true once ``check`` has raised: the weights are those of a whole step.
    """

    def __init__(self) -> None:
        self.at_rest = False
        self._held: BaseException | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for name in HELD:
                number = getattr(signal, name, None)
                # What ends the process by itself, is ignored, or is handled outside of Python, stays so.
                if number is not None and callable(before := signal.getsignal(number)):
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
        if error is None:
            self.check()

    @property
    def is_held(self) -> bool:
        """Whether something was held back."""
        return self._held is not None

    def leave(self) -> None:
        """Raise what was held back, here or in another process of the group."""
        self.check()
        self.at_rest = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise what was held back, if anything was."""
        if self._held is not None:
            held, self._held = self._held, None
            self.at_rest = True
            raise held

    def _handle(self, number: int, frame: FrameType | None) -> None:
        try:
            self._before[number](number, frame)
        except BaseException as error:
            if self._held is not None:
                raise
            self._held = error
