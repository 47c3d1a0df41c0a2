"""``snugtune compare``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snugtune.cli import completion

if TYPE_CHECKING:
    from rich.table import Table


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            autocompletion=completion.runs, help="Two or more run folders; the first is the yardstick."
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON alone.")] = False,
) -> None:
    """Runs side by side, and whether they differ by more than noise."""
    from rich.console import Console

    from snugtune.cli.terminal import plain
    from snugtune.report.compare import compare_runs

    found = compare_runs(runs)
    if json:
        typer.echo(json_module.dumps(found, ensure_ascii=False))
        return
    console = Console()
    console.print(_scores(found))
    if found["settings"] or found["versions"] or found["data"]:
        console.print(_differing(found))
    else:
        console.print("Settings, versions and numbers of rows are the same.", highlight=False)
    for one in found["differences"]:
        console.print(plain(one["sentence"]), markup=False, highlight=False, soft_wrap=True)


def _scores(found: dict[str, Any]) -> Table:
    from rich.table import Column, Table

    from snugtune.cli.terminal import escape
    from snugtune.units import duration

    runs = found["runs"]
    table = Table(found["part"], *(Column(escape(run["name"]), justify="right") for run in runs))
    table.add_row("rows", *(f"{run['rows']:,}" for run in runs))
    for key, name in (("accuracy", "accuracy"), ("f1_macro", "F1 macro")):
        table.add_row(name, *(_with_interval(run, key) for run in runs))
    plain = {
        "f1_weighted": ("F1 weighted", "{:.4f}"),
        "log_loss": ("log loss", "{:.4f}"),
        "ece": ("calibration error", "{:.4f}"),
        "baseline_accuracy": ("TF-IDF baseline: accuracy", "{:.4f}"),
        "trainable_parameters": ("trained parameters", "{:,}"),
        "best_step": ("best step", "{:,}"),
        "peak_gib": ("peak memory, GiB", "{:.2f}"),
        "usd": ("cost, USD", "{:.2f}"),
    }
    for key, (name, form) in plain.items():
        if any(run[key] is not None for run in runs):
            table.add_row(name, *("-" if run[key] is None else form.format(run[key]) for run in runs))
    table.add_row("time", *("-" if run["total_s"] is None else duration(run["total_s"]) for run in runs))
    return table


def _with_interval(run: dict[str, Any], key: str) -> str:
    interval = run["intervals"].get(key)
    told = f"{run[key]:.4f}"
    return f"{told} [{interval[0]:.4f}, {interval[1]:.4f}]".replace("[", r"\[") if interval else told


def _differing(found: dict[str, Any]) -> Table:
    from rich.table import Table

    from snugtune.cli.terminal import escape

    table = Table("what differs", *(escape(run["name"]) for run in found["runs"]))
    rows = {f"{part} rows": values for part, values in found["data"].items()}
    versions = {f"version of {name}": values for name, values in found["versions"].items()}
    for name, values in {**found["settings"], **rows, **versions}.items():
        table.add_row(name, *(escape(_told(value)) for value in values))
    return table


def _told(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)
