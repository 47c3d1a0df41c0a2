"""What the frozen model said of texts, kept on disk: found again by content, on this machine, by any run.

A folder for each model, in it a safetensors file for each pass that read something new: ``keys`` (N, 4), the
SHA-256 of what decides a row as four words; ``features`` (N, H) in bfloat16 where that loses nothing, else in
float32; ``checks`` (N,), the CRC-32 of each row. A row that does not pass its check counts as never read. A
file is complete when it appears (``files.replacing``), and its name is made from the keys, so runs that write
at the same time do each other no harm.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from snugtune.errors import UserInputError
from snugtune.files import check_free_space, replacing, system_errors
from snugtune.model.pooling import cache_folder
from snugtune.units import GIB

LIMIT_VARIABLE, DEFAULT_LIMIT_GIB = "SNUGTUNE_FEATURE_CACHE_GIB", 4.0
"""Most that all files together take, in the environment; 0 keeps nothing and reads nothing."""

SUFFIX = ".safetensors"

ROOM_LEFT_BYTES = GIB
"""On the disk, beside what is written: a cache must not be what fills it."""

ABANDONED_S = 24 * 3600.0
"""Age of a temporary file at which its writer is taken to be dead."""

LEAST_TOKENS = 2048
"""A pass over fewer tokens tells of its start more than of its pace."""

Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class FeatureStore:
    """The features of one model, in ``folder``; all models' files beside it take at most ``limit_bytes``."""

    folder: Path
    limit_bytes: int

    def read(self, keys: Keys) -> tuple[NDArray[np.bool_], NDArray[np.float32] | None]:
        """Which of ``keys`` (N, 4) are here (N,), and the features (N, H), of which only those rows are set.

        None instead of the features if none are here. Damaged files are removed.
        """
        known = np.zeros(len(keys), dtype=np.bool_)
        values: NDArray[np.float32] | None = None
        order = np.argsort(keys[:, 0], kind="stable")
        for path in self._newest_first():
            if known.all():
                break
            try:
                rows, found = _matching(path, keys, order[~known[order]])
            except (SafetensorError, OSError, ValueError, KeyError):
                _remove(path)
                continue
            if not len(rows):
                continue
            if values is None:
                values = np.empty((len(keys), found.shape[1]), dtype=np.float32)
            elif values.shape[1] != found.shape[1]:
                _remove(path)
                continue
            values[rows], known[rows] = found, True
            with suppress(OSError):
                os.utime(path)  # used now, so among the last to go
        return known, values

    def add(self, keys: Keys, features: NDArray[np.float32], *, tokens: int, seconds: float) -> None:
        """Keep the features (N, H) of ``keys`` (N, 4), and that reading their ``tokens`` took ``seconds``.

        A disk that is full, or cannot be written, is no reason to fail a run.
        """
        kept = _smallest_exact(torch.from_numpy(features))
        needed = keys.nbytes + kept.nbytes
        if not len(keys) or needed > self.limit_bytes:
            return
        contents = {"keys": torch.from_numpy(keys.view(np.int64)), "features": kept, "checks": _checks(kept)}
        name = hashlib.sha256(keys.tobytes()).hexdigest()[:32]
        with suppress(OSError, UserInputError):
            self.folder.mkdir(parents=True, exist_ok=True)
            check_free_space(self.folder, needed + ROOM_LEFT_BYTES)
            with replacing(self.folder / f"{name}{SUFFIX}") as temporary, system_errors():
                save_file(contents, temporary, {"tokens": str(tokens), "seconds": str(seconds)})
            _evict(self.folder.parent, self.limit_bytes)

    def tokens_per_s(self) -> float | None:
        """Of the newest pass that was long enough to tell; None if there is none."""
        for path in self._newest_first():
            with suppress(SafetensorError, OSError, ValueError, KeyError), system_errors():
                with safe_open(path, "pt") as file:
                    told = file.metadata()
                tokens, seconds = int(told["tokens"]), float(told["seconds"])
                if tokens >= LEAST_TOKENS and seconds > 0:
                    return tokens / seconds
        return None

    def _newest_first(self) -> list[Path]:
        return [path for _, path in sorted(_files(self.folder), reverse=True)]


def open_store(model_digest: str) -> FeatureStore | None:
    """The store of a model in the user's cache folder; None if the environment turns it off.

    Raises:
        UserInputError: the variable ``SNUGTUNE_FEATURE_CACHE_GIB`` is not a size.
    """
    given = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT_GIB)
    try:
        limit_gib = float(given)
    except ValueError:
        limit_gib = math.nan
    if not 0 <= limit_gib < math.inf:
        raise UserInputError(
            f"{LIMIT_VARIABLE}={given} is not a size in GiB; give a number such as 4, or 0 to keep nothing."
        )
    return FeatureStore(features_folder() / model_digest, round(limit_gib * GIB)) if limit_gib else None


def features_folder() -> Path:
    """Where the features of all models are kept."""
    return cache_folder() / "features"


def _matching(path: Path, keys: Keys, order: NDArray[np.int64]) -> tuple[NDArray[np.int64], Any]:
    """Of the rows ``order`` (M,), sorted by the first word of their keys, those that ``path`` holds intact,
    and their features.
    """
    with safe_open(path, "pt") as file:  # memory-mapped
        here = file.get_tensor("keys").numpy().view(np.uint64)
        features, checks = file.get_tensor("features"), file.get_tensor("checks")
        n = len(features)
        if not n or features.dim() != 2 or here.shape != (n, 4) or checks.shape != (n,):
            raise ValueError("the tensors do not belong together")
        by_first = np.argsort(here[:, 0], kind="stable")
        place = np.searchsorted(here[by_first, 0], keys[order, 0])
        place = by_first[np.minimum(place, len(by_first) - 1)]
        same = (here[place] == keys[order]).all(1)
        rows, place = order[same], torch.from_numpy(place[same])
        chosen = features[place]
        intact = (_checks(chosen) == checks[place]).numpy()
        return rows[intact], chosen[torch.from_numpy(intact)].float().numpy()


def _smallest_exact(features: Tensor) -> Tensor:
    half = features.bfloat16()
    return half if torch.equal(half.float(), features) else features


def _checks(features: Tensor) -> Tensor:
    """CRC-32 of each row (N,)."""
    rows = features.contiguous().view(torch.uint8).numpy()
    return torch.tensor([zlib.crc32(row) for row in rows], dtype=torch.int64)


def _files(folder: Path) -> Iterator[tuple[int, Path]]:
    """Finished files below ``folder`` with the time of their last use, ns."""
    for path in folder.rglob(f"*{SUFFIX}"):
        with suppress(OSError):  # another process may have removed it
            if not path.name.startswith("."):
                yield path.stat().st_mtime_ns, path


def _evict(root: Path, limit_bytes: int) -> None:
    """Remove what was not used for the longest time until all files take ``limit_bytes`` at most."""
    for path in root.rglob(f".*{SUFFIX}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                _remove(path)
    files = sorted(_files(root))
    sizes = {}
    for _, path in files:
        with suppress(OSError):
            sizes[path] = path.stat().st_size
    total = sum(sizes.values())
    for path, size in sizes.items():
        if total <= limit_bytes:
            return
        _remove(path)
        total -= size


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
