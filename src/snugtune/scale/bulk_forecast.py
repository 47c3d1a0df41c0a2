"""How much there is to predict, how long it will take and what it will cost: told before it begins."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from snugtune.cost.prices import Price, as_dict, cost_usd
from snugtune.data.columns import choose_columns, join_texts
from snugtune.data.table import iter_tables
from snugtune.predict.predictor import Predictor
from snugtune.scale.markers import Marker, Standing
from snugtune.scale.places import Folder
from snugtune.scale.shards import Shard
from snugtune.scale.work import PARQUET, Options, is_empty
from snugtune.units import duration

SAMPLE_ROWS = 4096
"""Rows of the first shard that are timed."""

_THREADS = 16


@dataclass(frozen=True)
class Amount:
    """What is to be done: shards, their bytes, and rows, None where not all of them are Parquet files."""

    shards: int
    size: int
    rows: int | None

    def by_bytes(self, finished: Sequence[Marker], todo: Sequence[Shard]) -> int | None:
        """All rows: as counted, else as many a byte as the ``finished`` shards have."""
        if self.rows is not None:
            return self.rows
        sizes = {shard.name: shard.size for shard in todo}
        size = sum(sizes[marker.name] for marker in finished)
        rows = sum(marker.rows for marker in finished)
        return round(rows / size * self.size) if size else None


def amount(source: Folder, shards: Sequence[Shard]) -> Amount:
    """Count bytes, and rows by the footers of Parquet files: two small requests each."""
    counts: list[int | None] = [None]
    if shards and all(shard.name.lower().endswith(PARQUET) for shard in shards):
        with ThreadPoolExecutor(_THREADS) as pool:
            counts = list(pool.map(lambda shard: _footer_rows(source, shard.name), shards))
    known = [count for count in counts if count is not None]
    rows = sum(known) if len(known) == len(counts) else None
    return Amount(len(shards), sum(shard.size for shard in shards), rows)


def _footer_rows(source: Folder, name: str) -> int | None:
    """None of a damaged file, which its worker will tell of, and without pyarrow."""
    try:
        from pyarrow import parquet

        from snugtune.scale.places import StoreFolder

        if isinstance(source, StoreFolder):
            found = parquet.read_metadata(f"{source.path}/{name}", filesystem=source.files)
        else:
            assert source.local is not None
            found = parquet.read_metadata(source.local / name)
    except Exception:
        return None
    return int(found.num_rows)


@dataclass(frozen=True)
class Forecast:
    """What is to be done and at which rate; the rows where they are not known are an estimate.

    ``rows_per_s`` is that of one worker, measured on ``sample_rows`` rows of the first shard on this machine.
    ``price`` is that of one worker's machine, where it is known.
    """

    shards: int
    finished: int
    size: int
    rows: int
    rows_are_counted: bool
    rows_per_s: float
    sample_rows: int
    workers: int
    price: Price | None

    @property
    def seconds(self) -> float:
        """Of all: no worker is idle until the shards run out; the last round of shards counts whole."""
        return work_seconds(self.rows, self.rows_per_s, self.workers, self.shards)

    @property
    def usd(self) -> float | None:
        """All workers' machines for that time."""
        per_hour = None if self.price is None else self.price.usd_per_hour
        return cost_usd(self.seconds * self.workers, per_hour)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        names = (
            "shards", "finished", "size", "rows", "rows_are_counted", "rows_per_s", "sample_rows", "workers",
            "seconds", "usd",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names} | {"price": as_dict(self.price)}


def work_seconds(rows: int, rows_per_s: float, workers: int, shards: int) -> float:
    """Seconds of ``rows`` in ``shards`` of like size: rounds x rows a shard / rate.

    In every round each worker does one shard, so rounds = ceil(shards / workers).
    """
    if not rows or not shards or not rows_per_s:
        return 0.0
    return math.ceil(shards / workers) * (rows / shards) / rows_per_s


def forecast(
    predictor: Predictor,
    source: Folder,
    state: Standing,
    found: Amount,
    options: Options,
    *,
    workers: int = 1,
    price: Price | None = None,
) -> Forecast | None:
    """Time ``SAMPLE_ROWS`` rows of the first shard to do; None if nothing is to be done.

    Raises:
        UserInputError: that shard cannot be read or lacks a column.
    """
    if not state.todo:
        return None
    first, texts, share = _first_texts(predictor, source, state.todo, options)
    predictor.columns(texts[:64])  # the first batch is slower
    began = time.perf_counter()
    predictor.columns(texts)
    rate = len(texts) / (time.perf_counter() - began)
    rows = found.rows
    if rows is None:
        rows = round(len(texts) / share * found.size / max(1, first.size))
    return Forecast(
        shards=found.shards, finished=len(state.finished), size=found.size, rows=rows,
        rows_are_counted=found.rows is not None, rows_per_s=rate, sample_rows=len(texts), workers=workers,
        price=price,
    )  # fmt: skip


def _first_texts(
    predictor: Predictor, source: Folder, todo: Sequence[Shard], options: Options
) -> tuple[Shard, list[str], float]:
    """The first of the files that has rows, some texts of it, and which share of it they are."""
    for shard in todo:
        with TemporaryDirectory(prefix="snugtune-") as folder:
            path = Path(folder, Path(shard.name).name)
            if source.local is not None:
                path = source.local / shard.name
            else:
                source.fetch(shard.name, path)
            if not is_empty(path):
                return shard, *_sample(predictor, path, options)
    return todo[0], [], 1.0


def _sample(predictor: Predictor, path: Path, options: Options) -> tuple[list[str], float]:
    """Texts of the first rows, and about which share of the file they are."""
    frame = next(iter(iter_tables(path, rows_per_batch=SAMPLE_ROWS, **options.reading)))
    columns = choose_columns(
        frame, source=str(path), text=options.text or predictor.text_columns, label=None, need_label=False
    )
    share = min(1.0, _encoded_bytes(frame, path.suffix.lower()) / max(1, path.stat().st_size))
    return join_texts(frame, columns.text), share


def _encoded_bytes(frame: pl.DataFrame, suffix: str) -> int:
    """What the rows take in a file of that kind, about."""
    if suffix in (".csv", ".tsv", ".txt", ".tab"):
        return len(frame.write_csv().encode())
    if suffix in (".jsonl", ".ndjson", ".json"):
        return len(frame.write_ndjson().encode())
    return int(frame.estimated_size())


def begin_sentence(where: str, state: Standing, found: Amount) -> str:
    """Before it begins: what there is, and what of it is to do."""
    files = f"{found.shards + len(state.finished):,} files in {where}"
    skipped = f"; {len(state.finished):,} are finished and skipped" if state.finished else ""
    if not state.todo:
        return f"{files}{skipped}: nothing to do."
    rows = f", {found.rows:,} rows" if found.rows is not None else ""
    return f"{files}{skipped}; to do: {found.shards:,}{rows}, {found.size / 1e6:,.1f} MB."


def left_sentence(done: int, rows: int | None, seconds: float) -> str:
    """After the first shard: the rate, and what is left at it."""
    rate = done / seconds if seconds else 0.0
    told = f"{rate:,.0f} rows a second so far"
    if rows is None or not rate:
        return f"{told}."
    return f"{told}; about {duration(max(rows - done, 0) / rate)} left."
