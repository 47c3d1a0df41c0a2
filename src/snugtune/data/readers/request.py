"""What a reader of tables is asked for and gives, and what all of them need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl

from snugtune.errors import UserInputError

Row = list[str | None]


@dataclass(frozen=True)
class Request:
    """A source, the rows of a batch, and how the user said to read it."""

    source: str
    rows: int
    sheet: str | None
    encoding: str | None
    delimiter: str | None

    @property
    def path(self) -> Path:
        """The source as a file."""
        return Path(self.source)


@dataclass(frozen=True)
class Opened:
    """Batches of rows, the row of the first of them in the file, and the sheet of a workbook.

    ``blank_lines`` has, for each blank line below the header that is not in a batch, how many data rows are
    above it; it is complete when the last batch has been made.
    """

    batches: Iterator[pl.DataFrame]
    first_row: int
    sheet: str | None = None
    blank_lines: Sequence[int] = ()


Reader = Callable[[Request], Opened]


def string_frames(names: Sequence[str], cells: Iterator[Row], rows: int) -> Iterator[pl.DataFrame]:
    """Frames of text columns ``names`` from rows of cells, ``rows`` at a time."""
    schema = dict.fromkeys(names, pl.String)
    while batch := list(islice(cells, rows)):
        columns = zip(*batch, strict=True)
        yield pl.DataFrame(dict(zip(names, columns, strict=True)), schema=schema)


def column_names(header: Sequence[str | None], source: str) -> list[str]:
    """Names without surrounding blanks; a column without one is called by its number."""
    names = [(name or "").strip() or f"column_{i}" for i, name in enumerate(header, start=1)]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserInputError(
            f"{source} has more than one column named {listing(repeated)}; make each name unique."
        )
    return names


def listing(names: Iterable[str]) -> str:
    """Names as a sentence lists them, the first of very many."""
    shown = [f"{name!r:.80}" for name in islice(names, _MOST_LISTED + 1)]
    return ", ".join([*shown[:_MOST_LISTED], "..."] if len(shown) > _MOST_LISTED else shown)


_MOST_LISTED = 30


def first_line(error: BaseException) -> str:
    """The beginning of what an error says, in one line and without its full stop."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:_LONGEST_REASON]
    return "".join(c if c.isprintable() else " " for c in said).rstrip(". ")


_LONGEST_REASON = 200  # libraries repeat what they could not read
