"""Training in a process of its own, started again from the last committed state should it die.

A CUDA context that a failed kernel has poisoned, memory that does not come back, the system's out-of-memory
killer: none of these can be mended from inside. So a worker (``snugtune/worker.py``) trains, and this
process, which imports no torch and holds nothing on the card, watches it. The reasons for its ways are in
``decisions/0008-supervisor.md``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from snugtune import errors
from snugtune.config import FitConfig
from snugtune.errors import RestartNeededError, RunInterruptedError, SnugtuneError, TrainingError
from snugtune.progress import Observer
from snugtune.relay import ENDS, read_event, replay
from snugtune.train.recovery import (
    CAUTION,
    ON_CPU,
    Committed,
    Recovery,
    newest_committed,
    states_folder,
)
from snugtune.train.standing import attempted, clear_states, prepare, tell_what_is_kept, was_interrupted
from snugtune.worker import GRACE_S, TOLD_TO_STOP, grace_s

if TYPE_CHECKING:
    from snugtune.train.group import Group

COMMAND = (sys.executable, "-m", "snugtune.worker")

WAIT_S = (1.0, 5.0, 30.0)
"""Before each further degree of caution: another process may hold the memory, and let go of it again. The
longest wait comes before the CPU, which costs more time than any wait."""

PRESSES_TO_KILL = 3
"""Ctrl-C once keeps what was learned, twice gives it up, and a third time does not ask any more."""

STOPPED_BY_SOMEONE = {signal.SIGINT, signal.SIGTERM} | {
    getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name)
}
"""Signals that people and job schedulers send; after any other the worker is started again."""


def fit(
    config: FitConfig,
    out: str | Path,
    *,
    overwrite: bool = False,
    observer: Observer | None = None,
    supervised: bool | None = None,
    resume: bool | None = None,
    trained_as: str | None = None,
    group: Group | None = None,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Path:
    """Train a classifier as ``config`` says and write the run folder ``out``; returns its path.

    Nothing appears at ``out`` before the run is complete, and a run that was there stays until then.

    Args:
        config: all settings, from ``make_config``.
        out: the folder to write.
        overwrite: replace the run that is there.
        observer: is told of everything that happens.
        supervised: train in a process of its own, which is started again from its last committed state if
            it dies; by default where there is a GPU.
        resume: ``.NAME.states`` beside ``out`` holds committed states until the run is complete. If it ends
            otherwise, or by Ctrl-C, they stay and the same call goes on from them. True insists on that,
            False begins anew.
        trained_as: what made the states that lie there, if not an earlier call of this kind; for the record.
        group: the processes that train together, of which this is the first (``scale/distributed.py``).
        around: is entered for the training alone, where no worker is started.

    Raises:
        UserInputError: the data, a setting or the folder cannot be used, or there is nothing to resume.
        TrainingError: the loss is not finite and nothing was learned, or workers died again and again.
        ArtifactError: the saved model does not repeat the trained one's logits in a new process.
        RunInterruptedError: Ctrl-C before anything was learned, or the worker was told to stop.
        WorkerError: an error in the worker that nobody foresaw.
    """
    out, observer = Path(out), observer or Observer()
    is_complete, overwrite = prepare(config, out, overwrite=overwrite, resume=resume, say=observer.say)
    if not is_complete:
        if has_gpu() if supervised is None else supervised:
            Supervisor(
                config,
                out,
                overwrite=overwrite,
                observer=observer,
                history=(trained_as,) if trained_as else (),
            ).run()
        else:
            _fit_here(
                config, out, overwrite=overwrite, observer=observer, trained_as=trained_as, group=group,
                around=around,
            )  # fmt: skip
    if was_interrupted(out):
        tell_what_is_kept(states_folder(out), observer.say)
    else:
        # What an earlier run of this name may have left when it broke off goes, too.
        shutil.rmtree(states_folder(out), ignore_errors=True)
    return out


def _fit_here(
    config: FitConfig,
    out: Path,
    *,
    overwrite: bool,
    observer: Observer,
    trained_as: str | None = None,
    group: Group | None = None,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Train in this process, which commits states but starts no other should it die."""
    from snugtune.fit import fit as fit_here
    from snugtune.train.group import ALONE

    group = group or ALONE
    try:
        with told_to_stop(), attempted(out, observer.say, trained_as=trained_as) as recovery, around():
            group.from_first(recovery.to_json())
            fit_here(config, out, overwrite=overwrite, observer=observer, recovery=recovery, group=group)
    except ToldToStop as stopped:
        tell_what_is_kept(states_folder(out), observer.say)
        # The handlers are as they were before, so by default this is the end of the process.
        signal.raise_signal(stopped.number)
        raise RunInterruptedError("Told to stop before the run was complete.") from None
    except BaseException:
        tell_what_is_kept(states_folder(out), observer.say)
        raise
    finally:
        clear_states(out)


