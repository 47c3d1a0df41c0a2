"""A table in, the same table with predictions out: what can go wrong is said before the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import add
from pathlib import Path
from typing import Any, BinaryIO

from snugtune.data.cells import column_text
from snugtune.data.columns import choose_columns
from snugtune.data.table import iter_tables
from snugtune.errors import UserInputError
from snugtune.predict.alike import writer_like
from snugtune.predict.predictor import ADDED_COLUMNS, ROWS_PER_BATCH, Batch, Predictor
from snugtune.predict.summary import Summary
from snugtune.predict.write import check_fits, check_output, write_tables
from snugtune.progress import Observer
from snugtune.table_url import hide_password


def predict_table(
    predictor: Predictor,
    source: str | Path,
    output: str | Path | BinaryIO,
    *,
    text: Sequence[str] | None = None,
    overwrite: bool = False,
    csv_safe: bool = False,
    summary: bool = True,
    date: str | None = None,
    rows_per_batch: int = ROWS_PER_BATCH,
    observer: Observer | None = None,
    on_batch: Callable[[Batch], None] | None = None,
    **reading: Any,
) -> dict[str, int]:
    """Write the rows of ``source``, in their order, to ``output`` with the predicted columns added.

    Memory is constant in the number of rows. The table is read twice: first without the model, so that a
    fault in its last row is told in seconds and not after hours. ``output`` may be ``source`` itself; it is
    replaced when all is done. Returns the number of rows and of those that need review.

    Args:
        predictor: a finished run.
        source: whatever ``read_table`` reads.
        output: a file whose suffix decides the format, or a binary stream, which gets CSV.
            In the format of ``source``, what is the user's stays as it was (``predict/alike.py``).
        text: text columns, if named otherwise than in training.
        overwrite: replace a file that is already there.
        csv_safe: as in ``write_tables``.
        summary: put a sheet of counts and charts into a workbook.
        date: column by whose months the summary counts; found among the columns if left out.
        rows_per_batch: rows read and held at a time.
        observer: is told of the phases and the rows done.
        on_batch: is given each batch with its probabilities.
        **reading: ``sheet``, ``encoding`` and ``delimiter``, as for ``read_table``.

    Raises:
        UserInputError: the table cannot be read or has not the columns, or the output cannot be written.
    """
    observer, source = observer or Observer(), hide_password(str(source))
    if isinstance(output, (str, Path)):
        output = hide_password(str(output))
        check_output(output, overwrite=overwrite)
    texts, added = tuple(text or predictor.text_columns), predictor.added_names
    found = survey(source, text=texts, output=output, more_columns=added, observer=observer, **reading)
    if date is not None and date not in found.columns:
        raise UserInputError(f"{source} has no column {date!r}; it has {', '.join(found.columns)}.")
    separator = predictor.labels.separator
    counts = Summary(texts, date, ignored=added, separator=separator) if summary else None
    writer = writer_like(source, output, added, summary=counts, overwrite=overwrite, **reading)
    observer.phase("predict", found.rows)
    tables = predictor.tables(
        source, text=text, rows_per_batch=rows_per_batch, observer=observer, on_batch=on_batch, **reading
    )
    return write_tables(tables, output, csv_safe=csv_safe, writer=writer)


@dataclass(frozen=True)
class Survey:
    """What one reading of a table from end to end found."""

    rows: int
    columns: tuple[str, ...]


def survey(
    source: str | Path,
    *,
    text: Sequence[str],
    output: str | Path | BinaryIO | None = None,
    more_columns: Sequence[str] = ADDED_COLUMNS,
    observer: Observer | None = None,
    **reading: Any,
) -> Survey:
    """Read ``source`` once from end to end; a table without any text is told to ``observer``.

    Raises:
        UserInputError: it cannot be read, lacks a ``text`` column, or does not fit into the format of
            ``output`` with ``more_columns`` at its right.
    """
    observer = observer or Observer()
    observer.phase("survey")
    rows, filled, names = 0, False, []
    for frame in iter_tables(source, rows_per_batch=ROWS_PER_BATCH, **reading):
        if not rows:
            choose_columns(frame, source=str(source), text=text, label=None, need_label=False)
            names = frame.columns
            _tell_replaced(source, [name for name in more_columns if name in names], observer)
        if isinstance(output, (str, Path)):
            kept = frame.drop(more_columns, strict=False)
            check_fits(kept, output, rows_before=rows, more_columns=len(more_columns))
        row_of = partial(add, rows + 1)
        texts = [column_text(frame[name], source=str(source), row_of=row_of) for name in text]
        filled = filled or any(bool((one.str.strip_chars() != "").any()) for one in texts)
        rows += frame.height
    if not filled:
        observer.say(f"{source} has no row with a text in {', '.join(text)}.")
    return Survey(rows, tuple(names))


def _tell_replaced(source: str | Path, names: Sequence[str], observer: Observer) -> None:
    if names:
        observer.say(f"{source} already has {', '.join(names)}: replaced by the new predictions.")
