"""``snugtune predict``."""

from __future__ import annotations

import json as json_module
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from snugtune.cli import completion
from snugtune.errors import UserInputError

INPUT, OUTPUT = "How the input is read", "How the output is written"
BULK = "Many files at once"


def predict(
    run: Annotated[
        Path, typer.Argument(autocompletion=completion.runs, help="The run folder that fit wrote.")
    ],
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="The table to classify; - is a CSV piped in, 'a/*.csv' or 's3://b/*.parquet' many files.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="CSV, TSV, Parquet, JSON lines, .xlsx, or sqlite:///file.db?table=NAME (also duckdb, "
            "postgresql); - is a CSV on standard output; a folder or s3://, gs:// for many files.",
        ),
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=INPUT, help="Text column, if named otherwise than in training."),
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
        bool,
        typer.Option(
            "--overwrite",
            rich_help_panel=OUTPUT,
            help="Replace an OUTPUT that exists; it may be INPUT itself.",
        ),
    ] = False,
    csv_safe: Annotated[
        bool,
        typer.Option(
            "--csv-safe",
            rich_help_panel=OUTPUT,
            help="An apostrophe before labels in a CSV that look like a formula (= + - @).",
        ),
    ] = False,
    summary: Annotated[
        bool,
        typer.Option(
            "--summary/--no-summary",
            rich_help_panel=OUTPUT,
            help="Add a sheet of counts by label and month, with charts, to a workbook.",
        ),
    ] = True,
    date: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=OUTPUT, help="Column of the summary's months; the first one of dates if left out."
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            autocompletion=completion.choice_of(*completion.DTYPES),
            help="Arithmetic: auto (float32, as measured); bfloat16, often faster; int8, a CPU: less exact.",
        ),
    ] = "auto",
    engine: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=BULK,
            autocompletion=completion.choice_of("local", "ray"),
            help="Who does it: local, one file after the other; ray, several at a time, on a cluster too.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(rich_help_panel=BULK, help="Most workers of Ray at a time.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(rich_help_panel=BULK, help="Of a Ray cluster (also: RAY_ADDRESS).")
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", rich_help_panel=BULK, help="Only say how many rows, how long and how much."),
    ] = False,
    price: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=BULK,
            help="USD per hour of one worker's machine, for --plan (the GPU's list price).",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON alone.")] = False,
) -> None:
    """Classify a table.

    Every row of INPUT comes out in its order with five columns added:
    predicted_label, confidence, needs_review, second_label, third_label; or, of
    a run with several labels a text, label_confidences and next_label. Columns
    of these names that INPUT already has are replaced. A workbook keeps
    everything else it has: sheets, formats, formulas, filters.

    Of many files each becomes one of the same name in the folder OUTPUT. Those
    that are finished are skipped when the same command is given again.
    """
    from snugtune.scale.shards import is_bulk

    if engine is not None or plan or is_bulk(source):
        from snugtune.cli.bulk import predict_many

        predict_many(
            run, source, output, engine=engine or "local", workers=workers, address=address, plan=plan,
            price=price, overwrite=overwrite, table=table, json=json, text=text, dtype=dtype,
            csv_safe=csv_safe, summary=summary, date=date, sheet=sheet, encoding=encoding,
            delimiter=delimiter,
        )  # fmt: skip
        return
    if workers is not None or address is not None or price is not None:
        raise UserInputError(
            "--workers, --address and --price are for many files: name several, as in/*.csv, or add --engine."
        )
    from snugtune.cli.pipe import PIPE, readable, standard_output
    from snugtune.cli.render import RichObserver
    from snugtune.predict.predictor import Predictor
    from snugtune.predict.table import predict_table
    from snugtune.predict.write import check_output
    from snugtune.quiet import quiet_libraries
    from snugtune.table_url import hide_password, with_table

    source, output = hide_password(with_table(source, table)), hide_password(output)
    piped = output == PIPE
    if piped and json:
        raise UserInputError("--json and --output - would both fill standard output; drop one.")
    if not piped:
        check_output(output, overwrite=overwrite)
    quiet_libraries()
    target: Any = standard_output() if piped else output
    try:
        with readable(source) as path, RichObserver() as observer:
            predictor = Predictor.load(run, dtype=dtype, observer=observer)  # type: ignore[arg-type]  # checked there
            counts = predict_table(
                predictor, path, target, text=tuple(text) if text else None, overwrite=overwrite,
                csv_safe=csv_safe, summary=summary, date=date, observer=observer, sheet=sheet,
                encoding=encoding, delimiter=delimiter,
            )  # fmt: skip
    except BrokenPipeError:
        # The reader has seen enough, as with `| head`; the interpreter would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    if json:
        typer.echo(json_module.dumps(counts))
    else:
        where = "standard output" if piped else output
        typer.echo(
            f"{counts['rows']:,} rows, {counts['needs_review']:,} for a person to look at: {where}", err=piped
        )
