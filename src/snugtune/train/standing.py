"""Before a fit: is there an unfinished run of the same folder, can it be gone on with, and how did it end?

Needs no torch, so that a command says in a second what it will do.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from snugtune.config import FitConfig
from snugtune.errors import RestartNeededError, SnugtuneError, UserInputError
from snugtune.files import refuse_if_being_written, was_left_unfinished
from snugtune.train.recovery import (
    ALL_LEVERS,
    CAUTION,
    Recovery,
    differences,
    identity_of_settings,
    newest_committed,
    states_folder,
)

ATTEMPT = "attempt.json"
"""In the folder of states while a process trains that nobody watches; one that is killed leaves it behind."""

KERNEL_COUNTERS = Path("/proc/vmstat")
"""Where Linux counts, as ``oom_kill``, the processes that it ended for want of memory since it was booted."""

MIB = 2**20


def prepare(
    config: FitConfig, out: Path, *, overwrite: bool, resume: bool | None, say: Callable[[str], None]
) -> tuple[bool, bool]:
    """Look at what lies at ``out`` and beside it: (whether the run is complete, whether it may be replaced).

    A run that Ctrl-C ended early is replaced by its own continuation; one that died when it was complete is
    complete. ``resume`` set insists on going on from
    a saved state; unset (False) removes what there is; left open (None) goes on if that is possible.

    Raises:
        UserInputError: another process writes ``out`` now; ``resume`` is set and there is nothing to go on
            from, or it belongs to other settings.
    """
    refuse_if_being_written(out)
    states = states_folder(out)
    if resume is False:
        shutil.rmtree(states, ignore_errors=True)
        return False, overwrite
    record = _record(out)
    # States beside a run that is complete: the process before died in its last moments.
    asked = resume or (states.exists() and not overwrite)
    if record is not None and asked and not record["training"]["interrupted"] and _is_of(record, config):
        say(f"The run {out} is complete already.")
        return True, overwrite
    found = newest_committed(states)
    differ = [] if found is None else differences(found.identity, identity_of_settings(config))
    if resume and found is None:
        raise UserInputError(
            f"There is no saved training state of {out} to go on from; leave --resume out to begin anew."
        )
    if resume and differ:
        raise UserInputError(
            f"The training state in {states} belongs to other settings ({'; '.join(differ)}); set them as "
            "they were, or begin anew with --no-resume."
        )
    if differ:
        say(
            f"The training state in {states} belongs to other settings ({'; '.join(differ)}), so this run "
            "begins anew; the state stays until it is complete."
        )
    goes_on = found is not None and not differ
    was_interrupted = record is not None and record["training"]["interrupted"]
    return False, overwrite or (goes_on and was_interrupted)


def tell_what_is_kept(states: Path, say: Callable[[str], None]) -> None:
    """After a run that is not complete: from where the same command goes on."""
    newest = newest_committed(states)
    if newest is not None:
        size = sum(path.stat().st_size for path in states.rglob("*") if path.is_file()) / MIB
        say(
            f"The training state of step {newest.step} is kept in {states} ({size:.1f} MiB); the same "
            "command goes on from there."
        )


def was_interrupted(run: Path) -> bool:
    """Whether Ctrl-C ended the training of the finished ``run``."""
    record = _record(run)
    return record is not None and bool(record["training"]["interrupted"])


def clear_states(out: str | Path) -> None:
    """Remove the states of ``out`` if none is committed, unless another process is at work there.

    A note that memory ran out stays: it is what the next process knows.
    """
    states = states_folder(out)
    try:
        refuse_if_being_written(out)
    except UserInputError:
        return
    if newest_committed(states) is None and not (states / ATTEMPT).exists():
        shutil.rmtree(states, ignore_errors=True)


@contextmanager
def attempted(
    out: str | Path, say: Callable[[str], None], *, trained_as: str | None = None
) -> Iterator[Recovery]:
    """How a process that nobody watches goes on after one that was killed; it notes that it is at work.

    If that one ran out of memory, or the system has ended processes for want of memory since it started, so
    that it was likely among them, micro-batches have half the size, and if no step was gained, every lever is
    drawn.
    """
    states = states_folder(out)
    before, newest = _read(states / ATTEMPT), newest_committed(states)
    step = None if newest is None else newest.step
    caution, history = 0, []
    start = "the beginning" if step is None else f"step {step}"
    if before is not None or was_left_unfinished(out):
        why = "The process before was killed, or the power went."
        for_want_of_memory = None if before is None else _why_short_of_memory(before)
        if before is not None and for_want_of_memory is not None:
            caution = int(before.get("caution", 0))
            if caution == 0 or before.get("step") == step:
                caution = min(caution + 1, ALL_LEVERS)
            why = for_want_of_memory
        say(f"{why} Going on from {start}, {CAUTION[caution]}.")
        history.append(f"From {start}, {CAUTION[caution]}: {why}")
    elif step is not None and trained_as is not None:
        history.append(trained_as)
    elif step is not None:
        history.append(f"From {start}, {CAUTION[caution]}: the command of an interrupted run, given again.")
    note = {"oom_kills": _oom_kills(), "boot": _boot(), "step": step, "caution": caution}
    _leave(states, note)
    is_short_of_memory = False
    try:
        yield Recovery(states, caution=caution, history=tuple(history))
    except SnugtuneError as error:
        is_short_of_memory = error.exit_code == RestartNeededError.exit_code
        raise
    finally:
        # Every end but a kill passes here.
        if is_short_of_memory:
            # Another process may do with less memory; the note stays for it.
            _leave(states, note | {"short_of_memory": True})
        else:
            with suppress(OSError):
                (states / ATTEMPT).unlink(missing_ok=True)


def _leave(states: Path, note: dict[str, Any]) -> None:
    with suppress(OSError):
        states.mkdir(parents=True, exist_ok=True)
        (states / ATTEMPT).write_text(json.dumps(note), encoding="ascii")


def _why_short_of_memory(before: dict[str, Any]) -> str | None:
    """What ended the attempt of that note, if it was want of memory."""
    if before.get("short_of_memory"):
        return "The process before ran out of memory."
    known, now = before.get("oom_kills"), _oom_kills()
    if before.get("boot") == _boot() and known is not None and now is not None and now > known:
        return "The process before was ended by the system, which had run out of memory."
    return None


def _oom_kills() -> int | None:
    try:
        lines = KERNEL_COUNTERS.read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
    except (OSError, ValueError, IndexError):
        return None


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _is_of(record: dict[str, Any], config: FitConfig) -> bool:
    identity = identity_of_settings(config)
    kept = {name: value for name, value in record["config"].items() if name in identity["config"]}
    return bool(kept == identity["config"])


def _record(run: Path) -> dict[str, Any] | None:
    record = _read(run / "run.json")
    return record if record is not None and "interrupted" in record.get("training", {}) else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
