"""``-`` for a table: standard input and output, as other tools of a pipe have it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from snugtune.errors import UserInputError

PIPE = "-"


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
