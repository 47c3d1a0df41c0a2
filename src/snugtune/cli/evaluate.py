"""``snugtune evaluate``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from snugtune.cli import completion

INPUT, OUTPUT = "How the input is read", "How the output is written"


def evaluate(
    run: Annotated[
        Path, typer.Argument(autocompletion=completion.runs, help="The run folder that fit wrote.")
    ],
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="The table to score on; - is a CSV piped in.")
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=INPUT, help="Text column, if named otherwise than in training."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=INPUT, help="Label column, likewise; repeat for several. None at all is fine."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            rich_help_panel=OUTPUT,
            help="Also write each row with its prediction and whether it is right.",
        ),
    ] = None,
    sheet: Annotated[str | None, typer.Option(rich_help_panel=INPUT, help="Sheet of a workbook.")] = None,
    table: Annotated[
        str | None, typer.Option(rich_help_panel=INPUT, help="Table of a database, if INPUT names none.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(rich_help_panel=INPUT, help="Encoding of a CSV that is not UTF-8.")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(rich_help_panel=INPUT, help="Delimiter of a CSV, if it is not found.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel=OUTPUT, help="Replace an --output that exists.")
    ] = False,
    summary: Annotated[
        bool,
        typer.Option(
            "--summary/--no-summary",
            rich_help_panel=OUTPUT,
            help="Add a sheet of counts and charts to a workbook.",
        ),
    ] = True,
    dtype: Annotated[
        str,
        typer.Option(
            autocompletion=completion.choice_of(*completion.DTYPES),
            help="Arithmetic: auto (float32, as measured), bfloat16, or int8 on a CPU.",
        ),
    ] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON alone.")] = False,
) -> None:
    """Score a run on a table, and say how it differs from the run's."""
    from snugtune.cli.pipe import readable
    from snugtune.cli.render import RichObserver, show_evaluation
    from snugtune.predict.evaluation import evaluate_table, read_reference
    from snugtune.predict.predictor import Predictor
    from snugtune.predict.write import check_output
    from snugtune.quiet import quiet_libraries
    from snugtune.table_url import hide_password, with_table

    source = hide_password(with_table(source, table))
    if output is not None:
        output = hide_password(output)
        check_output(output, overwrite=overwrite)
    quiet_libraries()
    with readable(source) as path, RichObserver() as observer:
        predictor = Predictor.load(run, dtype=dtype, observer=observer)  # type: ignore[arg-type]  # checked there
        result = evaluate_table(
            predictor, path, text=tuple(text) if text else None, label=tuple(label) if label else None,
            output=output, overwrite=overwrite, observer=observer, reference=read_reference(run),
            summary=summary, sheet=sheet, encoding=encoding, delimiter=delimiter,
        )  # fmt: skip
    if json:
        typer.echo(json_module.dumps(result, ensure_ascii=False))
        return
    show_evaluation(result)
    if output is not None:
        typer.echo(f"Row by row: {output}")
