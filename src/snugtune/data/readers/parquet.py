"""Parquet files, a few row groups at a time."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from snugtune.data.readers.request import Opened, Request, first_line
from snugtune.errors import UserInputError

_PARQUET_SLICE = 1 << 16  # a slice decodes its row group again, so slices are not small


def open_parquet(request: Request) -> Opened:
    """A Parquet file with the types it has; categories become text.

    Raises:
        UserInputError: it is damaged, when that is reached.
    """
    return Opened(_parquet_frames(request.source, request.rows), first_row=1)


def _parquet_frames(source: str, rows: int) -> Iterator[pl.DataFrame]:
    step = max(rows, _PARQUET_SLICE // rows * rows)  # full batches but the last
    try:
        lazy = pl.scan_parquet(source, glob=False)
        height = lazy.select(pl.len()).collect().item()
        texts = pl.col(pl.Categorical, pl.Enum).cast(pl.String)
        for start in range(0, height, step):
            yield from lazy.slice(start, step).with_columns(texts).collect().iter_slices(rows)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise UserInputError(f"{source} is a damaged Parquet file ({first_line(error)}).") from None
