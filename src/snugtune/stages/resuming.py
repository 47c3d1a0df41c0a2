"""Where training states are committed, and what earlier processes of the same run have taken already."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from snugtune.cost.meter import EnergyMeter
from snugtune.data.tokens import Tokens
from snugtune.files import sha256
from snugtune.stages.job import Job
from snugtune.train.checkpoints import Checkpoints
from snugtune.train.group import check_same
from snugtune.train.recovery import Recovery, differences, identity_of_settings

WHOLE_BYTES, ENDS_BYTES = 2**28, 2**22
"""Weight files up to the first size are read whole for their fingerprint, of larger ones the two ends."""


def open_states(
    job: Job, tokens: dict[str, Tokens], recovery: Recovery | None, energy: EnergyMeter
) -> tuple[Recovery | None, Checkpoints | None]:
    """The states of this very run, if there is somewhere to keep some; of a group, in its first process.

    The recovery that is returned knows what earlier processes took until their newest state: seconds, energy
    and the restarts of which they told.

    Raises:
        TrainingError: the processes of a group were not given the same.
    """
    identity = {**identity_of_settings(job.config), "data": _digest(job, tokens), "weights": _weights(job)}
    check_same(job.group, identity, differences)
    if recovery is None or not job.group.is_first:
        return recovery, None
    earlier = recovery

    def meters() -> dict[str, Any]:
        used = energy.used()
        return {
            "spent_s": known.spent_s + job.clock.elapsed_s,
            "energy_wh": None if used is None else used.wh,
            "history": list(known.history),
        }

    checkpoints = Checkpoints(recovery.states, identity=identity, meters=meters)
    found = checkpoints.found_meters()
    known = earlier if found is None else _with_earlier(earlier, found)
    if found is not None and found.get("energy_wh") is not None:
        energy.carry_on(found["energy_wh"])
    return known, checkpoints


def _with_earlier(recovery: Recovery, found: dict[str, Any]) -> Recovery:
    """``recovery`` with what a state says of the processes before it."""
    told = [sentence for sentence in found.get("history", ()) if sentence not in recovery.history]
    # A supervisor counts what its workers took after their last state, too; a state knows earlier commands.
    spent_s = max(recovery.spent_s, float(found.get("spent_s", 0.0)))
    return replace(recovery, spent_s=spent_s, history=(*told, *recovery.history))


def _digest(job: Job, tokens: dict[str, Tokens]) -> str:
    digest = hashlib.sha256()
    for name in ("train", "validation"):
        for row in tokens[name].ids:
            digest.update(row.tobytes())
        digest.update(job.data.parts[name].y.tobytes())
    return digest.hexdigest()


def _weights(job: Job) -> str:
    """What tells the backbone's weights from others of its name: of a folder its files, else the commit."""
    folder = Path(job.backbone.source)
    if not folder.is_dir():
        return str(getattr(job.backbone.model.config, "_commit_hash", None))
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        digest.update(sha256(path).encode() if size <= WHOLE_BYTES else _ends(path, size))
    return digest.hexdigest()


def _ends(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        first = file.read(ENDS_BYTES)
        file.seek(size - ENDS_BYTES)
        return first + file.read()
