"""``snugtune weak-label``."""

from __future__ import annotations

import json as json_module
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from snugtune.cli import completion, options

NOT_SETTINGS = {"table", "rules", "output", "combine", "min_probability", "overwrite", "json"}
SHOWN = 30


def weak_label(
    context: typer.Context,
    table: Annotated[str, typer.Argument(help="The table whose texts are to be labelled.")],
    rules: Annotated[
        Path, typer.Option("--rules", "-r", help="The rules: YAML, or a table with a row for each.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The table to write, as predict writes it.")],
    combine: Annotated[
        str,
        typer.Option(
            autocompletion=completion.choice_of("accuracy", "majority"),
            help="Where rules disagree: accuracy (by how often each is likely right), or majority.",
        ),
    ] = "accuracy",
    min_probability: Annotated[
        float, typer.Option(help="Texts whose label is less probable stay without one.")
    ] = 0.5,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an --output that exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON alone.")] = False,
    text: options.Text = None,
    label: options.OneLabel = None,
    sheet: options.Sheet = None,
    encoding: options.Encoding = None,
    delimiter: options.Delimiter = None,
) -> None:
    """Label texts by keyword rules, and say what the rules are worth."""
    from snugtune.config import make_config
    from snugtune.weak import weak_label as run_weak_label

    given = {key: value for key, value in context.params.items() if key not in NOT_SETTINGS}
    settings = make_config({"train": table} | options.settings(given))
    how: Any = combine
    record = run_weak_label(
        table, rules, output, settings, how=how, min_probability=min_probability, overwrite=overwrite
    )
    if json:
        typer.echo(json_module.dumps(record, ensure_ascii=False))
        return
    _show(record)


def _show(record: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from snugtune.cli.terminal import escape, plain

    def right(name: str) -> Column:
        return Column(name, justify="right")

    compared = record["label"] is not None
    more = [right("agrees with known labels")] if compared else []
    shown = Table("rule", right("texts"), right("in conflict"), right("likely right"), *more)
    for one in record["rules"][:SHOWN]:
        accuracy = "-" if one["accuracy"] is None else f"{100 * one['accuracy']:.0f} %"
        agrees = f"{one['agree']:,} of {one['known']:,}"
        cells = [escape(one["rule"]), f"{one['texts']:,}", f"{one['conflicts']:,}", accuracy]
        shown.add_row(*cells, *([agrees] if compared else []))
    console = Console()
    console.print(shown)

    def say(sentence: str) -> None:
        console.print(plain(sentence), markup=False, highlight=False, soft_wrap=True)

    if len(record["rules"]) > SHOWN:
        say(f"and {len(record['rules']) - SHOWN:,} rules more (--json tells all)")
    say(
        f"{record['labelled']:,} of {record['rows']:,} texts labelled; {record['conflicts']:,} with rules "
        f"that disagree, {record['rows'] - record['spoken']:,} with none that speaks."
    )
    if compared and record["compared"]:
        share = 100 * record["agree"] / record["compared"]
        say(f"Of {record['compared']:,} with a known label, the weak one agrees on {share:.0f} %.")
    silent = [one["rule"] for one in record["rules"] if not one["texts"]]
    if silent:
        ending = "; ..." if len(silent) > 3 else "."
        say(f"{len(silent):,} rules match no text: {'; '.join(silent[:3])}{ending}")
    texts = [word for column in record["text"] for word in ("--text", column)]
    command = ["snugtune", "fit", record["file"], *texts, "--label", "weak_label"]
    say(f"Written to {record['file']}; to learn from it:\n  {shlex.join(command)}")
