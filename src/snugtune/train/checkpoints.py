"""Committed training states: what a new process needs to go on as if nothing had happened.

A state is committed whole or not at all: its files are written to a folder of a temporary name and flushed to
the disk, a manifest with the SHA-256 of each comes last, and only then the folder gets its name. Tensors are
safetensors, everything else is JSON; nothing is pickled.

Training waits only while a state is copied to the host's memory (``on_host``). A thread writes the copy, and
until it is done no other state is due, so that copies never queue up.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from snugtune.errors import UserInputError
from snugtune.files import check_free_space, file_digest, flush, flush_folder, system_errors
from snugtune.train.group import Group
from snugtune.train.recovery import (
    FORMAT,
    MANIFEST,
    commit_number,
    committed_folders,
    differences,
    fingerprint_of,
    read_manifest,
)

TENSORS, VALUES = "tensors.safetensors", "state.json"

KEPT = 2
"""The newest, and the one before it should the newest turn out damaged."""

SMALL_FILES_BYTES = 2**20
"""Room for headers, manifest and folders beside what is counted exactly."""

LARGEST_SHARE = 0.01
"""Of the time that states may cost: a model trained in full has states of many gigabytes."""

LARGEST_COPY_BYTES = 2**30
"""Of a state that is written by a thread while training goes on; a larger one is not held twice."""


@dataclass(frozen=True)
class TrainState:
    """Everything that training goes on from.

    ``optimizer``, ``scheduler`` and ``scaler`` (empty without one) are the ``state_dict`` of each. ``rng``
    has the states of all generators. ``best`` and ``best_weights`` are the scalars and the weights of the
    best look at validation. ``limits`` are the token limits of micro-batches that the guard has learned,
    ``metrics`` and ``memory`` the lines noted so far, ``rollbacks`` the times that training went back because
    a number was not finite, ``balance`` how rare classes are favoured. The order of the data follows from
    seed and ``step``. Tensors may lie anywhere; they are read to the host.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    scaler: dict[str, Any]
    rng: dict[str, Any]
    best: dict[str, Any]
    best_weights: dict[str, Tensor]
    metrics: list[dict[str, Any]]
    elapsed_s: float
    limits: dict[str, int]
    memory: list[dict[str, Any]] = field(default_factory=list)
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    balance: str = "none"


def on_host(state: TrainState) -> TrainState:
    """A copy whose tensors lie in the host's memory and belong to nobody else."""
    return TrainState(**{field.name: _copied(getattr(state, field.name)) for field in fields(state)})


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_copied, value))
    return value


def shared_state(state: TrainState | None, group: Group) -> TrainState | None:
    """The first process's ``state``, in every process of the ``group``."""
    if group.is_alone or not group.any(state is not None)[0]:
        return state
    values, tensors = encode({f.name: getattr(state, f.name) for f in fields(state)}) if state else (None, {})
    values, tensors = group.from_first(values), group.tensors_from_first(tensors)
    return state or TrainState(**decode(values, tensors))


