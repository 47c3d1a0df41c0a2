"""What is known of finished shards, in a folder of the output: so that a second run does not do them again.

``_snugtune/done/NAME.json`` is written when a shard's output is in its place, ``_snugtune/job.json`` before
anything else, and ``_snugtune/manifest.json`` at the end of each run. Spark, Ray, Hive and DuckDB leave out
names that begin with an underscore.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from snugtune.errors import UserInputError
from snugtune.files import file_digest
from snugtune.scale.places import Entry, Folder
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
    """How shards stand before a run: those to do, those finished, and why some are done again.

    ``others`` were finished by other patterns and are not asked for now. ``outputs`` are the names of all
    files in the output that are ours, or were begun.
    """

    todo: list[Shard]
    finished: list[Marker]
    again: dict[str, list[str]]
    others: list[Marker]
    outputs: set[str]


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
    source: Folder,
    output: Folder,
    shards: Sequence[Shard],
    *,
    run: str,
    options: Mapping[str, Any],
    overwrite: bool = False,
) -> Standing:
    """Which of ``shards`` are finished as they are now: input, run, options and output unchanged.

    Args:
        source: the folder of the input.
        output: where outputs and markers are.
        shards: the input as it is now.
        run: the fingerprint of the run.
        options: those of ``Options.as_dict``.
        overwrite: do all of them again, and replace files that are not ours.

    Raises:
        UserInputError: an output exists that this command has not written, or was made from other files.
    """
    job = _job(output)
    known = _markers(output)
    if not overwrite:
        _refuse_other_source(source, output, job)
    elif job.get("folder") != _place(source):
        known = {}  # of files that only have the same names
    wanted = {shard.name for shard in shards}
    others = [marker for name, marker in known.items() if name not in wanted]
    ours = {marker.output for marker in known.values()} | set(job.get("outputs", ()))
    if overwrite:
        return Standing(list(shards), [], {}, others, ours)
    there = _entries_of(output, [shard.output for shard in shards])
    _refuse_foreign(output, [shard for shard in shards if shard.output in there.keys() - ours])
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
    return Standing(todo, finished, again, others, ours)


def _entries_of(output: Folder, names: Sequence[str]) -> dict[str, Entry]:
    """What there is of ``names``: only the folders that they are in are listed."""
    folders = sorted({name.rpartition("/")[0] for name in names})
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: list(_inside(output, name).entries(recursive=False)), folders)
        listed = zip(folders, found, strict=True)
        return {
            f"{folder}/{entry.name}" if folder else entry.name: entry
            for folder, entries in listed
            for entry in entries
        }


def _inside(output: Folder, name: str) -> Folder:
    return output.below(name) if name else output


def _place(source: Folder) -> str:
    """The folder of the input, as it is told and kept."""
    return source.shown("") if source.local is None else str(source.local.resolve())


def _job(output: Folder) -> dict[str, Any]:
    """What ``begin_job`` has written, empty if nothing."""
    try:
        found = json.loads(output.read(JOB) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_other_source(source: Folder, output: Folder, job: Mapping[str, Any]) -> None:
    before = job.get("folder")
    if before not in (None, _place(source)):
        raise UserInputError(
            f"{output.shown('')} holds what was made from {before}, not from {_place(source)}, whose files "
            "may have the same names; choose another --output or add --overwrite."
        )


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


def _markers(output: Folder) -> dict[str, Marker]:
    """By the names of their shards."""
    done = output.below(DONE)
    names = [entry.name for entry in done.entries(recursive=True) if entry.name.endswith(".json")]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = [marker for marker in pool.map(lambda name: _marker(done.read(name)), names) if marker]
    return {marker.name: marker for marker in found}


def _marker(content: bytes | None) -> Marker | None:
    """A damaged one is none: its shard is done again."""
    try:
        return None if content is None else _MARKER.validate_json(content, strict=True)
    except ValidationError:
        return None


def begin_job(output: Folder, source: str, run: Path, folder: Folder, begun: Standing) -> None:
    """Say whose folder this is, before the first output is in it, and which files in it will be ours."""
    about = {
        "made_by": f"snugtune {version('snugtune')}",
        "source": source,
        "folder": _place(folder),
        "run": str(run),
        "format": FORMAT,
        "outputs": sorted(begun.outputs | {shard.output for shard in begun.todo}),
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
