"""How a worker goes on after one that died, and where its committed training states lie. Needs no torch.

The folder of states holds one folder for each commit, ``NUMBER-step-STEP``, of which the highest number is
the newest. Its ``manifest.json`` is written last and names every file with its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1

_COMMITTED = re.compile(r"(\d+)-step-\d+")

AS_PLANNED, HALF_BATCHES, ALL_LEVERS, ON_CPU = range(4)

CAUTION = {
    AS_PLANNED: "as planned",
    HALF_BATCHES: "with micro-batches of half the size",
    ALL_LEVERS: "with every lever that keeps the result",
    ON_CPU: "on the CPU",
}
"""What each degree of caution means; none of them changes the result."""


@dataclass(frozen=True)
class Recovery:
    """How a worker goes on after one that died: where its committed states lie and how careful to be.

    ``caution`` is a key of ``CAUTION``; ``history`` has one sentence for each restart, the oldest first.
    ``spent_s`` are the seconds that earlier workers took, with the waits after them.
    """

    states: Path
    restarts: int = 0
    caution: int = AS_PLANNED
    history: tuple[str, ...] = ()
    spent_s: float = field(default=0.0, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``from_json`` in another process."""
        return {**asdict(self), "states": str(self.states)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Recovery:
        """What ``to_json`` returned."""
        return cls(**{**value, "states": Path(value["states"]), "history": tuple(value["history"])})


@dataclass(frozen=True)
class Committed:
    """A committed state as its manifest has it; whether its files are whole is seen when it is read."""

    step: int
    fingerprint: str


def states_folder(out: str | Path) -> Path:
    """Where the states of the run ``out`` lie while it is trained: ``.NAME.states`` beside it."""
    out = Path(out).absolute()
    return out.with_name(f".{out.name}.states")


def committed_folders(states: Path) -> list[Path]:
    """The folders of committed states, the newest first."""
    if not states.is_dir():
        return []
    return sorted(filter(commit_number, states.iterdir()), key=commit_number, reverse=True)


def commit_number(folder: Path) -> int:
    """The number of a commit, from 1; 0 for anything else that may lie there."""
    match = _COMMITTED.fullmatch(folder.name)
    return int(match[1]) if match else 0


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a committed state.

    Raises:
        OSError, ValueError: it is missing, damaged, or of another format.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="ascii"))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError("it has another format")
    return manifest


def newest_committed(states: Path) -> Committed | None:
    """The newest state with a readable manifest, without reading the state itself."""
    for folder in committed_folders(states):
        try:
            manifest = read_manifest(folder)
            return Committed(int(manifest["step"]), str(manifest["fingerprint"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def fingerprint_of(value: Any) -> str:
    """SHA-256 of JSON-ready ``value``: the same for the same settings and data, whatever their order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()