@contextmanager
def told_to_stop() -> Iterator[None]:
    """Inside, what job schedulers and closed terminals send lets unfinished folders be removed."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, _raise_told_to_stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_told_to_stop(number: int, _frame: Any) -> NoReturn:
    raise ToldToStop(number)


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether training will find a GPU, told without asking CUDA, which would leave its mark on this process.

    Looks for the driver's device files (NVIDIA, WSL, AMD), on Windows for its tool. To be wrong is harmless.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if sys.platform == "win32":
        return shutil.which("nvidia-smi") is not None
    return any(devices.glob("nvidia[0-9]*")) or any((devices / name).exists() for name in ("dxg", "kfd"))


class WorkerError(RuntimeError):
    """The worker ended by an error that is a fault of the program; the message holds its traceback."""


class ToldToStop(BaseException):
    """SIGTERM, or another signal of this ``number``, has arrived."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class _Outcome:
    """How a worker ended: the last event it sent (empty if none), its exit code, and whether it had begun."""

    end: dict[str, Any]
    returncode: int
    had_begun: bool


class Supervisor:
    """One run: starts workers until one of them is done.

    Args:
        config, out, overwrite, observer: as for ``fit``.
        command: what starts a worker.
        sleep: waits so many seconds.
        history: what happened to the run before, a sentence each.
    """

    def __init__(
        self,
        config: FitConfig,
        out: str | Path,
        *,
        overwrite: bool,
        observer: Observer,
        command: Sequence[str] = COMMAND,
        sleep: Callable[[float], None] = time.sleep,
        history: tuple[str, ...] = (),
    ) -> None:
        self.config, self.out, self.overwrite, self.observer = config, Path(out), overwrite, observer
        self.command, self.sleep = command, sleep
        self.states = states_folder(out)
        self.recovery = Recovery(self.states, history=history)
        self._found = newest_committed(self.states)
        self._worker: _Worker | None = None
        self._presses = 0
        self._began = time.perf_counter()

    def run(self) -> Path:
        """Train; returns the run folder. Raises as ``fit`` does."""
        try:
            with self._signals():
                self._until_done()
        except ToldToStop:
            self._tell_what_is_kept()
            # The handlers are as they were before, so by default this is the end of the process.
            signal.raise_signal(signal.SIGTERM)
            raise RunInterruptedError("Told to stop before the run was complete.") from None
        except (SnugtuneError, WorkerError, KeyboardInterrupt):
            self._tell_what_is_kept()
            raise
        finally:
            clear_states(self.out)
        if not was_interrupted(self.out):
            shutil.rmtree(self.states, ignore_errors=True)
        return self.out

    def _until_done(self) -> None:
        while True:
            before = newest_committed(self.states)
            outcome = self._train()
            if outcome.end.get("event") == "done":
                return
            reason = self._reason_to_restart(outcome)
            self._prepare_restart(reason, before)

    def _train(self) -> _Outcome:
        """Run one worker to its end."""
        with self._interrupts_ignored():
            # A Ctrl-C that is ignored here is ignored by the worker from its first moment on.
            self._worker = _Worker(self.command, self._job(), on_cpu=self.recovery.caution == ON_CPU)
        try:
            end = self._worker.replay(self.observer)
            return _Outcome(end, self._worker.wait(), self._worker.has_told)
        finally:
            worker, self._worker = self._worker, None
            worker.stop(grace_s(self.states))

    def _job(self) -> dict[str, Any]:
        return {
            # What was left open stays so: some settings mean another thing when they are given.
            "config": self.config.model_dump(mode="json", exclude_unset=True),
            "out": str(self.out),
            "overwrite": self.overwrite,
            "recovery": self.recovery.to_json(),
        }

    def _reason_to_restart(self, outcome: _Outcome) -> str:
        """Why a new worker should go on; raises what the worker raised where none should."""
        end = outcome.end
        if end.get("event") == "error":
            raise _error(end["type"], end["message"])
        if end.get("event") == "crash":
            raise WorkerError(f"The training process failed.\n{end['traceback']}")
        if end.get("event") == "interrupted":
            raise KeyboardInterrupt
        if self._presses:
            raise RunInterruptedError("Interrupted before the run was complete.")
        return str(end.get("message") or _death(outcome))

    def _prepare_restart(self, reason: str, before: Committed | None) -> None:
        """Decide how careful the next worker is, tell of it, and wait if that may help.

        Raises:
            TrainingError: nothing is left to try.
        """
        after, caution, wait = newest_committed(self.states), self.recovery.caution, 0.0
        if not _is_progress(before, after):
            if caution == ON_CPU:
                raise TrainingError(
                    f"Training gets no further, whatever is tried; the last time, {CAUTION[caution]}: "
                    f"{reason} Free some memory, shorten the texts (max_length), or take a smaller model."
                )
            wait = WAIT_S[caution]
            caution += 1
        start = "the beginning" if after is None else f"step {after.step}"
        self.observer.say(
            f"{reason} A new process goes on from {start}, {CAUTION[caution]}"
            + (f", in {wait:.0f} s." if wait else ".")
        )
        self.recovery = Recovery(
            self.states,
            self.recovery.restarts + 1,
            caution,
            (*self.recovery.history, f"From {start}, {CAUTION[caution]}: {reason}"),
            time.perf_counter() - self._began + wait,
        )
        if wait:
            self.sleep(wait)

    def _tell_what_is_kept(self) -> None:
        if newest_committed(self.states) != self._found:
            tell_what_is_kept(self.states, self.observer.say)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM go to the worker first. Only a main thread can, and need, see to that."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}
        handlers = [(signal.SIGINT, self._interrupt), (signal.SIGTERM, self._told_to_stop)]
        if hasattr(signal, "SIGHUP"):  # a closed terminal
            handlers.append((signal.SIGHUP, self._told_to_stop))
        for number, handler in handlers:
            previous = signal.getsignal(number)
            # What is ignored (a background job) or handled outside of Python stays so.
            if previous not in (None, signal.SIG_IGN):
                before[number] = previous
                signal.signal(number, handler)
        try:
            yield
        finally:
            for changed, previous in before.items():
                signal.signal(changed, previous)

    @contextmanager
    def _interrupts_ignored(self) -> Iterator[None]:
        if signal.getsignal(signal.SIGINT) != self._interrupt:
            yield
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        self._presses += 1
        if self._worker is None:
            raise KeyboardInterrupt
        if self._presses >= PRESSES_TO_KILL:
            self._worker.process.kill()
            raise KeyboardInterrupt
        self._worker.interrupt()

    def _told_to_stop(self, *_: Any) -> NoReturn:
        raise ToldToStop


