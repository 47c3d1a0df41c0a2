"""Pages that MkDocs makes while it builds, from the program itself: the command line, the settings."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from snugtune.cli import app
from snugtune.cli.examples import EXAMPLES
from snugtune.config import FitConfig

COMMAND_LINE, SETTINGS = "reference/command-line.md", "reference/settings.md"

INTRODUCTION = """# The command line

Made from the program itself: what `snugtune COMMAND --help` says. Exit codes: 0 done, 1 failed, 2 something
in the input to correct (one sentence says what), 130 interrupted (what was learned is kept).

"""


def command_line() -> str:
    """The reference as Markdown: a heading for each command."""
    group: Any = typer.main.get_command(app)
    parts = []
    for name in group.list_commands(typer.Context(group)):
        command = group.get_command(typer.Context(group), name)
        context = typer.Context(command, info_name=name)
        for one in (command, *getattr(command, "commands", {}).values()):
            one.epilog = None  # the examples, for a terminal; they follow below
        parts.append(get_docs_for_click(obj=command, ctx=context, indent=1, name=f"snugtune {name}"))
        parts += [_examples(known) for known in EXAMPLES if known.split()[0] == name]
    return INTRODUCTION + "\n".join(parts).replace("```console\n$ ", "```text\n")


SETTINGS_INTRODUCTION = """# The settings of a fit

Made from `snugtune.FitConfig`. In Python they are arguments of `make_config` and `Classifier`, in a file of
`fit --config` keys of YAML, on the command line options. `config.yaml` in a run folder holds those of the
run. Unknown names and values out of range are refused, all at once. Where the option is named otherwise,
it stands at the end.

| setting | | type | default |
|---|---|---|---|
"""

HELD_IN_ARGUMENTS = {
    "train": "the table to learn from",
    "test": "a table to test on, touched once at the end",
}


def _examples(name: str) -> str:
    blocks = (f"{said}:\n\n```bash\n{line}\n```\n" for said, line in EXAMPLES[name])
    return "**Examples**:\n\n" + "\n".join(blocks)


def settings() -> str:
    """A table of all settings: name, option, type, default, and the option's help."""
    group: Any = typer.main.get_command(app)
    options = {p.name: p for p in group.get_command(typer.Context(group), "fit").params}
    return SETTINGS_INTRODUCTION + "".join(
        _row(name, field, options.get(name)) for name, field in FitConfig.model_fields.items()
    )


def _row(name: str, field: Any, option: Any) -> str:
    said = HELD_IN_ARGUMENTS.get(name) or getattr(option, "help", None) or ""
    others = {o for o in getattr(option, "opts", ()) if o.startswith("--")} - {f"--{name.replace('_', '-')}"}
    said += "".join(f" `{other}`" for other in sorted(others))
    default = "required" if field.is_required() else f"`{field.default!r}`"
    cells = (f"`{name}`", said, f"`{_type(field.annotation)}`", default)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\\[", "[") for cell in cells) + " |\n"


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " or ".join(map(repr, get_args(annotation)))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_type(part) for part in get_args(annotation))
    if annotation is NoneType:
        return "None"
    return str(getattr(annotation, "__name__", annotation)) if not get_args(annotation) else str(annotation)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    files.append(File.generated(config, COMMAND_LINE, content=command_line()))
    files.append(File.generated(config, SETTINGS, content=settings()))
    return files
