"""Tables batch by batch into one file, memory constant in the number of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import polars as pl

from snugtune.errors import UserInputError
from snugtune.files import replacing


def write_tables(frames: Iterable[pl.DataFrame], output: str | Path) -> dict[str, int]:
    """Write ``frames`` one after the other to ``output``; its suffix decides the format.

    Returns the number of rows and of those that need review.

    Raises:
        UserInputError: the suffix is not one we write, or the file cannot be written.
    """
    output = Path(output)
    writer = _WRITERS.get(output.suffix.lower())
    if writer is None:
        raise UserInputError(f"Cannot write {output}: name it with one of {', '.join(sorted(_WRITERS))}.")
    counts = {"rows": 0, "needs_review": 0}

    def counted() -> Iterable[pl.DataFrame]:
        for frame in frames:
            counts["rows"] += frame.height
            counts["needs_review"] += int(frame["needs_review"].sum())
            yield frame

    with replacing(output) as temporary:
        writer(counted(), temporary)
    return counts


def _write_csv(frames: Iterable[pl.DataFrame], path: Path, separator: str = ",") -> None:
    with path.open("wb") as file:
        for i, frame in enumerate(frames):
            frame.write_csv(file, include_header=i == 0, separator=separator)


def _write_tsv(frames: Iterable[pl.DataFrame], path: Path) -> None:
    _write_csv(frames, path, separator="\t")


def _write_json_lines(frames: Iterable[pl.DataFrame], path: Path) -> None:
    with path.open("wb") as file:
        for frame in frames:
            frame.write_ndjson(file)


def _write_parquet(frames: Iterable[pl.DataFrame], path: Path) -> None:
    pl.concat(list(frames), how="vertical_relaxed").write_parquet(path)


def _write_excel(frames: Iterable[pl.DataFrame], path: Path) -> None:
    from xlsxwriter import Workbook

    # Cells that begin like a formula are text: what we write never computes.
    options = {"constant_memory": True, "strings_to_formulas": False, "strings_to_urls": False}
    with Workbook(path, options) as book:
        sheet, line = book.add_worksheet(), 0
        for frame in frames:
            if line == 0:
                sheet.write_row(0, 0, frame.columns)
                line = 1
            for row in frame.iter_rows():
                sheet.write_row(line, 0, ["" if value is None else value for value in row])
                line += 1


_WRITERS: dict[str, Callable[[Iterable[pl.DataFrame], Path], None]] = {
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".jsonl": _write_json_lines,
    ".ndjson": _write_json_lines,
    ".parquet": _write_parquet,
    ".xlsx": _write_excel,
}
