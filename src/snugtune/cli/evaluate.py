"""``snugtune evaluate``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="The run folder that fit wrote.")],
    source: Annotated[str, typer.Argument(metavar="INPUT", help="The table to score on.")],
    text: Annotated[
        list[str] | None, typer.Option(help="Text column, if named otherwise than in training.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Label column, likewise; none at all is fine.")] = None,
    sheet: Annotated[str | None, typer.Option(help="Sheet of a workbook.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Encoding of a CSV that is not UTF-8.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON alone.")] = False,
) -> None:
    """Score a run on a table: snugtune evaluate runs/run may.csv."""
    from snugtune.cli.render import quiet_libraries, show_evaluation
    from snugtune.predict.evaluation import evaluate_table
    from snugtune.predict.predictor import Predictor

    quiet_libraries()
    result = evaluate_table(
        Predictor.load(run), source, text=tuple(text) if text else None, label=label,
        sheet=sheet, encoding=encoding,
    )  # fmt: skip
    if json:
        typer.echo(json_module.dumps(result, ensure_ascii=False))
    else:
        show_evaluation(result)
