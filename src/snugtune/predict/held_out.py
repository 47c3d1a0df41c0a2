"""The held-out rows of a finished run: which they were stands in its folder, their texts in its table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from snugtune.data.columns import choose_columns, join_texts
from snugtune.data.identity import text_id
from snugtune.data.readers.parquet import check_parquet
from snugtune.data.table import iter_tables, reading_beside
from snugtune.errors import UserInputError

ROWS_AT_A_TIME = 10_000


@dataclass(frozen=True)
class HeldOut:
    """Some held-out rows: their texts, and in the same order what the run recorded of them.

    ``recorded`` has the columns of ``predictions.parquet``.
    """

    texts: list[str]
    recorded: pl.DataFrame

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, rows: int) -> HeldOut:
        """The first ``rows`` of them."""
        return HeldOut(self.texts[:rows], self.recorded[:rows])


def read_held_out(
    run: str | Path, record: dict[str, Any], *, rows: int, table: str | Path | None = None
) -> HeldOut:
    """At most ``rows`` validation and test rows of the folder ``run``, drawn evenly and always the same.

    Their texts are looked for in ``table`` or, left out, in the files that ``record`` (of ``run.json``) says
    it was trained and tested on. A text is known by its hash, so the table may have been sorted or
    extended since.

    Raises:
        UserInputError: no table is there, or none of the rows is in it.
    """
    recorded = _recorded(Path(run))
    # Hashes of texts are as good as random numbers.
    wanted = recorded.sort("text_id").unique("text_id", keep="first", maintain_order=True)[:rows]
    missing = set(wanted["text_id"].to_list())
    found: dict[int, str] = {}
    for text in _texts(record, table):
        key = text_id(text)
        if key in missing:
            missing.remove(key)
            found[key] = text
            if not missing:
                break
    here = wanted.filter(pl.col("text_id").is_in(list(found)))
    if here.is_empty():
        where = table or " and ".join(source for source, _ in _sources(record))
        raise UserInputError(
            f"None of the held-out rows of {run} is in {where}; name the table the run was trained on with "
            "--rows."
        )
    return HeldOut([found[key] for key in here["text_id"]], here)


def _recorded(run: Path) -> pl.DataFrame:
    path = run / "predictions.parquet"
    try:
        check_parquet(path)
        rows = pl.read_parquet(path)
        return rows.filter(pl.col("predicted_label").is_not_null())
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        raise UserInputError(
            f"{path} is missing or damaged, so nothing can be compared with what the run measured."
        ) from None


def _texts(record: dict[str, Any], table: str | Path | None) -> Iterator[str]:
    config, columns = record["config"], record["columns"]["text"]
    reading = {"encoding": config.get("encoding"), "delimiter": config.get("delimiter")}
    sources = [(str(table), None)] if table else _sources(record)
    for source, sheet in sources:
        options = {} if table else reading
        if source == config.get("test"):
            options = reading_beside(source, _columns(record), **reading)
        if not table and "://" not in source and not Path(source).exists():
            raise UserInputError(
                f"The table {source} that the run was trained on is not there; name it with --rows."
            )
        for frame in iter_tables(source, rows_per_batch=ROWS_AT_A_TIME, sheet=sheet, **options):
            choose_columns(frame, source=source, text=columns, label=None, need_label=False)
            yield from (text.strip() for text in join_texts(frame, columns))


def _columns(record: dict[str, Any]) -> list[str]:
    """Text and label columns."""
    text, label = record["columns"]["text"], record["columns"].get("label")
    return [*text, *([label] if isinstance(label, str) else label or ())]


def _sources(record: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Files with their sheets; those of a separate test file first, as it is the shorter one as a rule."""
    config = record["config"]
    tested = [(config["test"], config.get("test_sheet"))] if config.get("test") else []
    return [*tested, (config["train"], config.get("sheet"))]
