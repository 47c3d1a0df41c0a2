"""``snugtune report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snugtune.cli import completion

PAGE_SUFFIXES = {".html", ".htm"}


def report(
    run: Annotated[
        Path, typer.Argument(autocompletion=completion.runs, help="The run folder that fit has written.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The page to write (report.html in the run folder)."),
    ] = None,
    texts: Annotated[
        bool | None,
        typer.Option(
            "--texts/--no-texts",
            help="Show example texts where the run has kept them (default: as the run was told).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a run's report again."""
    from snugtune.errors import UserInputError
    from snugtune.report.page import write_report

    # What has another name may be a table or a record: a slip must not replace it.
    if output is not None and output.suffix.lower() not in PAGE_SUFFIXES:
        raise UserInputError(f"The report is a web page; name an output that ends in .html, not {output}.")
    typer.echo(f"The report: {write_report(run, output, texts=texts)}")
