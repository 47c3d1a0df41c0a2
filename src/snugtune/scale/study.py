"""What the processes of a search share: Optuna's journal, and the trials that were begun.

All of it lies in the search's folder. Optuna's own heartbeat needs a database, so a trial holds a lock of the
operating system for as long as its process lives: whoever can take the lock of a trial that runs knows that
its process is gone. The trial is given back then, and the next one goes on from its committed state.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from snugtune.errors import UserInputError
from snugtune.methods import MethodName
from snugtune.scale.space import EPOCHS, METHOD, Dimension, Space, Value
from snugtune.train.recovery import states_folder

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

JOURNAL, TRIALS = "study.journal", "trials"

BEGUN, RESULT = "begun", "result"
"""What is noted of a trial when it begins and when it ends: each a single line of the journal."""

RETRIES = 2
"""How often a trial whose process died is begun again; what kills three processes kills a fourth."""

DRAWS = 20
"""How often the sampler is asked for a trial that there is room for."""

RANDOM_TRIALS = 8
"""Before the sampler learns from the ones before."""

UNPRUNED_TRIALS, PRUNED_BY = 4, 3
"""Trials that must be complete before one is pruned, and how many of them must have got as far."""

LEAST_FOR_IMPORTANCE = 10
"""Complete trials; Optuna advises at least five in the better part of them."""

SIGN_EVERY_S = 5.0
"""How often a trial that runs shows when it did last, for the time it took should it be killed."""

STEPS = 10
"""A whole training, in the steps that scores are entered at: trials of 2 and of 7 epochs are compared where
their learning rates have come down as far. Few of their looks fall on the same share of a training, so
between two of them scores are taken to change evenly."""

Fits = Callable[[MethodName, float], bool]
"""Whether there is room for a trial of that method and so many epochs."""


@dataclass
class Trial:
    """A trial that this process runs: its ``values`` by name of dimension, and its lock.

    ``out`` is where a fit of it writes, ``earlier_s`` what processes took that died of it.
    """

    number: int
    method: MethodName
    values: dict[str, Value]
    out: Path
    earlier_s: float
    is_default: bool
    asked: optuna.Trial
    lock: FileLock
    last: tuple[float, float] | None = None
    signed_at: float = 0.0

    def report(self, share: float, score: float) -> bool:
        """Enter the score of a look after this ``share`` of training; whether the trial should end here."""
        share = min(share, 1.0)
        before, self.last = self.last, (share, score)
        for step, value in steps_between(before, self.last):
            self.asked.report(value, step)
        return share < 1.0 and not self.is_default and self.asked.should_prune()

    def show_sign(self) -> None:
        """Note that its process is alive."""
        if time.monotonic() - self.signed_at >= SIGN_EVERY_S:
            self.signed_at = time.monotonic()
            with suppress(OSError):
                os.utime(self.lock.lock_file)


def steps_between(
    before: tuple[float, float] | None, now: tuple[float, float]
) -> Iterator[tuple[int, float]]:
    """The steps that training has passed since the look ``before``, with the scores there.

    Looks are a share of training and a score. The first one counts for the step it has passed last.
    """
    (share, score), newest = now, math.floor(STEPS * now[0] + 1e-9)
    if before is None:
        if newest:
            yield newest, score
        return
    for step in range(math.floor(STEPS * before[0] + 1e-9) + 1, newest + 1):
        weight = (step / STEPS - before[0]) / (share - before[0])
        yield step, before[1] + weight * (score - before[1])


class Study:
    """The study of the search in ``folder``; ``open_study`` makes it."""

    def __init__(self, folder: Path, study: optuna.Study, *, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self._study = study
        self.lock = FileLock(folder / ".study.lock")
        """Of what decides who does what; held for moments."""

    def note(self, key: str) -> Any:
        """What was noted under ``key``; None if nothing."""
        return self._study.user_attrs.get(key)

    def put(self, key: str, value: Any) -> None:
        """Note a JSON-ready ``value``."""
        self._study.set_user_attr(key, value)

    def enqueue(self, point: Mapping[str, Value], **notes: Any) -> None:
        """Try ``point`` before anything that the sampler thinks of."""
        with _quiet():
            self._study.enqueue_trial(dict(point), user_attrs={**notes, "queued": dict(point)})

    def trials(self) -> list[FrozenTrial]:
        """All there are, those that wait to be begun too."""
        return self._study.get_trials(deepcopy=False)

    def of_state(self, *names: str) -> list[FrozenTrial]:
        """The trials in one of these states, by Optuna's names."""
        return [one for one in self.trials() if one.state.name in names]

    def begin(self, space: Space, most: int, fits: Fits) -> Trial | None:
        """The next trial, if fewer than ``most`` were begun and there is room for one.

        Trials whose processes died are given back first.
        """
        with self.lock, _quiet():
            self._give_back_abandoned()
            for _ in range(DRAWS):
                begun = counted(self.trials())
                if begun >= most or not any(fits(method, 1) for method in space.methods):
                    return None
                # One sampler for each trial: what it draws depends on the seed and the trial alone.
                self._study.sampler = _sampler(self.seed + len(self.trials()))
                asked = self._study.ask()
                found = suggest(asked, space, epochs_cap(space, begun, most), fits)
                if found is not None:
                    return self._begun(asked, *found)
                asked.set_user_attr("skipped", True)
                self._tell(asked.number, "FAIL")
        return None

    def _begun(self, asked: optuna.Trial, method: MethodName, values: dict[str, Value]) -> Trial:
        lock = self._lock_of(asked.number)
        lock.acquire(timeout=0)
        asked.set_user_attr(BEGUN, {"began": time.time(), "method": method, "values": values})
        out, notes = self.out_of(asked.number), asked.user_attrs
        if (before := notes.get("goes_on_from")) is not None:
            _take_over(self.out_of(before), out)
        return Trial(
            asked.number, method, values, out, float(notes.get("spent_s", 0.0)), bool(notes.get("default")),
            asked, lock,
        )  # fmt: skip

    def out_of(self, number: int) -> Path:
        """Where the fit of a trial would write its run."""
        return self.folder / TRIALS / f"{number:03d}"

    def end(self, trial: Trial, state: str, score: float | None, notes: Mapping[str, Any]) -> None:
        """``trial`` is ``COMPLETE`` with a ``score``, ``PRUNED`` or ``FAIL``; ``notes`` are kept with it.

        The ``score`` is what the sampler learns from, that in the notes is the trial's.
        """
        trial.asked.set_user_attr(RESULT, {**notes, "ended": time.time()})
        with _quiet():
            self._tell(trial.number, state, score)
        self.let_go(trial)

    def let_go(self, trial: Trial) -> None:
        """Do no more for ``trial`` in this process; if it has not ended, it is given back."""
        trial.lock.release()

    def waits_for_others(self) -> bool:
        """Whether a living process runs a trial; those of dead ones are given back."""
        with self.lock:
            self._give_back_abandoned()
            return bool(self.of_state("RUNNING"))

    def _give_back_abandoned(self) -> None:
        """Trials that nobody runs any more fail, and are begun again."""
        for one in self.of_state("RUNNING"):
            lock = self._lock_of(one.number)
            ended = _last_sign(Path(lock.lock_file), one)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                # It may have ended just now, which is entered before its lock is let go.
                if any(still.number == one.number for still in self.of_state("RUNNING")):
                    self._tell(one.number, "FAIL")
                    self._retry(one, ended)
            finally:
                lock.release()

    def _retry(self, one: FrozenTrial, ended: float) -> None:
        known = notes_of(one)
        retries = known.get("retries", 0)
        if retries >= RETRIES:
            return
        earlier = [*known.get("earlier", []), [known.get("began", ended), ended]]
        notes = {
            "goes_on_from": one.number, "retries": retries + 1, "earlier": earlier,
            "spent_s": sum(end - start for start, end in earlier),
        }  # fmt: skip
        if known.get("default"):
            notes["default"] = True
        self.enqueue({**known.get("queued", {}), **one.params}, **notes)

    def importances(self) -> dict[str, float]:
        """What share of the differences in score each dimension explains (PED-ANOVA, Watanabe et al. 2023,
        arXiv:2304.10255, as Optuna has it); empty where there are too few trials to tell.
        """
        from optuna.importance import get_param_importances

        if len(completed(self.trials())) < LEAST_FOR_IMPORTANCE:
            return {}
        with _quiet():
            try:
                found = get_param_importances(self._study)
            except (ValueError, RuntimeError):  # every score is the same
                return {}
        return {name: float(value) for name, value in found.items()}

    def _tell(self, number: int, state: str, score: float | None = None) -> None:
        from optuna.trial import TrialState

        self._study.tell(number, score, state=TrialState[state])

    def forget_lock(self, number: int) -> None:
        """Remove the lock of a trial that has ended, which nobody asks for any more. Under the lock."""
        with suppress(OSError):
            Path(self._lock_of(number).lock_file).unlink()

    def _lock_of(self, number: int) -> FileLock:
        out = self.out_of(number)
        return FileLock(out.with_name(f".{out.name}.lock"))


