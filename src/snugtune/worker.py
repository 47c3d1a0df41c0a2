"""The process that trains for a supervisor: ``python -m snugtune.worker``.

The first line of standard input is the job as JSON. After it, a line ``interrupt`` stands for Ctrl-C,
``stop`` for SIGTERM, and the end of input means that the supervisor is gone. Standard output carries what
``snugtune.relay`` describes; what libraries print goes to standard error. SIGUSR1, where there is one, writes
where every thread stands into the file ``stacks`` of the job.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, NoReturn

from snugtune.config import make_config
from snugtune.errors import DEVICE, MEMORY, RestartNeededError, RunInterruptedError, SnugtuneError
from snugtune.faults import is_out_of_memory, is_poisoned
from snugtune.relay import RelayObserver
from snugtune.train.recovery import Recovery, newest_committed

TOLD_TO_STOP = 128 + signal.SIGTERM

GRACE_S = 10.0
"""For removing unfinished files, before the process is ended the hard way."""

STATE_BYTES_PER_S = 50e6
"""At least so fast a disk takes the state that is saved on the way out."""

_LOOK_S = 1.0

PULSE_S = 5.0
"""Between two lines that say what the device does."""

STOP = b"stop"
"""The line that asks for what SIGTERM does: the step in hand is finished and the state saved."""

Fit = Callable[..., Path]


def main(fit: Fit | None = None) -> NoReturn:
    """Do the job that standard input holds.

    Args:
        fit: what to call in the place of ``snugtune.fit.fit``.
    """
    interrupts = _Interrupts()
    signal.signal(signal.SIGTERM, _stop)
    # A terminal that is closed tells all of its processes; nohup has let them ignore it.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _stop)
    control, events = _take_standard_streams()
    job = json.loads(control.readline() or b"null")
    if job is None:
        sys.exit(TOLD_TO_STOP)
    states = Recovery.from_json(job["recovery"]).states
    threading.Thread(target=_watch, args=(control, interrupts, states), daemon=True).start()
    threading.Thread(target=_pulse, args=(events, job.get("pulse_s", PULSE_S)), daemon=True).start()
    if job.get("stacks") is not None:
        _dump_stacks_when_asked(job["stacks"])
    sys.exit(_run(job, events, fit))


def grace_s(states: Path) -> float:
    """Seconds for a process that was told to stop: one state like those in the folder is written."""
    newest = newest_committed(states)
    return GRACE_S + (0 if newest is None else newest.size_bytes) / STATE_BYTES_PER_S


def _run(job: dict[str, Any], events: RelayObserver, fit: Fit | None) -> int:
    """Call ``fit``, tell how it ended, and return the exit code."""
    try:
        (fit or _fit_of_the_package())(
            make_config(job["config"]),
            Path(job["out"]),
            overwrite=job["overwrite"],
            observer=events,
            recovery=Recovery.from_json(job["recovery"]),
        )
    except RestartNeededError as error:
        events.send("restart", message=str(error), kind=error.kind)
        return RestartNeededError.exit_code
    except SnugtuneError as error:
        events.send("error", type=type(error).__name__, message=str(error))
        return error.exit_code
    except KeyboardInterrupt:
        events.send("interrupted")
        return RunInterruptedError.exit_code
    except Exception as error:
        if _is_want_of_memory(error):
            first_line = str(error).partition("\n")[0]
            what, kind = ("The device is lost", DEVICE) if is_poisoned(error) else ("Memory ran out", MEMORY)
            events.send("restart", message=f"{what} ({first_line[:200]}).", kind=kind)
            return RestartNeededError.exit_code
        events.send("crash", traceback=traceback.format_exc())
        return 1
    # The run is complete; Ctrl-C comes too late to change that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    events.send("done")
    return 0


def _fit_of_the_package() -> Fit:
    from snugtune.quiet import quiet_libraries

    quiet_libraries()
    from snugtune.fit import fit

    return fit


def _is_want_of_memory(error: Exception) -> bool:
    """Whether memory ran out, or the device was lost, where nothing guards against it."""
    return is_out_of_memory(error) or is_poisoned(error)


def _take_standard_streams() -> tuple[FileIO, RelayObserver]:
    """Keep both for ourselves; whatever runs here reads nothing, and prints to standard error."""
    # Duplicates are not inherited: a child of ours cannot hold the supervisor's pipe open.
    control, events = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    # Unbuffered, so that what follows the job stays in the pipe for the one who watches it.
    return FileIO(control), RelayObserver(events)


class _Interrupts:
    """Ctrl-C counts when the supervisor passes it on: a terminal sends it to both of us."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGINT, self._handle)

    def ask(self) -> None:
        """Interrupt the main thread."""
        self._asked = True
        _signal_main_thread(signal.SIGINT)

    def _handle(self, *_: Any) -> None:
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt


def _stop(*_: Any) -> NoReturn:
    # Unlike the signal's own way, this lets unfinished folders be removed.
    sys.exit(TOLD_TO_STOP)


def _watch(control: FileIO, interrupts: _Interrupts, states: Path) -> None:
    """Pass interrupts on; end the process when the supervisor is gone, so that no orphan trains on."""
    supervisor = os.getppid()
    while True:
        # A process forked from the supervisor may hold the pipe open. Windows cannot wait for a pipe so.
        while os.name != "nt" and not select.select([control], [], [], _LOOK_S)[0]:
            if os.getppid() != supervisor:
                _end(states)
        line = control.readline()
        if not line:
            _end(states)
        if line.strip() == STOP:
            _signal_main_thread(signal.SIGTERM)
        else:
            interrupts.ask()


def _pulse(events: RelayObserver, interval_s: float) -> None:
    """Tell for ever what the device does: also while the main thread waits for it, or for a disk."""
    while True:
        time.sleep(interval_s)
        events.pulse()


def _dump_stacks_when_asked(path: str) -> None:
    """A handler below Python's, which also runs while a call into a driver does not return."""
    if hasattr(faulthandler, "register"):
        with suppress(OSError):
            file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115 - it is written to until the end
            faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)


def _end(states: Path) -> NoReturn:
    _signal_main_thread(signal.SIGTERM)
    time.sleep(grace_s(states))
    os._exit(TOLD_TO_STOP)


def _signal_main_thread(number: signal.Signals) -> None:
    if hasattr(signal, "pthread_kill"):
        # A real signal also ends a call that waits.
        main_thread = threading.main_thread().ident
        assert main_thread is not None
        signal.pthread_kill(main_thread, number)
    else:
        signal.raise_signal(number)


if __name__ == "__main__":
    main()
