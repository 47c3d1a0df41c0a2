"""A worker as its supervisor sees it: what it says, where it stands, and how it is ended. Needs no torch."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from snugtune.progress import Observer
from snugtune.relay import ENDS, PULSE, read_event, replay
from snugtune.silence import Silence, innermost, is_stopped
from snugtune.worker import GRACE_S, STOP

KILL_S = 60.0
"""After which a process that was killed is taken to be held by its driver, whatever is sent to it."""

DUMP_S = 2.0
"""For a worker to write where its threads stand."""


class WorkerProcess:
    """The other end of ``snugtune/worker.py``."""

    def __init__(self, command: Sequence[str], job: dict[str, Any], *, on_cpu: bool = False) -> None:
        # A card that another process fills up cannot even be asked what is free.
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment() | hidden
        )
        self._has_ended = self._is_held = False
        self.has_told = False
        # A thread reads, so that this one can look at the worker meanwhile, and need not wait for the end of
        # a pipe that is held by a process which cannot be ended.
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="snugtune-worker-reader", daemon=True)
        self._reader.start()
        self._stacks: Path | None = None
        # Without one nobody learns where a worker hangs; a full disk is no reason not to train.
        with suppress(OSError):
            handle, name = tempfile.mkstemp(prefix="snugtune-", suffix=".stacks")
            os.close(handle)
            self._stacks = Path(name)
        self._send(json.dumps({**job, "stacks": None if self._stacks is None else str(self._stacks)}))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def replay(
        self, observer: Observer, silence: Silence, look: Callable[[], None], look_s: float
    ) -> dict[str, Any]:
        """Pass what the worker tells on to ``observer`` until it ends or hangs; returns its last event.

        Meanwhile ``look`` is called every ``look_s`` seconds or so. Only waiting here is silence: a worker
        whose words nobody takes is not to blame.
        """
        looked = time.monotonic()
        while not silence.hangs:
            began = time.monotonic()
            line: bytes | None = b""
            with suppress(queue.Empty):
                line = self._lines.get(timeout=look_s)
            now = time.monotonic()
            # A process that was stopped, or a machine that slept, heard nothing.
            waited_s = min(now - began, 2 * look_s)
            silence.waited(waited_s, is_stopped=waited_s >= look_s and is_stopped(self.process.pid))
            if line is None:
                return {}
            if line and (event := self._take(line, observer, silence)):
                return event
            if now - looked >= look_s:
                looked = now
                look()
        return {}

    def _take(self, line: bytes, observer: Observer, silence: Silence | None) -> dict[str, Any]:
        """What a line says, passed on; returns the event if it is the last."""
        event = read_event(line)
        if silence is not None and event:
            silence.heard(event)
        if event.get("event") == PULSE:
            return {}
        self.has_told = True
        if event.get("event") in ENDS:
            self._has_ended = True
            return event
        replay(event, observer)
        return {}

    def rest(self, observer: Observer) -> dict[str, Any]:
        """What a worker that was ended had said by then, passed on; returns its last event."""
        self._reader.join(GRACE_S)
        with suppress(queue.Empty):
            while (line := self._lines.get_nowait()) is not None:
                if event := self._take(line, observer, None):
                    return event
        return {}

    def innermost(self) -> str | None:
        """Where its main thread stands, if that can be told."""
        if self._stacks is None or not hasattr(signal, "SIGUSR1") or self.process.poll() is not None:
            return None
        self.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + DUMP_S
        while time.monotonic() < deadline:
            time.sleep(DUMP_S / 20)
            if found := innermost(self._stacks.read_text(encoding="utf-8", errors="replace")):
                return found
        return None

    def interrupt(self) -> None:
        """What Ctrl-C does in a process of its own."""
        if not self._has_ended:
            self._send("interrupt")

    def ask_to_stop(self) -> None:
        """What SIGTERM does: the state is saved, and the worker leaves."""
        self._send(STOP.decode("ascii"))

    def wait(self, patience_s: float = GRACE_S) -> int:
        """Its exit code. A process that has said how it ended need not hang afterwards."""
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
        try:
            return self.process.wait(KILL_S)
        except subprocess.TimeoutExpired:
            self._is_held = True
            return -signal.SIGTERM

    def stop(self, patience_s: float) -> bool:
        """End it if it still runs, and let go of the pipes; whether it has ended."""
        if self.process.poll() is None and not self._is_held:
            self.process.terminate()
            self.wait(patience_s)
        has_ended = self.process.poll() is not None
        self._reader.join(GRACE_S if has_ended else 0)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            if pipe is self.process.stdin or not self._reader.is_alive():
                pipe.close()
        if self._stacks is not None:
            self._stacks.unlink(missing_ok=True)
        return has_ended

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        # One that has ended reads nothing, its exit code says why. Unbuffered: a signal handler calls this.
        with suppress(BrokenPipeError):
            os.write(self.process.stdin.fileno(), line.encode("ascii") + b"\n")


def environment() -> dict[str, str]:
    """For a process that imports from where this one does, and not from the folder it happens to start in."""
    found = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return {**os.environ, "PYTHONPATH": found, "PYTHONSAFEPATH": "1"}
