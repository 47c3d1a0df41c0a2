"""``snugtune doctor``."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from snugtune.doctor.judge import Check

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print facts and findings as JSON alone.")] = False,
) -> None:
    """Examine this machine: can it train, on what, and what to do where it cannot.

    Looks at GPU and driver, PyTorch's build for them, processor, memory, disk, packages and extras. Exits
    with 0 if a fit can work, on a GPU or without one, and with 1 if something would stop it.
    """
    from snugtune.doctor.judge import examine
    from snugtune.doctor.probe import probe

    facts = probe()
    found = examine(facts)
    if json:
        told = {
            "can_run": found.can_run, "runs_on": found.runs_on, "problems": found.problems,
            "sentence": found.sentence(), "checks": [asdict(check) for check in found.checks],
            "facts": facts.as_dict(),
        }  # fmt: skip
        typer.echo(json_module.dumps(told, ensure_ascii=False))
    else:
        show(
            f"snugtune {facts.snugtune or '(not installed)'}, Python {facts.python}, {facts.system}",
            found.checks,
        )
        typer.echo(found.sentence())
    if not found.can_run:
        raise typer.Exit(1)


def show(title: str, checks: tuple[Check, ...]) -> None:
    """One line on each check; what to do comes below it, unbroken, to be copied."""
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding
    from rich.text import Text

    console = Console()
    console.print(title, markup=False, highlight=False)
    for check in checks:
        style = STYLES[check.status]
        line = Text.from_markup(
            f"[{style}]{check.status:7}[/] {escape(check.subject)}: {escape(check.finding)}"
        )
        # Further lines of a long finding begin below its first word.
        indented = line.wrap(console, max(20, console.width - 8))
        console.print(indented[0], highlight=False)
        for rest in indented[1:]:
            console.print(Padding(rest, (0, 0, 0, 8)), highlight=False)
        if check.advice:
            console.print(f"        -> {check.advice}", markup=False, highlight=False, soft_wrap=True)
