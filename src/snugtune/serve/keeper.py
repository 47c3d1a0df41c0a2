"""A server in a process of its own, started again should it die; the socket stays, so clients only wait.

The system's out-of-memory killer and a CUDA context that a failed kernel has poisoned cannot be mended from
inside. This process imports neither torch nor a server and holds nothing but the socket.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from snugtune import errors
from snugtune.errors import SnugtuneError
from snugtune.progress import Observer
from snugtune.relay import read_event, replay
from snugtune.serve.server import address_of, check_extra, listen, serve_here
from snugtune.serve.settings import ServeSettings, read_key

COMMAND = (sys.executable, "-m", "snugtune.serve.worker")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Before a worker that died is replaced; doubled each time it dies soon."""

SOON_S = 60.0


SPINS = "3000"
"""Turns an OpenMP helper waits actively for the next product (libgomp's default is 300,000, some
milliseconds: on a machine with other work every wait for one that is not running takes as long)."""


class ServerDiedError(SnugtuneError):
    """The server died before it ever answered, and nobody knows why."""


def serve(settings: ServeSettings, *, observer: Observer | None = None, supervised: bool = True) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what was taken on.

    Args:
        settings: what, where, to whom.
        observer: is told of everything that happens.
        supervised: in a process of its own, which is replaced if it dies (not on Windows).

    Raises:
        UserInputError: a setting is wrong, the ``serve`` extra is missing, or a run cannot be loaded.
        ServerDiedError: the process died before it was ready.
    """
    observer = observer or Observer()
    if not supervised or os.name != "posix":
        serve_here(settings, observer=observer)
        return
    settings.limits.check()
    read_key(settings, os.environ)
    check_extra()
    with listen(settings) as listening:
        Keeper(settings, listening, observer).run()


class Keeper:
    """Starts workers until one ends because it was told to.

    Args:
        settings, listening, observer: as for ``serve``.
        command: what starts a worker.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        settings: ServeSettings,
        listening: socket.socket,
        observer: Observer,
        *,
        command: Sequence[str] = COMMAND,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings, self._listening, self._observer = settings, listening, observer
        self._command, self._sleep = command, sleep
        self._worker: subprocess.Popen[bytes] | None = None
        self._stops = 0

    def run(self) -> None:
        """Keep a server alive. Raises as ``serve`` does."""
        wait_s, was_ready = FIRST_WAIT_S, False
        with self._signals():
            while not self._stops:
                began = time.monotonic()
                end, ready, code = self._serve_once()
                was_ready = was_ready or ready
                if self._stops or end.get("event") == "done":
                    return
                if end.get("event") == "error" and not was_ready:
                    raise _error(end)
                if not was_ready:
                    raise ServerDiedError(f"The server died before it was ready ({_how(code)}).")
                wait_s = (
                    FIRST_WAIT_S if time.monotonic() - began > SOON_S else min(2 * wait_s, LONGEST_WAIT_S)
                )
                why = end.get("message") or _how(code)
                self._observer.say(f"The server died ({why}); the next one starts in {wait_s:g} s.")
                self._sleep(wait_s)

    def _serve_once(self) -> tuple[dict[str, Any], bool, int]:
        """Run one worker to its end: its last word, whether it ever served, and its exit code."""
        worker = self._worker = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._listening.fileno(),),
            env=worker_environment(os.environ),
            start_new_session=True,  # Ctrl-C is for the keeper, who passes it on once
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        job = {"settings": self._settings.as_json(), "socket": self._listening.fileno()}
        try:
            with suppress(BrokenPipeError):
                worker.stdin.write(json.dumps(job).encode() + b"\n")
                worker.stdin.flush()
            if self._stops:
                self._pass_on(worker)
            end: dict[str, Any] = {}
            ready, where = False, address_of(self._listening)
            for line in worker.stdout:
                event = read_event(line)
                replay(event, self._observer)
                ready = ready or (event.get("event") == "say" and where in str(event["arguments"]))
                end = event if event.get("event") in ("done", "error") else end
            return end, ready, worker.wait()
        finally:
            self._worker = None
            worker.stdin.close()
            worker.stdout.close()
            if worker.poll() is None:
                worker.kill()
            worker.wait()

    def _pass_on(self, worker: subprocess.Popen[bytes]) -> None:
        with suppress(ProcessLookupError):
            worker.send_signal(signal.SIGTERM if self._stops < 3 else signal.SIGKILL)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C go to the worker; a third one ends it the hard way."""

        def on_signal(_number: int, _frame: Any) -> None:
            self._stops += 1
            if self._worker is not None:
                self._pass_on(self._worker)

        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` with a bound on how long OpenMP helpers wait actively, unless it has one."""
    told = any(name in environment for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"))
    return {**environment} if told else {**environment, "GOMP_SPINCOUNT": SPINS}


def _error(end: dict[str, Any]) -> SnugtuneError:
    kind = getattr(errors, str(end.get("type")), SnugtuneError)
    found: SnugtuneError = kind(end.get("message"))
    return found


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
