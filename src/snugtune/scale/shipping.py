"""A run sent to workers that do not see its folder: what predictions need of it, as one archive of bytes."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from snugtune.errors import UserInputError
from snugtune.scale.markers import run_fingerprint

PARTS = ("run.json", "adapter", "model", "baseline")
"""Of a run's folder; states to resume from, predictions and the report stay."""

KEPT_S = 7 * 24 * 3600
"""How long a run that was sent stays on a machine after its last use."""


def pack(run: Path) -> bytes:
    """What predictions need of ``run``; as large as its weights, and held in memory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in PARTS:
            if (run / name).exists():
                archive.add(run / name, arcname=name)
    return buffer.getvalue()


def unpacked(run: Path, fingerprint: str, fetch: Callable[[], bytes] | None) -> Path:
    """``run`` if it is here as ``fingerprint`` says; else what ``fetch`` gives, in a folder of this machine.

    Raises:
        UserInputError: the run is not here, and none was sent, or what was sent is damaged.
    """
    if (run / "run.json").is_file() and run_fingerprint(run) == fingerprint:
        return run
    if fetch is None:
        raise UserInputError(f"{run} is not there, or is another run than when this began; run it again.")
    user = os.getuid() if hasattr(os, "getuid") else 0
    root = Path(tempfile.gettempdir(), f"snugtune-runs-{user}")
    root.mkdir(mode=0o700, exist_ok=True)
    target = root / fingerprint
    _remove_old(root, target)
    if not target.is_dir():
        staging = Path(tempfile.mkdtemp(dir=root))
        try:
            with tarfile.open(fileobj=io.BytesIO(fetch())) as archive:
                archive.extractall(staging, filter="data")
            try:
                staging.rename(target)
            except OSError:  # another worker was first
                shutil.rmtree(staging)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    if run_fingerprint(target) != fingerprint:
        raise UserInputError(f"{target} is not the run that was sent; delete it and run this again.")
    os.utime(target)
    return target


def _remove_old(root: Path, wanted: Path) -> None:
    """Runs that no worker has asked for in ``KEPT_S``, and what died workers were unpacking."""
    for folder in root.iterdir():
        with suppress(OSError):
            if folder != wanted and time.time() - folder.stat().st_mtime > KEPT_S:
                shutil.rmtree(folder, ignore_errors=True)
