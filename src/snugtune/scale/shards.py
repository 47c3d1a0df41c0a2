"""The files of a bulk prediction: which there are, and where each one's output goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from snugtune.errors import UserInputError
from snugtune.scale.places import MAGIC, Folder, is_store_address, matches, open_folder, split_pattern
from snugtune.table_url import is_table_url

OUTPUT_SUFFIXES = {
    **{suffix: suffix for suffix in (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".xlsx", ".xlsm")},
    ".txt": ".csv",
    ".tab": ".tsv",
    ".pq": ".parquet",
    ".json": ".jsonl",
}
"""Formats that are read, and the suffix of each one's output: the same, where it is one that is written."""


@dataclass(frozen=True)
class Shard:
    """A file to predict: its name below its folder, bytes, time of change, name below the output."""

    name: str
    size: int
    modified: str
    output: str


def is_bulk(source: str) -> bool:
    """Whether ``source`` means several files, or one in an object store, rather than a single table here."""
    if is_table_url(source) or source.startswith("hf://"):
        return False
    return is_store_address(source) or (MAGIC.search(source) is not None and not Path(source).exists())


def find_shards(source: str, output: Folder) -> tuple[Folder, list[Shard], list[str]]:
    """The folder of ``source``, its shards in the order of their names, and files of unknown formats.

    Args:
        source: a path or address with wildcards, one file's, or a folder's with a slash at its end.
        output: what lies in it is no shard, also where the pattern reaches it.

    Raises:
        UserInputError: there are none, two would have the same output, the output is the folder that is read,
            or the store cannot be reached.
    """
    if "://" not in source and Path(source).is_dir():
        source = source.rstrip("/") + "/"
    address, pattern = split_pattern(source)
    folder = open_folder(address)
    _check_output(folder, output)
    if MAGIC.search(pattern):
        entries = folder.entries(recursive="/" in pattern or "**" in pattern)
        found = [entry for entry in entries if matches(entry.name, pattern)]
    else:
        found = [entry for entry in [folder.entry(pattern)] if entry is not None]
    inside = folder.name_of(output)
    found = [entry for entry in found if inside is None or not entry.name.startswith(f"{inside}/")]
    _refuse_strange([entry.name for entry in found])
    shards = [
        Shard(entry.name, entry.size, entry.modified, written_as)
        for entry in found
        if (written_as := output_name(entry.name)) is not None
    ]
    if not shards:
        known = ", ".join(sorted(OUTPUT_SUFFIXES))
        others = f" but {len(found):,} of other formats than {known}" if found else ""
        raise UserInputError(f"No file matches {source}{others}; check folder and pattern.")
    _refuse_twins(shards)
    return folder, shards, [entry.name for entry in found if output_name(entry.name) is None]


def output_name(name: str) -> str | None:
    """The name of the output of the shard ``name``; None if it is of no known format."""
    path = PurePosixPath(name)
    suffix = OUTPUT_SUFFIXES.get(path.suffix.lower())
    if suffix is None:
        return None
    return name if path.suffix.lower() == suffix else str(path.with_suffix(suffix))


def _refuse_strange(names: Sequence[str]) -> None:
    """Names of objects may be anything: one with ``..`` in it would be written outside of the output."""
    for name in names:
        if {"", ".", ".."} & set(name.split("/")) or "\\" in name or "\0" in name:
            raise UserInputError(f"{name!r} cannot be the name of a file everywhere; rename it.")


def _refuse_twins(shards: Sequence[Shard]) -> None:
    counts = Counter(shard.output for shard in shards)
    if twins := [shard for shard in shards if counts[shard.output] > 1]:
        names = [shard.name for shard in twins if shard.output == twins[0].output]
        raise UserInputError(
            f"{' and '.join(names[:2])} would both be written as {twins[0].output}; rename one of them."
        )


def _check_output(source: Folder, output: Folder) -> None:
    if source.name_of(output) == ".":
        raise UserInputError(f"The output {output.shown('')} is the folder of the input; name another one.")
    if output.local is not None and output.local.exists() and not output.local.is_dir():
        raise UserInputError(f"The output {output.local} is a file; name a folder, as many files come out.")
