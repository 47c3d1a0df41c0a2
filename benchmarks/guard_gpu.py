"""Trainings on a card whose memory is cut: how many fail, and do the others train the same model? There:

    python benchmarks/guard_gpu.py --jobs 8 --deadline-s 540 --out results

Three kinds of cases, half of each in bfloat16, where texts are packed:

- *engine*: trainings by the engine with a guard, in one process, whose share of the card is cut from a random
  moment on, from generous to absurd, and in half of the cases given back;
- *cap*: supervised fits of a small table whose processes may hold a random share of the card. They run side
  by side, ``--jobs`` at a time;
- *hog*: supervised fits, alone, beside a process that takes all that is free at a random moment between the
  start of loading and the end of training, and whatever gets free until it lets go.

Everything is compared with undisturbed trainings. What two of these are apart, one of them in smaller
micro-batches, is the noise of the card; a case must stay within three times that, or within a floor. A
training that loses one micro-batch on purpose shows whether the comparison would find a fault. What ends on
the CPU is counted and not compared. All of it passes if no case fails or is beyond its limit, and if memory
did run out.

The model has MiniLM's shape and random weights, made on the spot, unless ``--model`` names another. Results
are written after every case; ``--resume FILE`` goes on from them, ``--part 2/3`` takes every third case from
the second on. ``--dry-run`` takes a few tiny cases wherever it runs, also without a card (engine cases then
find memory cut by a ledger, fits find none of it cut), and writes nothing.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib import common, guard_cases
from lib.guard_cases import LEVELS, PRECISIONS, Case, key_of
from lib.memory import in_child
from lib.turns import Job, run_in_turns

SAME = ("model", "rows", "max_length", "epochs", "engine_rows")
"""Settings that results must have in common to be put together."""

ENGINE_PROCESSES = 3
"""At most so many, one after the other: one that breaks down takes no other cases with it."""

TINY = {
    "engine_cases": 6,
    "cases": 2,
    "hogs": 3,
    "rows": 80,
    "engine_rows": 64,
    "max_length": 48,
    "epochs": 1.0,
}

DRY_HOG_MIB = 64
"""What the other process takes where there is no card: enough to see that it does."""


def main() -> None:
    """Run the cases, write the result, tell whether it passes."""
    options = _arguments()
    machine = in_child(common.hardware)  # a process that asks a card keeps a context on it
    if machine["gpu"] is None and not options.dry_run:
        print("Skipped: there is no card here; --dry-run sees whether the script works.")
        return
    if options.dry_run:
        vars(options).update(TINY)
    with tempfile.TemporaryDirectory() as temporary:
        record = Record(options, machine)
        run(options, record, Path(temporary), has_card=machine["gpu"] is not None)
    tell(record.summary())
    if record.file is not None:
        print(f"Wrote {record.file.path}.")


def _arguments() -> Any:
    parser = common.parser("Trainings on a card whose memory is cut.")
    parser.add_argument("--only", nargs="+", choices=LEVELS, default=list(LEVELS), help="kinds of cases")
    parser.add_argument("--engine-cases", type=int, default=100, help="trainings in one process")
    parser.add_argument("--cases", type=int, default=16, help="supervised fits with a share of the card")
    parser.add_argument("--hogs", type=int, default=9, help="supervised fits beside a process that takes all")
    parser.add_argument("--jobs", type=int, default=1, help="fits with a share that run side by side")
    parser.add_argument("--part", type=_part, default=(1, 1), help="I/N: every N-th case from the I-th on")
    parser.add_argument("--deadline-s", type=float, help="start nothing that would end later")
    parser.add_argument("--resume", type=Path, help="a result file whose cases are taken as done")
    parser.add_argument("--model", help="a folder or name instead of random weights of MiniLM's shape")
    parser.add_argument("--rows", type=int, default=500, help="texts of the table of the fits")
    parser.add_argument("--engine-rows", type=int, default=192, help="texts of an engine's training")
    parser.add_argument("--max-length", type=int, default=256, help="tokens kept of a text")
    parser.add_argument("--epochs", type=float, default=4.0, help="of the fits")
    parser.add_argument("--dry-run", action="store_true", help="a few tiny cases; nothing is written")
    return parser.parse_args()


def _part(text: str) -> tuple[int, int]:
    i, n = map(int, text.split("/"))
    if not 1 <= i <= n:
        raise ValueError(text)
    return i, n


class Record:
    """What was found so far, on disk after each case; cases of an earlier file are part of it."""

    def __init__(self, options: Any, machine: dict[str, Any]) -> None:
        settings = {name: value for name, value in vars(options).items() if name not in ("out", "resume")}
        self._found: dict[str, Any] = {
            "settings": settings | {"earlier": options.resume and options.resume.name},
            "undisturbed": {}, "planted": {}, "cases": {}, "errors": [],
        }  # fmt: skip
        self._lock = threading.Lock()
        i, n = options.part
        name = "guard" if n == 1 else f"guard-{i}-of-{n}"
        self.file = None if options.dry_run else common.ResultFile(name, options.out, machine=machine)
        if options.resume is not None:
            self._take_over(json.loads(options.resume.read_text(encoding="utf-8")))

    @property
    def levels(self) -> list[str]:
        """Kinds of cases that were asked for, or are there."""
        there = {told["level"] for told in self._found["cases"].values()}
        return [level for level in LEVELS if level in self._found["settings"]["only"] or level in there]

    def is_done(self, case: Case) -> bool:
        """Whether its result is there."""
        return key_of(case) in self._found["cases"]

    def add(self, part: str, found: dict[str, Any]) -> None:
        """Enter what was found of ``undisturbed``, ``planted`` or ``cases``, by key, and write all of it."""
        with self._lock:
            self._found[part] |= found
            self._write()

    def fault(self, told: str) -> None:
        """Something that is no case went wrong."""
        with self._lock:
            self._found["errors"].append(told[-2000:])
            print(told)
            self._write()

    def summary(self) -> dict[str, Any]:
        """Counts, and whether all of it passes."""
        found = guard_cases.summary(self._found["cases"], self._found["planted"], self.levels)
        faults = [*found["faults"], *self._found["errors"]]
        return {**found, "faults": faults, "passed": not faults}

    def _take_over(self, earlier: dict[str, Any]) -> None:
        mine, theirs = self._found["settings"], earlier["settings"]
        if unlike := [name for name in SAME if mine[name] != theirs[name]]:
            sys.exit(f"The earlier result has other settings: {', '.join(unlike)}.")
        for part in ("undisturbed", "planted", "cases"):
            self._found[part] = dict(earlier[part])

    def _write(self) -> None:
        if self.file is not None:
            self.file.write({"summary": self.summary(), **self._found})


def run(options: Any, record: Record, folder: Path, *, has_card: bool) -> None:
    """All cases of this part that are not done, the quick ones first, those that need the card alone last."""
    from lib.guard_fits import Settings, write_texts
    from lib.shapes import minilm, write_model

    deadline = common.Deadline(options.deadline_s)
    model = options.model or str(write_model(minilm(tiny=options.dry_run), folder / "model"))
    write_texts(folder / "texts.csv", options.rows, options.max_length)
    settings = Settings(
        folder, model, folder / "texts.csv", options.max_length, options.epochs,
        threads=max(1, options.threads // options.jobs), host_hog_mib=None if has_card else DRY_HOG_MIB,
    )  # fmt: skip
    counts = {"engine": options.engine_cases, "cap": options.cases, "hog": options.hogs}
    wanted = {
        level: [
            case
            for case in guard_cases.part_of(DRAWS[level](counts[level]), options.part)
            if level in options.only and not record.is_done(case)
        ]
        for level in LEVELS
    }
    if wanted["engine"]:
        run_engine(wanted["engine"], options, model, record, deadline)
    if wanted["cap"] or wanted["hog"]:
        run_fits(wanted["cap"], wanted["hog"], options, settings, record, deadline)


DRAWS: dict[str, Callable[[int], Sequence[Case]]] = {
    "engine": guard_cases.engine_cases, "cap": guard_cases.cap_cases, "hog": guard_cases.hog_cases,
}  # fmt: skip


def run_engine(
    cases: Sequence[Any], options: Any, model: str, record: Record, deadline: common.Deadline
) -> None:
    """Engine cases in a process of their own; in a new one should it break down."""
    from lib import guard_engine

    def on_point(_name: str, point: dict[str, Any]) -> None:
        for precision, found in point.get("undisturbed", {}).items():
            record.add("undisturbed", {f"engine, {precision}": found})
        record.add("planted", point.get("planted", {}))
        for key, found in point.get("case", {}).items():
            print(line(key, found))
            record.add("cases", {key: found})

    shared = {
        "model": model, "rows": options.engine_rows, "max_length": options.max_length,
        "deadline_at": deadline.at,
    }  # fmt: skip
    for _ in range(ENGINE_PROCESSES):
        left = [case for case in cases if not record.is_done(case)]
        if not left or not deadline.allows():
            return
        job = Job(guard_engine.run, {"cases": left, "options": shared})
        error = run_in_turns({"engine": job}, float("inf"), on_point)["engine"].error
        if error:
            record.fault(f"The process of the engine's cases ended: {error}")


def run_fits(
    caps: Sequence[Any],
    hogs: Sequence[Any],
    options: Any,
    settings: Any,
    record: Record,
    deadline: common.Deadline,
) -> None:
    """The undisturbed fits, then those with a share side by side, then those beside a hog one by one."""
    from lib import guard_fits

    precisions = [name for name in PRECISIONS if any(case.precision == name for case in (*caps, *hogs))]
    pool = Pool(options.jobs, deadline)
    beside = undisturbed(precisions, settings, record, pool)
    chosen = [case for case in caps if case.precision in beside]
    pool.run(
        [
            lambda c=case: _note(record, c, guard_fits.capped(settings, c, beside[c.precision]))
            for case in chosen
        ]
    )
    alone = replace(settings, threads=options.threads)
    chosen = [case for case in hogs if case.precision in beside]
    pool.one_at_a_time(
        [lambda c=case: _note(record, c, guard_fits.robbed(alone, c, beside[c.precision])) for case in chosen]
    )
    for error in pool.errors:
        record.fault(error)


def undisturbed(precisions: Iterable[str], settings: Any, record: Record, pool: Pool) -> dict[str, Any]:
    """By precision, what disturbed fits are compared with."""
    from lib import guard_fits

    fits: dict[str, dict[str, Any]] = {precision: {} for precision in precisions}

    def one(precision: str, which: str) -> None:
        fits[precision][which] = guard_fits.undisturbed_fit(settings, precision, which)

    pool.run([lambda p=p, w=w: one(p, w) for p in fits for w in guard_fits.UNDISTURBED])
    found = {}
    for precision, of in fits.items():
        if len(of) < len(guard_fits.UNDISTURBED):
            continue
        try:
            found[precision], told = guard_fits.yardstick(precision, of)
        except ValueError as error:
            record.fault(f"{precision}: {error}")
            continue
        record.add("undisturbed", {f"fits, {precision}": told})
    return found


class Pool:
    """Does work side by side, and begins none that would likely end after the deadline."""

    def __init__(self, jobs: int, deadline: common.Deadline) -> None:
        self._jobs, self._deadline = jobs, deadline
        self._longest_s = 0.0
        self.errors: list[str] = []

    def run(self, work: Iterable[Callable[[], None]]) -> None:
        """``jobs`` pieces at a time."""
        with ThreadPoolExecutor(self._jobs) as threads:
            list(threads.map(self._one, work))

    def one_at_a_time(self, work: Iterable[Callable[[], None]]) -> None:
        """A piece after the other."""
        for piece in work:
            self._one(piece)

    def _one(self, piece: Callable[[], None]) -> None:
        if not self._deadline.allows(self._longest_s):
            return
        left_s = self._deadline.left_s
        try:
            piece()
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")
        if left_s != float("inf"):
            self._longest_s = max(self._longest_s, left_s - self._deadline.left_s)


def _note(record: Record, case: Case, told: dict[str, Any]) -> None:
    print(line(key_of(case), told))
    record.add("cases", {key_of(case): told})


def line(key: str, told: dict[str, Any]) -> str:
    """A case in a line."""
    if "failed" in told:
        return f"{key}: FAILED: {told['failed'][-300:]}"
    events, apart = sum(told["events"].values()), told["weights"]
    moment = told.get("moment", {})
    return (
        f"{key}, {told['precision']}: {events} events, {len(told.get('restarts', []))} restarts, ended on "
        f"{told['ended']} after {told['seconds']:.1f} s"
        + ("" if apart is None else f", weights {apart:.1e} apart (at most {told['weights_limit']:.1e})")
        + (f", memory taken during {moment['stage']}" if moment else "")
        + ("" if told["within_limits"] else ", BEYOND ITS LIMIT")
    )


def tell(summary: dict[str, Any]) -> None:
    """Counts by kind, and the verdict."""
    for level, found in summary["levels"].items():
        print(f"{level}: {json.dumps(found)}")
    print("Passed." if summary["passed"] else f"Not passed: {'; '.join(summary['faults'])}.")


if __name__ == "__main__":
    main()
