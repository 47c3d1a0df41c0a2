"""``snugtune data``: tables from public sources."""

from __future__ import annotations

import dataclasses
import json as json_module
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snugtune.cli.examples import epilog
from snugtune.errors import RunInterruptedError, UserInputError

if TYPE_CHECKING:
    from snugtune.data.cfpb import DownloadResult

app = typer.Typer(help="Get tables from public sources.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps ``cfpb`` a command of its own while it is the only one."""


@app.command(epilog=epilog("data cfpb"))
def cfpb(
    since: Annotated[str, typer.Option(help="First day of receipt, as in 2024-01-31.")],
    rows: Annotated[int, typer.Option(help="How many complaints, the newest first.")],
    output: Annotated[Path, typer.Option("--output", "-o", help=".parquet, .csv, .jsonl or .xlsx.")],
    until: Annotated[str | None, typer.Option(help="Last day of receipt; today if left out.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON alone.")] = False,
    base_url: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Download complaints with their texts from the CFPB's public database; run again, it resumes."""
    from snugtune.data.cfpb import CFPB_SEARCH_URL, download

    first, last = _day("--since", since), _day("--until", until) if until else None
    with _Bar() as bar:
        try:
            result = download(
                since=first, until=last, rows=rows, output=output, base_url=base_url or CFPB_SEARCH_URL,
                on_progress=bar.show, overwrite=overwrite,
            )  # fmt: skip
        except KeyboardInterrupt:
            raise RunInterruptedError(
                "Interrupted; what was downloaded is kept, and the same command goes on from there."
            ) from None
    if json:
        typer.echo(json_module.dumps({**dataclasses.asdict(result), "path": str(result.path)}))
    else:
        _show(result, rows)


def _show(result: DownloadResult, rows: int) -> None:
    typer.echo(f"{result.rows:,} complaints of {result.available:,} that match: {result.path}")
    if result.rows < rows:
        typer.echo(f"The database has no more; {rows:,} were asked for.")
    if result.shortened:
        typer.echo(
            f"{result.shortened:,} narratives were cut to what an Excel cell holds; .parquet keeps all."
        )


def _day(option: str, text: str) -> date:
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise UserInputError(f"{option} must be a day such as 2024-01-31, not {text!r}.") from None


class _Bar:
    """A progress bar with the time left, on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("Downloading complaints"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
            transient=True,
        )

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, done: int, total: int) -> None:
        """Draw the bar; it begins at the first count, so resumed rows do not pass for speed."""
        if not self.progress.tasks:
            self.progress.add_task("", total=total, completed=done)
        else:
            self.progress.update(self.progress.tasks[0].id, total=total, completed=done)
