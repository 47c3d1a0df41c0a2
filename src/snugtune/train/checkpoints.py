"""Committed training states: what a new process needs to go on as if nothing had happened.

A state is committed whole or not at all: its files are written to a folder of a temporary name and flushed to
the disk, a manifest with the SHA-256 of each comes last, and only then the folder gets its name. Tensors are
safetensors, everything else is JSON; nothing is pickled.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
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
from snugtune.files import check_free_space, file_digest, system_errors
from snugtune.train.recovery import FORMAT, MANIFEST, commit_number, committed_folders, read_manifest

TENSORS, VALUES = "tensors.safetensors", "state.json"

KEPT = 2
"""The newest, and the one before it should the newest turn out damaged."""

SMALL_FILES_BYTES = 2**20
"""Room for headers, manifest and folders beside what is counted exactly."""

LARGEST_SHARE = 0.05
"""Of the time that writing states may take: a model trained in full has states of many gigabytes."""


@dataclass(frozen=True)
class TrainState:
    """Everything that training goes on from.

    ``optimizer``, ``scheduler`` and ``scaler`` (empty without one) are the ``state_dict`` of each. ``rng``
    has the generator states ``cpu`` and, where there is one, ``cuda``. ``best`` and ``best_weights`` are the
    scalars and the weights of the best look at validation. ``limits`` are the token limits of micro-batches
    that the guard has learned, ``metrics`` and ``memory`` the lines noted so far. Tensors may lie anywhere;
    they are read to the host.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    scaler: dict[str, Any]
    rng: dict[str, Tensor]
    best: dict[str, Any]
    best_weights: dict[str, Tensor]
    metrics: list[dict[str, Any]]
    elapsed_s: float
    limits: dict[str, int]
    memory: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints:
    """Commits states into ``folder`` now and then, and finds the newest one that is whole.

    Args:
        folder: where states lie; made on the first commit.
        fingerprint: of settings and data; the state of another fingerprint is never taken.
        interval_s: the least time between two commits. They are further apart where a commit takes long,
            so that all of them take at most a twentieth of the time.
        clock: seconds, monotonic.

    ``skipped`` says, after ``newest``, which states were passed over and why.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fingerprint: str,
        interval_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.fingerprint, self.interval_s = folder, fingerprint, interval_s
        self.skipped: list[str] = []
        self._clock = clock
        self._next = clock() + interval_s

    def due(self) -> bool:
        """Whether enough time has gone by since the last commit, or since the start."""
        return self._clock() >= self._next

    def commit(self, state: TrainState) -> str | None:
        """Write ``state``; older ones go, but for the one before it.

        Training does not end because its state cannot be saved: a disk that is full or read-only is told
        in the sentence returned, the state before stays, and the next attempt is due as usual.

        Returns:
            None if the state is committed, else a warning.
        """
        started = self._clock()
        try:
            self._commit(state)
        except (OSError, UserInputError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error).rstrip(".")
            return (
                f"The training state of step {state.step} could not be saved ({reason}); training goes on, "
                f"and should it break off, it starts again from {self._fallback()}."
            )
        finally:
            ended = self._clock()
            self._next = ended + max(self.interval_s, (ended - started) / LARGEST_SHARE)
        return None

    def newest(self) -> TrainState | None:
        """The newest state that is whole and of this fingerprint; ``skipped`` says what was passed over."""
        self.skipped = []
        for folder in committed_folders(self.folder):
            try:
                return self._read(folder)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
                self.skipped.append(f"{folder.name} is not used: {_reason(error)}.")
        return None

    def _commit(self, state: TrainState) -> None:
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
            digests = {name: _flush(unfinished / name) for name in (TENSORS, VALUES)}
            manifest = {"format": FORMAT, "step": state.step, "fingerprint": self.fingerprint}
            text = json.dumps({**manifest, "files": digests})
            (unfinished / MANIFEST).write_text(text, encoding="ascii")
            _flush(unfinished / MANIFEST)
            _flush_folder(unfinished)
            unfinished.rename(self.folder / f"{number:06d}-step-{state.step}")
        _flush_folder(self.folder)
        self._keep(KEPT)

    def _make_room(self, needed_bytes: int) -> None:
        try:
            check_free_space(self.folder, needed_bytes)
        except UserInputError:
            # The one before the newest is the lesser loss.
            self._keep(KEPT - 1)
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
        for folder in committed_folders(self.folder)[n:]:
            shutil.rmtree(folder, ignore_errors=True)

    def _fallback(self) -> str:
        for folder in committed_folders(self.folder):
            try:
                manifest = read_manifest(folder)
            except (OSError, ValueError):
                continue
            if manifest.get("fingerprint") == self.fingerprint:
                return f"step {manifest.get('step')}"
        return "the beginning"

    def _read(self, folder: Path) -> TrainState:
        manifest = read_manifest(folder)
        if manifest["fingerprint"] != self.fingerprint:
            raise ValueError("it belongs to other settings or other data")
        for name in (TENSORS, VALUES):
            if file_digest(folder / name) != manifest["files"][name]:
                raise ValueError(f"{name} is damaged")
        values = json.loads((folder / VALUES).read_text(encoding="ascii"))
        return TrainState(**decode(values, load_file(folder / TENSORS)))


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


def _flush(path: Path) -> str:
    """Wait until a file is on the disk; returns its SHA-256."""
    # Opened for writing, which Windows asks for.
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return file_digest(path)


def _flush_folder(folder: Path) -> None:
    # Windows cannot open folders, and needs no flush of them.
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