class _Worker:
    """The other end of ``snugtune/worker.py``."""

    def __init__(self, command: Sequence[str], job: dict[str, Any], *, on_cpu: bool = False) -> None:
        # A card that another process fills up cannot even be asked what is free.
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment() | hidden
        )
        self._has_ended = False
        self.has_told = False
        self._send(json.dumps(job))

    def replay(self, observer: Observer) -> dict[str, Any]:
        """Pass what the worker tells on to ``observer`` until it ends; returns its last event."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = read_event(line)
            self.has_told = True
            if event.get("event") in ENDS:
                self._has_ended = True
                return event
            replay(event, observer)
        return {}

    def interrupt(self) -> None:
        """What Ctrl-C does in a process of its own."""
        if not self._has_ended:
            self._send("interrupt")

    def wait(self, patience_s: float = GRACE_S) -> int:
        """Its exit code. A process that has said how it ended need not hang afterwards."""
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def stop(self, patience_s: float) -> None:
        """End it if it still runs, and let go of the pipes."""
        if self.process.poll() is None:
            self.process.terminate()
            self.wait(patience_s)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        # One that has ended reads nothing, its exit code says why. Unbuffered: a signal handler calls this.
        with suppress(BrokenPipeError):
            os.write(self.process.stdin.fileno(), line.encode("ascii") + b"\n")


def environment() -> dict[str, str]:
    """For a process that imports from where this one does, and not from the folder it happens to start in."""
    found = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return {**os.environ, "PYTHONPATH": found, "PYTHONSAFEPATH": "1"}


def _is_progress(before: Committed | None, after: Committed | None) -> bool:
    if after is None:
        return False
    # A state of another fingerprint is one that lay there before. One of step 0 is where training begins.
    is_ours = before is not None and before.fingerprint == after.fingerprint
    return after.step > (before.step if before is not None and is_ours else 0)


def _error(name: str, message: str) -> SnugtuneError:
    kind = getattr(errors, name, None)
    is_ours = isinstance(kind, type) and issubclass(kind, SnugtuneError)
    return kind(message) if is_ours else SnugtuneError(message)  # type: ignore[misc]


def _death(outcome: _Outcome) -> str:
    """What ended a worker that did not say how it ended.

    Raises:
        RunInterruptedError: someone sent it a signal.
        WorkerError: it never began.
    """
    returncode = outcome.returncode
    if returncode == RestartNeededError.exit_code:
        return "The training process could not go on."
    if returncode == TOLD_TO_STOP or -returncode in STOPPED_BY_SOMEONE:
        raise RunInterruptedError("The training process was told to stop by a signal; it has stopped.")
    if returncode < 0:
        name = _signal_name(-returncode)
        hint = ", as systems do that run out of memory" if name == "SIGKILL" else ""
        return f"The training process was killed ({name}){hint}."
    # Windows ends a process with the number of the exception, such as 0xC0000005.
    if returncode >= 0xC0000000:
        return f"The training process was killed ({returncode:#x})."
    if outcome.had_begun:
        # Code below Python's ends a process so, for one where CUDA has failed.
        return f"The training process ended with exit code {returncode} and did not say why."
    raise WorkerError(f"The training process ended with exit code {returncode} and said nothing.")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
