"""The ``ray`` engine: shards as rows of a Ray Dataset, done by a pool of actors that each hold the model.

Ray Data gives each actor a shard at a time, starts actors anew that die, and gives their shard to another.
How many there are follows the cluster, up to ``workers``. Nothing is told to anyone: usage statistics and the
dashboard are off, and a Ray that is started here listens on the loopback interface alone.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snugtune.errors import SnugtuneError, UserInputError, is_of_library, one_line

if TYPE_CHECKING:  # actors import this module before they know how many threads they may have
    from snugtune.scale.shards import Shard
    from snugtune.scale.work import Outcome, Task

ATTEMPTS = 5
"""How often a shard is begun: its workers may die of it."""

OBJECT_STORE_BYTES = 256 << 20
"""Of a Ray started here: names of shards and what became of them are all that is kept in it."""

_LOOK_S = 0.5
"""Between two questions how many rows are done."""

_BASE_BYTES = 1 << 30
"""Of a process that has the libraries imported and a batch at hand."""


def run_on_ray(
    task: Task,
    run: Path,
    shards: Sequence[Shard],
    *,
    workers: int | None,
    address: str | None,
    on_rows: Callable[[str, int], None],
    say: Callable[[str], None],
) -> Iterator[Outcome]:
    """Outcomes of ``shards`` as they end, in any order.

    Args:
        task: what all shards have in common.
        run: the folder of the run; workers of a cluster that do not see it are sent it.
        shards: what is to be done.
        workers: most workers at a time; None: one for each GPU, or for each core.
        address: of a cluster; None: the one of ``RAY_ADDRESS``, else one is started here for this job.
        on_rows: is told how many rows of a shard, by its name, are done so far.
        say: is told of a fact worth a line.

    Raises:
        UserInputError: Ray is missing, or the cluster cannot be reached.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    ray = _import_ray(is_own=address is None)
    with _connected(ray, address):
        pool = _pool(ray, run, len(shards), workers, is_own=address is None)
        say(f"Ray: up to {pool['workers']:,} workers, {_resources(pool)} each.")
        tally = ray.remote(num_cpus=0, max_restarts=-1)(_Tally).remote()
        packed = ray.put(_packed(run)) if address is not None else None
        outcomes = _dataset(ray, shards, pool, task, run, packed, tally)
        yield from _collected(ray, outcomes, shards, tally, on_rows, say)


def _import_ray(*, is_own: bool) -> Any:
    # Before the import, which reads them; workers inherit them.
    if is_own:
        # Else Ray takes another address than the loopback interface's, even if told that one.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # notes to developers, on standard error
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserInputError("--engine ray needs Ray: pip install 'snugtune[bulk]'.") from None
    return ray


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A cluster for this job: the one at ``address``, else one of this machine, which leaves nothing."""
    scratch = None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            scratch = _short_folder()
            quiet |= {
                "include_dashboard": False, "_node_ip_address": "127.0.0.1", "_temp_dir": scratch,
                "object_store_memory": OBJECT_STORE_BYTES,
            }  # fmt: skip
        try:
            with _silent(), _asking_nobody(ray):
                ray.init(address=address or "local", **quiet)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise UserInputError(
                f"The Ray cluster at {address or 'this machine'} cannot be used ({one_line(error, 240)})."
            ) from None
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with _told_by_us(ray):
            yield
    finally:
        ray.shutdown()
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _silent() -> Iterator[None]:
    """Ray's own libraries write a line to standard error whatever they are told."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


@contextmanager
def _asking_nobody(ray: Any) -> Iterator[None]:
    """Start Ray without the process of its dashboard, which holds the module for usage statistics.

    Switched off, that module still asks the metadata services of three clouds where it runs (Ray 2.60), for a
    report that is never sent. Told of a module that there is not, the process ends, and Ray goes on.
    """
    services = ray._private.services
    usual = services.start_ray_process

    def start(command: list[str], *args: Any, **options: Any) -> Any:
        kept = [word.replace("=UsageStatsHead", "=NoSuchModule") for word in command]
        return usual(kept, *args, **options)

    services.start_ray_process = start
    try:
        yield
    finally:
        services.start_ray_process = usual