class Checkpoints:
    """Commits states into ``folder`` now and then, and finds the newest one that is whole.

    Args:
        folder: where states lie; made on the first commit.
        fingerprint: of settings and data; the state of another fingerprint is never taken. By default
            that of ``identity``.
        identity: what the fingerprint is made of, to tell in what another state differs.
        interval_s: the least time between two commits. They are further apart where a commit costs much,
            so that all of them cost at most a hundredth of the time.
        meters: what the run has taken so far, JSON-ready, asked for at each commit; ``found_meters`` of a
            later run returns it.
        clock: seconds, monotonic.

    ``skipped`` says, after ``newest``, which states were passed over and why.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fingerprint: str | None = None,
        identity: dict[str, Any] | None = None,
        interval_s: float = 30.0,
        meters: Callable[[], dict[str, Any]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity or {}
        self.folder, self.interval_s = folder, interval_s
        self.fingerprint = fingerprint_of(self.identity) if fingerprint is None else fingerprint
        self.meters = meters
        self.skipped: list[str] = []
        self.last_step: int | None = None
        self.last_cost_s = 0.0
        self._clock = clock
        self._next = clock() + interval_s
        self._writer: threading.Thread | None = None
        self._warning: str | None = None
        self._fault: BaseException | None = None

    def due(self) -> bool:
        """Whether enough time has gone by since the last commit, or since the start, and that is written."""
        return (self._writer is None or not self._writer.is_alive()) and self._clock() >= self._next

    def commit(self, state: TrainState) -> str | None:
        """Write ``state``, once what is being written is done; older ones go, but for the one before it.

        Training does not end because its state cannot be saved: a disk that is full or read-only is told
        in the sentence returned, the state before stays, and the next attempt is due as usual.

        Returns:
            None if the state is committed, else a warning.
        """
        self._wait()
        self._warning = None
        self._write(state, self.meters(), self._clock)
        return self.finished()

    def commit_behind(self, state: TrainState, copy_s: float = 0.0) -> None:
        """Write ``state``, which nobody else may change, while training goes on; it took ``copy_s`` to copy.

        ``finished`` tells how that went.
        """
        self._wait()
        # What a thread costs training is the time it computes; a disk that is slow takes nothing from it.
        started, meters = time.thread_time, self.meters()
        self._writer = threading.Thread(
            target=self._write, args=(state, meters, started, copy_s), name="snugtune-checkpoint"
        )
        self._writer.start()

    def finished(self, *, wait: bool = False) -> str | None:
        """The warning of a commit that has ended, told once; None if it was committed or is still written."""
        if wait:
            self._wait()
        if self._writer is not None:
            if self._writer.is_alive():
                return None
            self._writer = None
        warning, self._warning, fault, self._fault = self._warning, None, self._fault, None
        if fault is not None:
            raise fault
        return warning

    def _wait(self) -> None:
        if self._writer is not None:
            self._writer.join()

    def _write(
        self, state: TrainState, meters: dict[str, Any], timer: Callable[[], float], copy_s: float = 0.0
    ) -> None:
        started = timer()
        try:
            self._commit(state, meters)
            self.last_step = state.step
        except (OSError, UserInputError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error).rstrip(".")
            self._warning = (
                f"The training state of step {state.step} could not be saved ({reason}); training goes on, "
                f"and should it break off, it starts again from {self._fallback()}."
            )
        except BaseException as error:
            # A fault of the program, raised where somebody sees it.
            self._fault = error
        finally:
            self.last_cost_s = timer() - started + copy_s
            self._next = self._clock() + max(self.interval_s, self.last_cost_s / LARGEST_SHARE)

    def found_meters(self) -> dict[str, Any] | None:
        """What the newest state that is whole and of this fingerprint says of the run until then."""
        for folder in committed_folders(self.folder):
            try:
                return dict(self._verified(folder).get("meters", {}))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
        return None

    def newest(self, *, balance: str | None = None) -> TrainState | None:
        """The newest state that is whole and of this fingerprint; ``skipped`` says what was passed over.

        Args:
            balance: how rare classes are favoured; the state of another way is passed over.
        """
        self.skipped = []
        for folder in committed_folders(self.folder):
            try:
                state = self._read(folder, balance)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
                self.skipped.append(f"{folder.name} is not used: {_reason(error)}.")
            else:
                self.last_step = state.step
                return state
        return None

    def _commit(self, state: TrainState, meters: dict[str, Any]) -> None:
        values, tensors = encode({field.name: getattr(state, field.name) for field in fields(state)})
        text = json.dumps(values, allow_nan=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clear_unfinished()
        self._make_room(sum(tensor.nbytes for tensor in tensors.values()) + len(text) + SMALL_FILES_BYTES)
        number = max(map(commit_number, committed_folders(self.folder)), default=0) + 1
        with self._unfinished(number) as unfinished:
            with system_errors():
                save_file(tensors, unfinished / TENSORS)
            (unfinished / VALUES).write_text(text, encoding="ascii")
            digests = {name: _flushed(unfinished / name) for name in (TENSORS, VALUES)}
            manifest = {
                "format": FORMAT, "step": state.step, "fingerprint": self.fingerprint, "meters": meters,
                "identity": self.identity, "files": digests,
            }  # fmt: skip
            (unfinished / MANIFEST).write_text(json.dumps(manifest), encoding="ascii")
            flush(unfinished / MANIFEST)
            flush_folder(unfinished)
            unfinished.rename(self.folder / f"{number:06d}-step-{state.step}")
        flush_folder(self.folder)
        self._keep(KEPT)

    def _make_room(self, needed_bytes: int) -> None:
        try:
            check_free_space(self.folder, needed_bytes)
        except UserInputError:
            # The one before the newest is the lesser loss.
            self._keep(KEPT - 1)
            # Nobody has asked for those of other settings since.
            for folder in self._of_others():
                shutil.rmtree(folder, ignore_errors=True)
            check_free_space(self.folder, needed_bytes)

    @contextmanager
    def _unfinished(self, number: int) -> Iterator[Path]:
        unfinished = self.folder / f".{number:06d}"
        unfinished.mkdir()
        try:
            yield unfinished
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _clear_unfinished(self) -> None:
        for left_over in self.folder.glob(".*"):
            shutil.rmtree(left_over, ignore_errors=True)

    def _keep(self, n: int) -> None:
        """Of this run's states only ``n`` stay; those of other settings stay until it is complete."""
        others = set(self._of_others())
        ours = [folder for folder in committed_folders(self.folder) if folder not in others]
        for folder in ours[n:]:
            shutil.rmtree(folder, ignore_errors=True)

    def _of_others(self) -> list[Path]:
        return [
            folder
            for folder in committed_folders(self.folder)
            if _fingerprint(folder) not in (None, self.fingerprint)
        ]

    def _fallback(self) -> str:
        for folder in committed_folders(self.folder):
            try:
                manifest = read_manifest(folder)
            except (OSError, ValueError):
                continue
            if manifest.get("fingerprint") == self.fingerprint:
                return f"step {manifest.get('step')}"
        return "the beginning"

    def _read(self, folder: Path, balance: str | None) -> TrainState:
        self._verified(folder)
        values = json.loads((folder / VALUES).read_text(encoding="ascii"))
        state = TrainState(**decode(values, load_file(folder / TENSORS)))
        if state.weights and not state.optimizer.get("state"):
            raise ValueError("it has no state of the optimiser")
        if balance not in (None, state.balance):
            raise ValueError("rare classes were favoured in another way")
        return state

    def _verified(self, folder: Path) -> dict[str, Any]:
        """The manifest of a state of this fingerprint whose files are as they were written."""
        manifest = read_manifest(folder)
        if manifest["fingerprint"] != self.fingerprint:
            told = "; ".join(differences(manifest.get("identity", {}), self.identity))
            raise ValueError(f"it belongs to other settings or other data{told and f' ({told})'}")
        for name in (TENSORS, VALUES):
            if file_digest(folder / name) != manifest["files"][name]:
                raise ValueError(f"{name} is damaged")
        return manifest


