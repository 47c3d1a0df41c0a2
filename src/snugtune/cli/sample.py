"""``snugtune sample``."""

from __future__ import annotations

import dataclasses
import json as json_module
from pathlib import Path
from typing import Annotated

import typer


def sample(
    output: Annotated[Path, typer.Argument(help="The table to write: .xlsx or .csv.")],
    rows: Annotated[int, typer.Option(help="Number of complaints.")] = 3600,
    seed: Annotated[int, typer.Option(help="Another seed, other complaints.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON alone.")] = False,
) -> None:
    """Write a table of invented complaints to try the tool on."""
    from snugtune.data.sample import write_sample
    from snugtune.errors import UserInputError

    if output.exists() and not overwrite:
        raise UserInputError(f"{output} exists already; name another file or add --overwrite.")
    summary = write_sample(output, rows=rows, seed=seed)
    if json:
        typer.echo(json_module.dumps({**dataclasses.asdict(summary), "path": str(output)}))
        return
    typer.echo(f"{summary.rows:,} complaints on {summary.categories} issues: {output}")
    typer.echo(
        f"Planted faults: {summary.duplicates} duplicates, {summary.wrong_labels} wrong labels,"
        f" {summary.blank_labels} blank labels, {summary.empty_texts} empty texts,"
        f" {summary.label_variants} label variants."
    )
