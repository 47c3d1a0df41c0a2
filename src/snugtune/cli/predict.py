"""``snugtune predict``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer


def predict(
    run: Annotated[Path, typer.Argument(help="The run folder that fit wrote.")],
    source: Annotated[str, typer.Argument(metavar="INPUT", help="The table to classify.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV, TSV, Parquet, JSON lines or .xlsx.")],
    text: Annotated[
        list[str] | None, typer.Option(help="Text column, if named otherwise than in training.")
    ] = None,
    sheet: Annotated[str | None, typer.Option(help="Sheet of a workbook.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Encoding of a CSV that is not UTF-8.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON alone.")] = False,
) -> None:
    """Classify a table: snugtune predict runs/run new.xlsx -o done.xlsx."""
    from snugtune.cli.render import quiet_libraries
    from snugtune.predict.predictor import Predictor
    from snugtune.predict.write import write_tables

    quiet_libraries()
    predictor = Predictor.load(run)
    tables = predictor.tables(source, text=tuple(text) if text else None, sheet=sheet, encoding=encoding)
    counts = write_tables(tables, output)
    if json:
        typer.echo(json_module.dumps(counts))
    else:
        typer.echo(f"{counts['rows']:,} rows, {counts['needs_review']:,} for a person to look at: {output}")
