"""Pages that MkDocs makes while it builds: the command line's reference, from the Typer application itself."""

from __future__ import annotations

from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from snugtune.cli import app

COMMAND_LINE = "reference/command-line.md"

INTRODUCTION = """# The command line

Made from the program itself: what `snugtune COMMAND --help` says. Exit codes: 0 done, 1 failed, 2 something in the
input to correct (one sentence says what), 130 interrupted (what was learned is kept).

"""


def command_line() -> str:
    """The reference as Markdown: a heading for each command."""
    group: Any = typer.main.get_command(app)
    parts = []
    for name in group.list_commands(typer.Context(group)):
        command = group.get_command(typer.Context(group), name)
        context = typer.Context(command, info_name=name)
        parts.append(get_docs_for_click(obj=command, ctx=context, indent=1, name=f"snugtune {name}"))
    return INTRODUCTION + "\n".join(parts).replace("```console\n$ ", "```text\n")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    files.append(File.generated(config, COMMAND_LINE, content=command_line()))
    return files
