"""What is known of finished shards, in a folder of the output: so that a second run does not do them again.

``_snugtune/done/NAME.json`` is written when a shard's output is in its place, ``_snugtune/job.json`` before
anything else, and ``_snugtune/manifest.json`` at the end of each run. Spark, Ray, Hive and DuckDB leave out
names that begin with an underscore.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from snugtune.errors import UserInputError
from snugtune.files import file_digest
from snugtune.scale.places import Entry, Folder, open_folder
from snugtune.scale.shards import Shard

OWN = "_snugtune"
JOB, MANIFEST, DONE, PARTIAL = f"{OWN}/job.json", f"{OWN}/manifest.json", f"{OWN}/done", f"{OWN}/partial"

FORMAT = 1
_THREADS = 16
"""Requests under way at once where every one waits for the network."""


@dataclass(frozen=True)
class Marker:
    """A finished shard: what it was made from and by, and what came out.

    ``texts_sha256`` is over the texts in their order, of what was predicted and of what was written alike;
    ``output_sha256`` is over the bytes of the output.
    """

    name: str
    size: int
    modified: str
    output: str
    output_bytes: int
    output_sha256: str
    rows: int
    needs_review: int
    texts_sha256: str
    run: str
    options: dict[str, Any]
    seconds: float
    version: str
    format: int = FORMAT


_MARKER = TypeAdapter(Marker)


@dataclass(frozen=True)
class Standing:
    """How shards stand before a run: those to do, those finished, and why some are done again."""

    todo: list[Shard]
    finished: list[Marker]
    again: dict[str, list[str]]


def run_fingerprint(run: Path) -> str:
    """SHA-256 over what predictions rest on: ``run.json``, the weights and the baseline, by name and content.

    Raises:
        UserInputError: it is not a folder that can be read.
    """
    names = ["run.json"]
    for folder in ("adapter", "model", "baseline"):
        names += sorted(
            str(path.relative_to(run).as_posix()) for path in (run / folder).rglob("*") if path.is_file()
        )
    digest = hashlib.sha256()
    for name in names:
        try:
            digest.update(f"{name} {file_digest(run / name)}\n".encode())
        except OSError as error:
            raise UserInputError(f"{run / name} cannot be read: {error.strerror}.") from None
    return digest.hexdigest()


def write_marker(output: Folder, marker: Marker) -> None:
    """Say that a shard is done."""
    output.write(f"{DONE}/{marker.name}.json", json.dumps(asdict(marker), ensure_ascii=False).encode())


def standing(
    output: Folder,
    shards: Sequence[Shard],
    *,
    run: str,
    options: Mapping[str, Any],
    overwrite: bool = False,
) -> Standing:
    """Which of ``shards`` are finished as they are now: input, run, options and output unchanged.

    Args:
        output: where outputs and markers are.
        shards: the input as it is now.
        run: the fingerprint of the run.
        options: those of ``Options.as_dict``.
        overwrite: do all of them again, and replace files that are not ours.

    Raises:
        UserInputError: an output exists that this command has not written.
    """
    there = {entry.name: entry for entry in output.entries(recursive=True)}
    if overwrite:
        return Standing(list(shards), [], {})
    if output.entry(JOB) is None:
        _refuse_foreign(output, [shard for shard in shards if shard.output in there])
    known = _markers(output, shards)
    todo, finished, again = [], [], dict[str, list[str]]()
    for shard in shards:
        marker = known.get(shard.name)
        entry = there.get(shard.output)
        reason = None if marker is None else _stale(marker, shard, entry, run, options)
        if marker is not None and reason is None:
            finished.append(marker)
            continue
        todo.append(shard)
        if reason is not None:
            again.setdefault(reason, []).append(shard.name)
    return Standing(todo, finished, again)


def _stale(
    marker: Marker, shard: Shard, written: Entry | None, run: str, options: Mapping[str, Any]
) -> str | None:
    """Why a finished shard must be done again, or None."""
    if (marker.size, marker.modified) != (shard.size, shard.modified):
        return "their input was changed since"
    if marker.run != run:
        return "they are of another run"
    if marker.options != options or marker.format != FORMAT or marker.output != shard.output:
        return "they were made with other options"
    if written is None:
        return "their output is gone"
    return None if written.size == marker.output_bytes else "their output was changed since"


def _refuse_foreign(output: Folder, shards: Sequence[Shard]) -> None:
    if shards:
        raise UserInputError(
            f"{output.shown(shards[0].output)} already exists and was not written by this command; choose "
            "another --output or add --overwrite."
        )


def _markers(output: Folder, shards: Sequence[Shard]) -> dict[str, Marker]:
    there = {entry.name for entry in _below(output, DONE)}
    wanted = [shard.name for shard in shards if f"{shard.name}.json" in there]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _marker(output.read(f"{DONE}/{name}.json")), wanted)
        return {name: marker for name, marker in zip(wanted, found, strict=True) if marker is not None}


def _below(output: Folder, name: str) -> Iterable[Entry]:
    address, mark, options = output.address.partition("?")
    return open_folder(f"{address}/{name}{mark}{options}").entries(recursive=True)


def _marker(content: bytes | None) -> Marker | None:
    """A damaged one is none: its shard is done again."""
    try:
        return None if content is None else _MARKER.validate_json(content, strict=True)
    except ValidationError:
        return None


def begin_job(output: Folder, source: str, run: Path) -> None:
    """Say whose folder this is, before the first output is in it."""
    about = {
        "made_by": f"snugtune {version('snugtune')}",
        "source": source,
        "run": str(run),
        "format": FORMAT,
    }
    output.write(JOB, json.dumps(about, indent=2, ensure_ascii=False).encode())


def write_manifest(output: Folder, markers: Sequence[Marker], failed: Mapping[str, str]) -> None:
    """All finished shards with their counts and checksums in one file, and those that failed."""
    ordered = sorted(markers, key=lambda marker: marker.name)
    found = {
        "shards": len(ordered),
        "rows": sum(marker.rows for marker in ordered),
        "needs_review": sum(marker.needs_review for marker in ordered),
        "failed": dict(sorted(failed.items())),
        "done": [asdict(marker) for marker in ordered],
    }
    output.write(MANIFEST, json.dumps(found, indent=1, ensure_ascii=False).encode())