def completed(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those with a score, the best first: ties go to the lower log loss, then to the cheaper one."""
    found = [one for one in trials if one.state.name == "COMPLETE"]
    return sorted(found, key=_rank)


def _rank(one: FrozenTrial) -> tuple[float, float, float]:
    notes = notes_of(one)
    return -notes["score"], notes["log_loss"], notes["seconds"]


def notes_of(one: FrozenTrial) -> dict[str, Any]:
    """Everything that was noted of a trial, when it was put into the queue, began and ended."""
    notes = dict(one.user_attrs)
    return {**notes, **notes.pop(BEGUN, {}), **notes.pop(RESULT, {})}


def counted(trials: Sequence[FrozenTrial]) -> int:
    """How many trials were begun, one that was begun again being one."""
    return sum(
        1
        for one in trials
        if one.state.name in ("RUNNING", "COMPLETE", "PRUNED") or (one.state.name == "FAIL" and is_final(one))
    )


def is_final(failed: FrozenTrial) -> bool:
    """Whether a failed trial is not begun again."""
    notes = notes_of(failed)
    return "skipped" not in notes and ("error" in notes or notes.get("retries", 0) >= RETRIES)


def busy_s(trials: Sequence[FrozenTrial], now: float) -> float:
    """Seconds in which at least one of the trials ran: what the machine was needed for, and is paid for.

    Each begins at ``began`` (Unix time) and runs until ``ended``, or still; so do the processes before it.
    """
    spans: list[tuple[float, float]] = []
    for one in trials:
        notes = notes_of(one)
        if "began" in notes and ("ended" in notes or one.state.name == "RUNNING"):
            spans.append((notes["began"], notes.get("ended", now)))
        spans += [(began, ended) for began, ended in notes.get("earlier", ())]
    total, until = 0.0, -float("inf")
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


def epochs_cap(space: Space, begun: int, most: int) -> int:
    """The most epochs of a trial that the sampler draws: short ones first, the longest last.

    Up to half the default in the first third of the trials, up to the default in the second.
    """
    one = next((found[EPOCHS] for found in space.dimensions.values() if EPOCHS in found), None)
    if one is None:
        return 0
    default, third = int(one.default or 1), begun * 3 // max(most, 1)
    return (max(1, default // 2), default, int(one.high))[min(third, 2)]


def suggest(
    asked: optuna.Trial, space: Space, cap: int, fits: Fits
) -> tuple[MethodName, dict[str, Value]] | None:
    """Method and values of a trial, as the sampler likes; None if there is no room for it.

    ``cap`` is the most epochs of what was not put into the queue.
    """
    methods = space.methods
    queued = asked.user_attrs.get("queued", {})
    method: Any = methods[0] if len(methods) == 1 else asked.suggest_categorical(METHOD, list(methods))
    values: dict[str, Value] = {}
    for name, one in space.dimensions[method].items():
        label = space.label(method, name)
        if name == EPOCHS:
            found = _suggest_epochs(asked, one, queued.get(label), cap, lambda n: fits(method, n))
            if found is None:
                return None
            values[name] = found
        else:
            values[name] = _suggest(asked, label, one)
    has_room = EPOCHS in values or fits(method, float(space.given.get(EPOCHS, 0)))
    return (method, values) if has_room else None


def _suggest_epochs(
    asked: optuna.Trial, one: Dimension, queued: int | None, cap: int, fits: Callable[[float], bool]
) -> int | None:
    if queued is not None:
        return asked.suggest_int(EPOCHS, 1, int(one.high)) if fits(queued) else None
    high = next((n for n in range(min(cap, int(one.high)), 0, -1) if fits(n)), None)
    return None if high is None else asked.suggest_int(EPOCHS, 1, high)


def _suggest(asked: optuna.Trial, label: str, one: Dimension) -> Value:
    if one.choices:
        chosen: Value = asked.suggest_categorical(label, list(one.choices))
        return chosen
    return asked.suggest_float(label, one.low, one.high, log=one.log)


def _take_over(before: Path, out: Path) -> None:
    """What a dead process committed of a trial at ``before`` becomes that of ``out``; the rest goes."""
    shutil.rmtree(before.with_name(f".{before.name}.partial"), ignore_errors=True)
    with suppress(OSError):
        states_folder(before).rename(states_folder(out))


def _last_sign(lock_file: Path, one: FrozenTrial) -> float:
    began = float(notes_of(one).get("began", 0.0))
    try:
        return max(began, lock_file.stat().st_mtime)
    except OSError:
        return began


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    from optuna.samplers import TPESampler

    # In groups: what belongs to one method is drawn together.
    return TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed, group=True)


def open_study(folder: Path, *, seed: int) -> Study:
    """The study in ``folder``, which is made if it is not there.

    Raises:
        UserInputError: Optuna is not installed, or the journal is damaged.
    """
    require_optuna()
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = folder / JOURNAL
    # The system's own lock: it goes with its process, where Optuna's would be waited for.
    lock = FileLock(folder / ".journal.lock")
    with lock:
        _cut_torn_line(journal)
    try:
        with _quiet():
            backend = JournalFileBackend(str(journal), lock_obj=lock)  # type: ignore[arg-type]
            study = optuna.create_study(
                storage=JournalStorage(backend), study_name="search", direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED_TRIALS, n_min_trials=PRUNED_BY),
            )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserInputError(
            f"The journal {journal} cannot be read ({type(error).__name__}); begin anew with --overwrite, "
            "or in another folder."
        ) from None
    return Study(folder, study, seed=seed)


def require_optuna() -> None:
    """Raises:
    UserInputError: it is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserInputError("A search needs Optuna; run: pip install 'snugtune[search]'.") from None


def _cut_torn_line(journal: Path) -> None:
    """What a power cut left of a line goes: whoever writes holds the lock, so nobody is writing it."""
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna warns of what is experimental and of values that are entered twice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