def _fingerprint(folder: Path) -> str | None:
    """Of a committed state; None if its manifest cannot be read."""
    try:
        return str(read_manifest(folder).get("fingerprint"))
    except (OSError, ValueError):
        return None


def encode(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """``value`` as strict JSON and numbered tensors, for ``decode``.

    Takes None, booleans, whole numbers, floats (NumPy's too), strings, tensors, and lists, tuples and
    dictionaries of them; keys may be whole numbers. What JSON has not is written as an object of one key
    that starts with ``$``.

    Raises:
        TypeError: another kind of value.
    """
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()

    def walk(value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            # JSON's shortest form of a finite float reads back as the same bits; it has no form for others.
            return float(value) if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}
        if isinstance(value, Tensor):
            tensors[name := str(len(tensors))] = _alone(value, storages)
            return {"$tensor": name}
        if isinstance(value, (list, tuple)):
            items = [walk(item) for item in value]
            return items if isinstance(value, list) else {"$tuple": items}
        if isinstance(value, dict):
            pairs = [[walk(key), walk(item)] for key, item in value.items()]
            is_plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
            return dict(pairs) if is_plain else {"$dict": pairs}
        raise TypeError(f"A training state cannot hold a {type(value).__name__}.")

    return walk(value), tensors


def decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What ``encode`` was given; tensors are copies, so that their file may go."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = next(iter(value), "")
    if not kind.startswith("$"):
        return {key: decode(item, tensors) for key, item in value.items()}
    content = value[kind]
    if kind == "$float":
        return struct.unpack(">d", bytes.fromhex(content))[0]
    if kind == "$tensor":
        return tensors[content].clone()
    items = [decode(item, tensors) for item in content]
    return tuple(items) if kind == "$tuple" else dict(items)


def _alone(tensor: Tensor, storages: set[int]) -> Tensor:
    """On the host, contiguous, and with memory of its own: safetensors takes no two views of one storage."""
    tensor = tensor.detach().cpu().contiguous()
    storage = tensor.untyped_storage()
    if storage.data_ptr() in storages or storage.nbytes() != tensor.nbytes:
        return tensor.clone()
    storages.add(storage.data_ptr())
    return tensor


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{Path(error.filename).name} is missing"
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return "its record is damaged"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if type(error) is ValueError else f"it is incomplete ({error})"


def _flushed(path: Path) -> str:
    """Wait until a file is on the disk; returns its SHA-256."""
    flush(path)
    return file_digest(path)
