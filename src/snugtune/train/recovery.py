"""How training goes on after a process that ended early, and where its committed states lie. Needs no torch.

The folder of states holds one folder for each commit, ``NUMBER-step-STEP``, of which the highest number is
the newest. Its ``manifest.json`` is written last and names every file with its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from snugtune.config import WITHOUT_EFFECT_ON_WEIGHTS, FitConfig

MANIFEST = "manifest.json"
FORMAT = 2

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
    """How a process goes on after one that died: where its committed states lie and how careful to be.

    ``caution`` is a key of ``CAUTION``; ``history`` has one sentence for each restart, the oldest first.
    ``spent_s`` are the seconds that earlier processes took, with the waits after them. ``watched``: somebody
    starts a new process when this one asks for it. ``float32``: half precision has not held the numbers.
    """

    states: Path
    restarts: int = 0
    caution: int = AS_PLANNED
    history: tuple[str, ...] = ()
    spent_s: float = field(default=0.0, compare=False)
    watched: bool = False
    float32: bool = False

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
    identity: dict[str, Any] = field(default_factory=dict, compare=False)
    size_bytes: int = field(default=0, compare=False)


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
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            return Committed(
                int(manifest["step"]), str(manifest["fingerprint"]), dict(manifest.get("identity", {})), size
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def fingerprint_of(value: Any) -> str:
    """SHA-256 of JSON-ready ``value``: the same for the same settings and data, whatever their order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()


def identity_of_settings(config: FitConfig) -> dict[str, Any]:
    """What a state depends on, as far as it is known before the data are read."""
    return {
        "config": config.model_dump(mode="json", exclude=set(WITHOUT_EFFECT_ON_WEIGHTS)),
        # States outlive this command: another version might not go on as this one would have.
        "versions": {name: version(name) for name in ("snugtune", "torch", "transformers", "peft")},
    }


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In what a state's identity ``then`` differs from a run's ``now``, for people; only what both know."""
    found = []
    for key in sorted(then.keys() & now.keys()):
        if isinstance(then[key], dict) and isinstance(now[key], dict):
            names = sorted(then[key].keys() | now[key].keys())
            pairs = [(name, then[key].get(name), now[key].get(name)) for name in names]
            found += [f"{name} was {_told(a)} and is {_told(b)}" for name, a, b in pairs if a != b]
        elif then[key] != now[key]:
            found.append(f"{key} are others")
    return found


def _told(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)
