"""Parquet files, a few row groups at a time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import polars as pl

from snugtune.container import available_memory_bytes
from snugtune.data.readers.request import Opened, Request, first_line
from snugtune.errors import UserInputError

_PARQUET_SLICE = 1 << 16  # a slice decodes its row group again, so slices are not small

_TRIAL = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]
path, step, memory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
import polars as pl
try:
    import resource
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, OSError, ValueError):
    pass
lazy = pl.scan_parquet(path, glob=False)
for start in range(0, lazy.select(pl.len()).collect().item(), step):
    lazy.slice(start, step).collect()
"""
"""Reads a file as `open_parquet` does, in a process that may end as it likes."""


def open_parquet(request: Request) -> Opened:
    """A Parquet file with the types it has; categories become text.

    Raises:
        UserInputError: it is damaged: at once, or (as long as it is read) when that is reached.
    """
    check_parquet(request.path, _step(request.rows))
    return Opened(parquet_frames(request.source, request.rows), first_row=1)


def check_parquet(path: str | Path, step: int = _PARQUET_SLICE) -> None:
    """Read a file to its end in another process, ``step`` rows at a time.

    Of some damage polars does not raise an error but ends the process that reads it: a count of bits becomes
    an allocation of 2^61 bytes (2.1.0). And a file of a few KiB may unpack to more than the memory.

    Raises:
        UserInputError: that process did not survive it.
    """
    about = Path(path).stat()
    _tried(str(path), step, about.st_mtime_ns, about.st_size)


@cache
def _tried(path: str, step: int, *_state: int) -> None:
    memory = available_memory_bytes()
    command = [sys.executable, "-W", "ignore", "-c", _TRIAL, path, str(step), str(memory)]
    done = subprocess.run(command, capture_output=True, check=False)
    # What it said by an exception is met again here, and told.
    if done.returncode < 0:
        raise UserInputError(
            f"{path} is a damaged Parquet file, or one that needs more memory than there is; write it anew."
        )


def _step(rows: int) -> int:
    """Full batches but the last."""
    return max(rows, _PARQUET_SLICE // rows * rows)


def parquet_frames(source: str, rows: int) -> Iterator[pl.DataFrame]:
    """The rows of a file of our own, or one that was tried before.

    Raises:
        UserInputError: it is damaged.
    """
    step = _step(rows)
    try:
        lazy = pl.scan_parquet(source, glob=False)
        height = lazy.select(pl.len()).collect().item()
        texts = pl.col(pl.Categorical, pl.Enum).cast(pl.String)
        for start in range(0, height, step):
            yield from lazy.slice(start, step).with_columns(texts).collect().iter_slices(rows)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise UserInputError(f"{source} is a damaged Parquet file ({first_line(error)}).") from None
