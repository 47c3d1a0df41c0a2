"""``-`` for a table: standard input and output, as other tools of a pipe have it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from snugtune.errors import UserInputError

PIPE = "-"


def standard_output() -> BinaryIO:
    """Standard output for bytes, buffered.

    With PYTHONUNBUFFERED set, ``sys.stdout.buffer`` may write a part of what it is given and say nothing.
    """
    return open(sys.stdout.fileno(), "wb", closefd=False)


@contextmanager
def readable(source: str) -> Iterator[str]:
    """The path of ``source``; standard input is kept in a temporary CSV file, as tables are read twice."""
    if source != PIPE:
        yield source
        return
    if sys.stdin.isatty():
        raise UserInputError("INPUT is - and nothing is piped in; name a file, or pipe a CSV in.")
    with TemporaryDirectory(prefix="snugtune-") as folder:
        path = Path(folder, "standard-input.csv")
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        try:
            yield str(path)
        except UserInputError as error:
            raise UserInputError(str(error).replace(str(path), "Standard input")) from None
