"""Training in a process of its own, started again from the last committed state should it die.

A CUDA context that a failed kernel has poisoned, memory that does not come back, the system's out-of-memory
killer: none of these can be mended from inside. So a worker (``snugtune/worker.py``) trains, and this
process, which imports no torch and holds nothing on the card, watches it. The reasons for its ways are in
``decisions/0008-supervisor.md``.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from snugtune import errors
from snugtune.config import FitConfig
from snugtune.course import Course, Place
from snugtune.errors import (
    DEVICE,
    MEMORY,
    NUMBERS,
    RestartNeededError,
    RunInterruptedError,
    SnugtuneError,
    TrainingError,
)
from snugtune.faults import is_of_a_kernel
from snugtune.progress import Observer, Together
from snugtune.silence import Silence, usage_of
from snugtune.train.recovery import (
    CAUTION,
    HALF_BATCHES,
    ON_CPU,
    Committed,
    Recovery,
    newest_committed,
    states_folder,
)
from snugtune.train.standing import attempted, clear_states, prepare, tell_what_is_kept, was_interrupted
from snugtune.units import duration, gib
from snugtune.way_back import LEAST_LEFT_S, WayBack
from snugtune.worker import PULSE_S, TOLD_TO_STOP, grace_s
from snugtune.worker_process import WorkerProcess

if TYPE_CHECKING:
    from snugtune.train.group import Group

COMMAND = (sys.executable, "-m", "snugtune.worker")

WAIT_S = (1.0, 5.0, 30.0)
"""Before each further degree of caution: another process may hold the memory, and let go of it again. The
longest wait comes before the CPU, which costs more time than any wait."""

LOOK_S = 1.0
"""Between two looks at a worker that says nothing."""

MOST_ON_CPU_S = 86_400.0
"""What is left may take so long on the CPU where the card fails: who waits for days would rather know."""

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


HANG, DEATH, WAY_BACK = "hang", "death", "way back"
"""Why a new worker is started, beside what workers themselves give as a reason (``RestartNeededError``)."""


@dataclass(frozen=True)
class _Outcome:
    """How a worker ended: the last event it sent (empty if none), its exit code, and whether it had begun."""

    end: dict[str, Any]
    returncode: int
    had_begun: bool


@dataclass(frozen=True)
class _Reason:
    """Why a new worker is started: its ``kind`` and a sentence."""

    kind: str
    told: str


class Supervisor:
    """One run: starts workers until one of them is done.

    Args:
        config, out, overwrite, observer: as for ``fit``.
        command: what starts a worker.
        sleep: waits so many seconds.
        history: what happened to the run before, a sentence each.
        silence: tells when a worker hangs.
        way_back: tells when a run that lacked memory on the card may try it again.
        look_s: between two looks at a worker, and what it tells of itself meanwhile.
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
        silence: Silence | None = None,
        way_back: WayBack | None = None,
        look_s: float = LOOK_S,
    ) -> None:
        self.config, self.out, self.overwrite, self.observer = config, Path(out), overwrite, observer
        self.command, self.sleep = command, sleep
        self.states = states_folder(out)
        self.recovery = Recovery(self.states, history=history, watched=True)
        self._silence, self._way_back = silence or Silence(), way_back or WayBack()
        self._look_s, self._course = look_s, Course()
        self._fault: tuple[_Reason, Place] | None = None
        # Why the run is on the CPU, whether it is on the card for a try, and what it was called back by.
        self._on_cpu_for: _Reason | None = None
        self._is_trial, self._way_back_told = False, ""
        self._found = newest_committed(self.states)
        self._worker: WorkerProcess | None = None
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
            outcome = self._train(before)
            if outcome.end.get("event") == "done":
                return
            reason = self._reason_to_restart(outcome)
            if reason.kind == WAY_BACK:
                self._is_trial = True
                self._way_back.taken()
                self._restart(reason, HALF_BATCHES)
            elif reason.kind == NUMBERS and not self.recovery.float32:
                self._restart(reason, self.recovery.caution, float32=True)
            else:
                self._prepare_restart(reason, before)

    def _train(self, before: Committed | None) -> _Outcome:
        """Run one worker to its end."""
        with self._interrupts_ignored():
            # A Ctrl-C that is ignored here is ignored by the worker from its first moment on.
            self._worker = WorkerProcess(self.command, self._job(), on_cpu=self._is_on_cpu)
        worker = self._worker
        self._course.begin()
        self._silence.begin(lambda: usage_of(worker.process.pid))
        self._way_back_told = ""
        listener = Together(self.observer, self._course)
        try:
            end = worker.replay(listener, self._silence, lambda: self._look(worker, before), self._look_s)
            if self._silence.hangs and not end:
                end = self._give_up(worker, listener)
            return _Outcome(end, worker.wait(), worker.has_told)
        finally:
            self._worker = None
            worker.stop(grace_s(self.states))

    @property
    def _is_on_cpu(self) -> bool:
        return self.recovery.caution == ON_CPU

    def _give_up(self, worker: WorkerProcess, listener: Observer) -> dict[str, Any]:
        """End a worker that hangs; returns its last event after all, or one that tells of the silence.

        Raises:
            TrainingError: it cannot be ended.
        """
        silence, stands = self._silence, worker.innermost()
        told = (
            f"The training process has got no further for {duration(silence.seconds)}"
            + (f" in the phase {silence.phase}" if silence.phase else "")
            + (f", after no more than {duration(silence.longest_s)} before" if silence.longest_s else "")
            + (f"; it stood in {stands}" if stands else "")
            + ". It was ended."
        )
        silence.given_up()
        # Should it have been at work after all, it saves its state and leaves: nothing is lost but the time.
        if not worker.stop(grace_s(self.states)):
            raise TrainingError(
                f"{told.removesuffix(' It was ended.')} It cannot be ended either, as where a call into a "
                "driver never returns: restart the machine, and give the same command again."
            )
        return worker.rest(listener) or {"event": "restart", "kind": HANG, "message": told}

    def _look(self, worker: WorkerProcess, before: Committed | None) -> None:
        """Once in a while: is the way that the run goes on still a good one?

        Raises:
            TrainingError: the card fails, and on the CPU it would take too long.
        """
        if not self._is_on_cpu or self._on_cpu_for is None:
            return
        if self._on_cpu_for.kind == MEMORY:
            self._look_for_way_back(worker, before)
        elif self._on_cpu_for.kind in (DEVICE, HANG):
            self._check_time_on_cpu(self._on_cpu_for)

    def _look_for_way_back(self, worker: WorkerProcess, before: Committed | None) -> None:
        left_s = self._course.left_s()
        # A state of this worker's is there: the disk takes one on the way out as well.
        if self._way_back_told or left_s is None or left_s < LEAST_LEFT_S:
            return
        if _is_progress(before, newest_committed(self.states)) and (free := self._way_back.found_bytes()):
            self._way_back_told = f"The card has {gib(free):.1f} GiB free again."
            worker.ask_to_stop()

    def _check_time_on_cpu(self, reason: _Reason) -> None:
        quote, self._course.quote = self._course.quote, None
        if quote is None:
            return
        newest = newest_committed(self.states)
        share = 1.0 if newest is None or not self._course.steps else 1 - newest.step / self._course.steps
        left_s = share * quote.train_s + quote.after_s
        if left_s > MOST_ON_CPU_S:
            raise TrainingError(
                f"{reason.told} On the CPU, the rest would take about {left_s / 86_400:.1f} days, so "
                "training ends here; update PyTorch and the driver, or try another card."
            )

    def _job(self) -> dict[str, Any]:
        return {
            # What was left open stays so: some settings mean another thing when they are given.
            "config": self.config.model_dump(mode="json", exclude_unset=True),
            "out": str(self.out),
            "overwrite": self.overwrite,
            "recovery": self.recovery.to_json(),
            "pulse_s": PULSE_S * self._look_s / LOOK_S,
        }

    def _reason_to_restart(self, outcome: _Outcome) -> _Reason:
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
        if self._way_back_told and outcome.returncode in (TOLD_TO_STOP, -signal.SIGTERM):
            return _Reason(WAY_BACK, self._way_back_told)
        if end.get("message"):
            return _Reason(str(end.get("kind", MEMORY)), str(end["message"]))
        kind = MEMORY if outcome.returncode == RestartNeededError.exit_code else DEATH
        return _Reason(kind, _death(outcome))

    def _prepare_restart(self, reason: _Reason, before: Committed | None) -> None:
        """Decide how careful the next worker is, and start it so.

        Raises:
            TrainingError: nothing is left to try.
        """
        caution, wait = self.recovery.caution, 0.0
        is_again, is_trial = self._comes_again(reason), self._is_trial
        if self._course.plan is not None and not self._is_on_cpu:
            # The last one is made for the least memory, and with every lever.
            self._way_back.peak_gib = self._course.plan.peak_gib
        if _is_progress(before, newest_committed(self.states)):
            self._is_trial = False
        elif caution == ON_CPU:
            advice = " Free some memory, shorten the texts (max_length), or take a smaller model."
            raise TrainingError(
                f"Training gets no further, whatever is tried; the last time, {CAUTION[caution]}: "
                f"{reason.told}{advice if reason.kind in (MEMORY, DEATH) else ''}"
            )
        elif is_again:
            # Smaller micro-batches have been tried by now.
            reason = replace(reason, told=f"{reason.told} It is the same at the same place as before, so it "
                             "would come there again.")  # fmt: skip
            caution = ON_CPU
        elif is_trial:
            caution = ON_CPU
        else:
            wait = WAIT_S[caution]
            caution += 1
        if caution == ON_CPU and not self._is_on_cpu:
            self._on_cpu_for, self._is_trial = reason, False
            self._way_back.failed()
        self._restart(reason, caution, wait)

    def _comes_again(self, reason: _Reason) -> bool:
        """Whether this fault has been met at this place before, and does not depend on the micro-batches."""
        before, place = self._fault, self._course.place
        may_repeat = reason.kind == HANG or (reason.kind == DEVICE and is_of_a_kernel(reason.told))
        self._fault = (reason, place) if may_repeat else None
        if not may_repeat or before is None or self.recovery.caution < HALF_BATCHES:
            return False
        is_alike = before[0].kind == reason.kind and (reason.kind == HANG or before[0].told == reason.told)
        return is_alike and before[1].is_near(place)

    def _restart(self, reason: _Reason, caution: int, wait: float = 0.0, *, float32: bool = False) -> None:
        """Tell of the next worker, and wait if that may help."""
        after, float32 = newest_committed(self.states), float32 or self.recovery.float32
        start = "the beginning" if after is None else f"step {after.step}"
        how = CAUTION[caution] + (" and in float32" if float32 and not self.recovery.float32 else "")
        self.observer.say(
            f"{reason.told} A new process goes on from {start}, {how}"
            + (f", in {wait:.0f} s." if wait else ".")
        )
        self.recovery = Recovery(
            self.states,
            self.recovery.restarts + 1,
            caution,
            (*self.recovery.history, f"From {start}, {how}: {reason.told}"),
            time.perf_counter() - self._began + wait,
            watched=True,
            float32=float32,
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
