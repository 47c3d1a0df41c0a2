"""A case of the fuzz tests: which file is damaged how, and what is then done with it."""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from fuzz import folders, texts, zips
from fuzz.binary import BINARY, PARQUET

OPERATIONS = {
    "csv": BINARY | texts.CSV,
    "json": BINARY | texts.JSON,
    "xlsx": zips.WORKBOOK,
    "parquet": BINARY | PARQUET,
    "sqlite": BINARY,
    "yaml": texts.YAML | texts.CSV,
    "reviews": BINARY,
    "dataset": folders.DATASET,
    "run": folders.RUN,
    "model": folders.MODEL,
}
"""Ways to damage, by family: functions of bytes (of folders: of the folder) and a ``random.Random``."""

TARGETS = {
    "csv": ("read", "read", "read", "predict"),
    "json": ("read", "read", "read", "predict"),
    "xlsx": ("read", "predict"),
    "parquet": ("read", "read", "read", "predict"),
    "sqlite": ("read", "predict"),
    "yaml": ("config",),
    "reviews": ("reviews",),
    "dataset": ("read",),
    "run": ("load",) * 10 + ("export", "report"),
    "model": ("backbone",),
}
"""What is done with a file of each family; what is named more often is done more often."""


@dataclass(frozen=True)
class Case:
    """``ways`` are names of operations, each with the seed of its own random numbers."""

    family: str
    target: str
    sample: int
    ways: tuple[tuple[str, int], ...]

    def write(self, samples, folder):
        """The damaged copy of its sample in ``folder``."""
        found = sorted(Path(samples, self.family).iterdir())
        source = found[self.sample % len(found)]
        path = Path(folder, source.name)
        operations = OPERATIONS[self.family]
        if source.is_dir():
            shutil.copytree(source, path)
            for name, seed in self.ways:
                operations[name](path, random.Random(seed))
        else:
            content = source.read_bytes()
            for name, seed in self.ways:
                content = operations[name](content, random.Random(seed))
            path.write_bytes(content)
        return path
