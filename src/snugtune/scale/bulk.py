"""Bulk prediction: many files in, as many out, the finished ones skipped when it runs again.

``predict_bulk`` is the main path. A shard is the unit of everything: a worker does it from end to end
(``work.py``), its marker says that it is done (``markers.py``), and engines differ in who the workers are.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from snugtune.errors import UserInputError
from snugtune.predict.predictor import Predictor
from snugtune.predict.record import read_record
from snugtune.progress import Observer
from snugtune.scale.bulk_forecast import Amount, amount, begin_sentence, left_sentence
from snugtune.scale.markers import (
    OWN,
    PARTIAL,
    Marker,
    Standing,
    begin_job,
    run_fingerprint,
    standing,
    write_manifest,
)
from snugtune.scale.places import Folder, open_folder
from snugtune.scale.shards import Shard, find_shards
from snugtune.scale.work import Options, Outcome, Task, Worker

ENGINES = ("local", "ray")

_MOST_NAMED = 3


@dataclass(frozen=True)
class Job:
    """What is to be done, known before any of it."""

    run: Path
    source: Folder
    output: Folder
    task: Task
    standing: Standing
    amount: Amount


@dataclass(frozen=True)
class BulkResult:
    """How it ended. ``rows`` and ``needs_review`` are of all finished shards, earlier runs' too.

    ``failed`` has the reason of each shard that could not be done, by its name.
    """

    shards: int
    done: int
    skipped: int
    failed: dict[str, str]
    rows: int
    needs_review: int
    rows_now: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def prepare(
    run: str | Path,
    source: str,
    output: str,
    *,
    options: Options | None = None,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> Job:
    """Find the shards of ``source`` and how they stand, without doing any.

    Raises:
        UserInputError: ``run`` is no finished run, no file matches, a store cannot be reached, or the output
            holds files of others.
    """
    run, options, observer = Path(run), options or Options(), observer or Observer()
    read_record(run)
    outputs = open_folder(output)
    inputs, shards, unknown = find_shards(source, outputs)
    _check_csv_safe(options, shards)
    if unknown:
        observer.say(f"Left out, being of no known format: {_listed(unknown)}.")
    fingerprint = run_fingerprint(run)
    found = standing(inputs, outputs, shards, run=fingerprint, options=options.as_dict(), overwrite=overwrite)
    for reason, names in found.again.items():
        observer.say(f"Done again, as {reason}: {_listed(names)}.")
    task = Task(inputs.address, outputs.address, fingerprint, options)
    return Job(run, inputs, outputs, task, found, amount(inputs, found.todo))


def predict_bulk(
    run: str | Path,
    source: str,
    output: str,
    *,
    options: Options | None = None,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> BulkResult:
    """Predict every file that ``source`` matches into the folder ``output``: one output for each.

    What is finished stays when this ends early, however it ends; the same call goes on from there.

    Args:
        run: the folder that ``fit`` wrote.
        source: a path, ``s3://`` or ``gs://`` address, with wildcards for several files.
        output: a folder, or such an address.
        options: how files are read and written.
        engine: ``local`` does one after the other in this process, ``ray`` several at a time on Ray Data.
        workers: most workers of the ``ray`` engine at a time; as many as there is room for if left out.
        address: of a Ray cluster; the variable ``RAY_ADDRESS`` if left out, else one on this machine.
        overwrite: also what is finished, and replace files that were not written by this.
        observer: is told of sentences, rows done and all rows.

    Raises:
        UserInputError: as ``prepare``, or another process writes the same output.
    """
    observer = observer or Observer()
    _check_engine(engine, workers, address)
    job = prepare(run, source, output, options=options, overwrite=overwrite, observer=observer)
    observer.say(begin_sentence(job.source.shown(""), job.standing, job.amount))
    began = time.perf_counter()
    with _alone_in(job.output):
        begin_job(job.output, source, job.run, job.source, job.standing)
        ledger = _Ledger(job, observer)
        if job.standing.todo:
            for outcome in _outcomes(job, engine, workers, address, ledger, observer):
                ledger.enter(outcome)
        return ledger.close(time.perf_counter() - began)


def _outcomes(
    job: Job, engine: str, workers: int | None, address: str | None, ledger: _Ledger, observer: Observer
) -> Iterator[Outcome]:
    todo = job.standing.todo
    if engine == "local":
        return _here(job, todo, ledger.on_rows, observer)
    from snugtune.scale.ray_engine import run_on_ray

    return run_on_ray(
        job.task, job.run, todo, workers=workers, address=address, on_rows=ledger.on_rows, say=observer.say
    )


def _here(
    job: Job, shards: Sequence[Shard], on_rows: Callable[[str, int], None], observer: Observer
) -> Iterator[Outcome]:
    """The local engine: this process, one shard after the other."""
    predictor = Predictor.load(job.run, dtype=job.task.options.dtype, observer=observer)  # type: ignore[arg-type]
    worker = Worker(predictor, job.task)
    for shard in shards:
        done = 0

        def more(rows: int, shard: Shard = shard) -> None:
            nonlocal done
            done += rows
            on_rows(shard.name, done)

        more(0)
        yield worker.do(shard, more)


class _Ledger:
    """What has become of the shards so far; tells the observer."""

    def __init__(self, job: Job, observer: Observer) -> None:
        self._job, self._observer = job, observer
        self._markers: list[Marker] = []
        self._failed: dict[str, str] = {}
        self._rows: dict[str, int] = {}
        self._began: float | None = None
        self._told = False
        self._notes, self._last, self._ended = Counter[str](), dict[str, str](), set[str]()
        self._lock = threading.Lock()
        observer.phase("predict", job.amount.rows)

    def on_rows(self, name: str, rows: int) -> None:
        """So many rows of a shard are done; a shard that is begun anew goes back to fewer."""
        self._began = self._began or time.perf_counter()
        with self._lock:  # an engine may count in a thread of its own, and late
            if name not in self._ended and (change := rows - self._rows.get(name, 0)):
                self._rows[name] = rows
                self._observer.advance(change)

    def enter(self, outcome: Outcome) -> None:
        """A shard has ended."""
        name = outcome.shard.name
        for note in outcome.notes:
            self._pass_on(note, self._job.source.shown(name))
        if outcome.marker is None:
            self._failed[name] = outcome.reason or "It has ended without a reason."
            self._observer.say(f"Not done: {self._failed[name]}")
            self._ended.add(name)
            return
        self._markers.append(outcome.marker)
        self.on_rows(name, outcome.marker.rows)
        self._ended.add(name)
        self._look_ahead()

    def _pass_on(self, note: str, shown: str) -> None:
        """The same of many files is told of some, and counted."""
        kind = note.replace(shown, "")
        self._notes[kind] += 1
        if self._notes[kind] <= (1 if kind == note else _MOST_NAMED):
            self._observer.say(note)
            self._last[kind] = note

    def _look_ahead(self) -> None:
        """With each finished shard it is known better how many rows there are, and how long they take."""
        todo = self._job.standing.todo
        finished = self._job.amount.by_bytes(self._markers, todo)
        if self._job.amount.rows is None:
            self._observer.phase("predict", finished)
            self._observer.advance(sum(self._rows.values()))
        if not self._told and len(self._markers) + len(self._failed) < len(todo):
            self._told = True
            seconds = time.perf_counter() - (self._began or 0.0)
            self._observer.say(left_sentence(sum(self._rows.values()), finished, seconds))

    def close(self, seconds: float) -> BulkResult:
        """Write the manifest; the counts."""
        for kind, count in self._notes.items():
            if self._last[kind] != kind and count > _MOST_NAMED:
                self._observer.say(f"The same of {count - _MOST_NAMED:,} more files: {self._last[kind]}")
        finished = [*self._job.standing.finished, *self._markers]
        write_manifest(self._job.output, [*finished, *self._job.standing.others], self._failed)
        return BulkResult(
            shards=len(finished) + len(self._failed),
            done=len(self._markers),
            skipped=len(self._job.standing.finished),
            failed=self._failed,
            rows=sum(marker.rows for marker in finished),
            needs_review=sum(marker.needs_review for marker in finished),
            rows_now=sum(marker.rows for marker in self._markers),
            seconds=seconds,
        )


def refuse_failed(result: BulkResult) -> None:
    """Say at the end which shards are missing.

    Raises:
        UserInputError: some are.
    """
    if failed := result.failed:
        raise UserInputError(
            f"{len(failed):,} of {result.shards:,} files could not be predicted: "
            f"{_listed(list(failed), 20)}; mend them and run the same command again: what is finished is "
            "skipped."
        )


def _check_engine(engine: str, workers: int | None, address: str | None) -> None:
    if engine not in ENGINES:
        raise UserInputError(f"--engine must be one of {', '.join(ENGINES)}, not {engine!r}.")
    if engine == "local" and (workers is not None or address is not None):
        raise UserInputError("--workers and --address are for --engine ray; add it, or leave them out.")
    if workers is not None and workers < 1:
        raise UserInputError(f"--workers must be 1 or more, not {workers}.")


def _check_csv_safe(options: Options, shards: Sequence[Shard]) -> None:
    others = [shard.output for shard in shards if not shard.output.lower().endswith((".csv", ".tsv"))]
    if options.csv_safe and others:
        raise UserInputError(f"--csv-safe is for CSV and TSV, not for {others[0]}; leave it out.")


def _listed(names: Sequence[str], most: int = _MOST_NAMED) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


@contextmanager
def _alone_in(output: Folder) -> Iterator[None]:
    """Of all processes of this machine that write ``output``, one; attempts of dead ones are cleared away.

    Raises:
        UserInputError: another one does now.
    """
    if output.local is None:
        yield
        return
    own = output.local / OWN
    try:
        own.mkdir(parents=True, exist_ok=True)
        lock = (own / "lock").open("ab")  # never replaced, as another process may hold it
    except OSError as error:
        raise UserInputError(f"Cannot write {own}: {error.strerror}; choose another output.") from None
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserInputError(
                f"Another process is writing {output.local} right now; wait for it or choose another output."
            ) from None
        except (ImportError, OSError):  # Windows, and disks of a network that know no locks
            pass
        shutil.rmtree(output.local / PARTIAL, ignore_errors=True)
        try:
            yield
        finally:
            shutil.rmtree(output.local / PARTIAL, ignore_errors=True)