@contextmanager
def _told_by_us(ray: Any) -> Iterator[None]:
    """Ray prints what it says of dead workers to standard output, which holds results; there is no switch."""
    module = ray._private.worker
    usual = getattr(module, "print_to_stdstream", None)
    if usual is not None:
        module.print_to_stdstream = lambda *_args, **_options: None
    try:
        yield
    finally:
        if usual is not None:
            module.print_to_stdstream = usual


def _short_folder() -> str:
    """A folder for Ray's sockets, whose paths may have 107 characters at most."""
    usual = tempfile.gettempdir()
    return tempfile.mkdtemp(
        prefix="snugtune-ray-", dir=usual if len(usual) < 30 or os.name == "nt" else "/tmp"
    )


def _packed(run: Path) -> bytes:
    from snugtune.scale.shipping import pack

    return pack(run)


def _pool(ray: Any, run: Path, shards: int, workers: int | None, *, is_own: bool) -> dict[str, Any]:
    """How many workers at most, and what each takes of the cluster."""
    found = ray.cluster_resources()
    gpus, cores = int(found.get("GPU", 0)), int(found.get("CPU", 1))
    most = gpus or cores
    if is_own and not gpus:
        from snugtune.container import available_memory_bytes

        most = max(1, min(most, available_memory_bytes() // (_BASE_BYTES + 2 * _weight_bytes(run))))
    # A cluster may grow; then no more than there are shards are wanted.
    wanted = min(workers or (most if is_own else shards), shards)
    if gpus:
        return {"workers": wanted, "num_gpus": 1, "num_cpus": 1, "threads": max(1, cores // max(gpus, 1))}
    if not is_own:
        return {"workers": wanted, "num_cpus": 1, "threads": 1}
    share = cores // wanted if wanted <= cores else cores / wanted
    return {"workers": wanted, "num_cpus": share, "threads": max(1, int(share))}


def _weight_bytes(run: Path) -> int:
    """Of the run's model in float32; 0 where its record does not tell."""
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        return 4 * int(record["parameters"]["all"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _resources(pool: dict[str, Any]) -> str:
    return "a GPU" if pool.get("num_gpus") else f"{pool['num_cpus']:g} cores"


def _dataset(
    ray: Any, shards: Sequence[Shard], pool: dict[str, Any], task: Task, run: Path, packed: Any, tally: Any
) -> Iterator[dict[str, Any]]:
    """Ray Data's own work: a block for each shard, mapped by the pool; batches as they come.

    It starts actors anew, and their tasks, without end; ``_Actor`` counts the attempts.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a shard that kills its workers does not end the others
    rows = [{"shard": json.dumps(asdict(shard))} for shard in shards]
    given: dict[str, Any] = {key: pool[key] for key in ("num_cpus", "num_gpus") if key in pool}
    mapped = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=pool["workers"],
            initial_size=min(pool["workers"], max(1, int(ray.cluster_resources().get("CPU", 1)))),
            max_tasks_in_flight_per_actor=1,
        ),
        fn_constructor_args=(asdict(task), str(run), packed, tally, pool["threads"]),
        **given,
    )
    found: Iterator[dict[str, Any]] = iter(mapped.iter_batches(batch_size=None, batch_format="numpy"))
    return found


def _collected(
    ray: Any,
    batches: Iterator[dict[str, Any]],
    shards: Sequence[Shard],
    tally: Any,
    on_rows: Callable[[str, int], None],
    say: Callable[[str], None],
) -> Iterator[Outcome]:
    """What the workers answer; for each shard without an answer, that its workers died."""
    from snugtune.scale.work import Outcome

    missing = {shard.name: shard for shard in shards}
    with _counting(ray, tally, on_rows, say):
        try:
            for batch in batches:
                for line in batch["outcome"]:
                    outcome = _outcome(json.loads(str(line)))
                    missing.pop(outcome.shard.name, None)
                    yield outcome
        except ray.exceptions.RayError as error:
            reason = one_line(error, 300)
        else:
            reason = "Ray gave no answer for it"
    for shard in missing.values():
        yield Outcome(shard, None, f"{shard.name}: {reason}.")


def _outcome(found: dict[str, Any]) -> Outcome:
    from snugtune.scale.markers import Marker
    from snugtune.scale.shards import Shard
    from snugtune.scale.work import Outcome

    marker = None if found["marker"] is None else Marker(**found["marker"])
    return Outcome(Shard(**found["shard"]), marker, found["reason"], tuple(found["notes"]))


@contextmanager
def _counting(
    ray: Any, tally: Any, on_rows: Callable[[str, int], None], say: Callable[[str], None]
) -> Iterator[None]:
    """Ask the tally, in a thread, until the block ends."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(_LOOK_S):
            # Only a figure on the screen depends on it.
            with suppress(Exception):
                found, again = ray.get(tally.take.remote(), timeout=10)
                for name in again:
                    say(f"The worker of {name} died; another one does it anew.")
                for name, rows in found.items():
                    on_rows(name, rows)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(15)


class _Tally:
    """An actor that knows how many rows of each shard are done, and how often it was begun."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._attempts = Counter[str]()
        self._again: list[str] = []

    def begin(self, name: str) -> int:
        """A worker begins a shard: the how manieth attempt that is."""
        self._rows[name] = 0
        self._attempts[name] += 1
        if self._attempts[name] > 1:
            self._again.append(name)
        return self._attempts[name]

    def note(self, name: str, rows: int) -> None:
        """So many so far."""
        self._rows[name] = rows

    def take(self) -> tuple[dict[str, int], list[str]]:
        """What was noted since the last call, and which shards were begun anew."""
        found = self._rows, self._again
        self._rows, self._again = {}, []
        return found


class _Actor:
    """A worker of the pool: loads the run once, then does the shards it is given."""

    def __init__(self, task: dict[str, Any], run: str, packed: Any, tally: Any, threads: int) -> None:
        from snugtune.container import usable_cores

        # They were counted over the whole cluster.
        threads = min(threads, usable_cores())
        # Before those libraries are imported.
        for name in ("RAYON_NUM_THREADS", "POLARS_MAX_THREADS"):
            os.environ[name] = str(threads)
        self._tally = tally
        self._worker: Any = None
        self._fault: str | None = None
        try:
            self._worker = self._load(task, Path(run), packed, threads)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            if not is_of_library(error):
                raise
            # A pool whose actors fail to start is started again and again: so each shard says why instead.
            told = str(error) if isinstance(error, SnugtuneError) else f"{type(error).__name__}: {error}"
            self._fault = told

    def _load(self, task: dict[str, Any], run: Path, packed: Any, threads: int) -> Any:
        import ray
        import torch

        from snugtune.predict.predictor import Predictor
        from snugtune.quiet import quiet_libraries
        from snugtune.scale.shipping import unpacked
        from snugtune.scale.work import Options, Task, Worker

        quiet_libraries()
        torch.set_num_threads(threads)
        options = task["options"]
        text = None if options["text"] is None else tuple(options["text"])
        whole = Task(**task | {"options": Options(**options | {"text": text})})
        fetch = None if packed is None else partial(ray.get, packed)
        folder = unpacked(run, whole.run_fingerprint, fetch)
        worker = Worker(Predictor.load(folder, dtype=whole.options.dtype), whole)  # type: ignore[arg-type]
        worker.check_place()
        return worker

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Outcomes of the shards of a batch."""
        return {"outcome": [json.dumps(self._do(json.loads(str(line)))) for line in batch["shard"]]}

    def _do(self, fields: dict[str, Any]) -> dict[str, Any]:
        import ray

        from snugtune.scale.shards import Shard

        shard = Shard(**fields)
        if self._worker is None:
            return {"shard": fields, "marker": None, "reason": self._fault, "notes": []}
        attempt = ray.get(self._tally.begin.remote(shard.name))
        if attempt > ATTEMPTS:
            reason = (
                f"{shard.name}: its worker died {ATTEMPTS} times; if memory is short, use fewer --workers or "
                "smaller files."
            )
            return {"shard": fields, "marker": None, "reason": reason, "notes": []}
        outcome = self._worker.do(shard, self._counter(shard.name))
        marker = None if outcome.marker is None else asdict(outcome.marker)
        return {"shard": fields, "marker": marker, "reason": outcome.reason, "notes": list(outcome.notes)}

    def _counter(self, name: str) -> Callable[[int], None]:
        done, told = 0, time.monotonic()

        def more(rows: int) -> None:
            nonlocal done, told
            done += rows
            if time.monotonic() - told > _LOOK_S:
                told = time.monotonic()
                self._tally.note.remote(name, done)

        return more
