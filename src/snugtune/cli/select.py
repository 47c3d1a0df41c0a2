"""``snugtune select``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from snugtune.cli import completion, options

STRATEGIES = ("auto", "typicality", "badge", "margin", "random")
NOT_SETTINGS = {"pool", "output", "labelled", "run", "count", "strategy", "overwrite", "json"}
CHOICE = "What is chosen"


def select(
    context: typer.Context,
    pool: Annotated[
        str, typer.Argument(help="The table whose texts are to be labelled, or some of its rows.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The spreadsheet to write: .xlsx, or .csv.")
    ] = Path("to_label.xlsx"),
    count: Annotated[
        int, typer.Option("--count", "-n", rich_help_panel=CHOICE, help="Texts to choose at most.")
    ] = 100,
    strategy: Annotated[
        str,
        typer.Option(
            rich_help_panel=CHOICE,
            autocompletion=completion.choice_of(*STRATEGIES),
            help="auto (typicality at first, badge later), typicality, badge, margin, or random.",
        ),
    ] = "auto",
    labelled: Annotated[
        str | None,
        typer.Option(rich_help_panel=CHOICE, help="A table of labelled texts, if they are not in the pool."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=CHOICE, autocompletion=completion.runs, help="A finished run to choose by."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an --output that exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON alone.")] = False,
    add: options.LabelledBefore = None,
    text: options.Text = None,
    label: options.OneLabel = None,
    sheet: options.Sheet = None,
    encoding: options.Encoding = None,
    delimiter: options.Delimiter = None,
    seed: options.Seed = None,
    model: options.Model = None,
    revision: options.Revision = None,
    max_length: options.MaxLength = None,
    long_texts: options.LongTexts = None,
) -> None:
    """Choose the texts most worth a label, as a spreadsheet to fill in."""
    from snugtune.cli.render import RichObserver
    from snugtune.config import make_config
    from snugtune.quiet import quiet_libraries
    from snugtune.select import select as run_select

    quiet_libraries()
    given = {key: value for key, value in context.params.items() if key not in NOT_SETTINGS}
    settings = make_config({"train": pool} | options.settings(given))
    with RichObserver() as observer:
        record = run_select(
            pool, output, settings, labelled=labelled, run=run, count=count, strategy=strategy,
            overwrite=overwrite, observer=observer,
        )  # fmt: skip
    if json:
        typer.echo(json_module.dumps(record, ensure_ascii=False))
        return
    typer.echo(
        f"{record['chosen']:,} texts chosen by {record['strategy']}: {output}\n"
        "Fill in the column label, leave blank what you are not sure of, save, and train:"
    )
    typer.echo(f"  {_next(record, settings.label)}")


def _next(record: dict[str, Any], label: object) -> str:
    """The command that learns from the labels."""
    import shlex

    table = record["labelled_file"] or (record["run"] and "TABLE")
    if not table:
        return shlex.join(["snugtune", "fit", str(record["file"])])
    named = ["--label", label] if isinstance(label, str) else []
    added = [*record["added_files"], record["file"]]
    more = [part for path in added for part in ("--add", str(path))]
    return shlex.join(["snugtune", "fit", str(table), *named, *more])
