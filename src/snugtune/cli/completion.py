"""What the shell completes beyond names of commands and options: values, from the same places as the library.

A completer returns values that begin with what is typed. Where it finds none, bash, zsh and fish complete
names of files by themselves, which they do best. Nothing heavy is imported: people wait for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

Completer = Callable[[str], list[str]]

RUN_FOLDERS = ("", "runs", "demo")
"""Where finished runs are looked for before a folder is typed: here, and where the documents put them."""

DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")


def choice_of(*values: str) -> Completer:
    """Completes one of ``values``."""
    return lambda incomplete: _beginning(values, incomplete)


def choice_of_setting(name: str) -> Completer:
    """Completes the values that the setting ``name`` of ``FitConfig`` may have."""

    def complete(incomplete: str) -> list[str]:
        from snugtune.config import FitConfig

        return _beginning(_literals(FitConfig.model_fields[name].annotation), incomplete)

    return complete


def models(incomplete: str) -> list[str]:
    """Models that are known by a short name, the bundled one first."""
    return _beginning(("minilm", *_keys("snugtune.model", "known_models.json")), incomplete)


def gpus(incomplete: str) -> list[str]:
    """Known GPUs, as a list by commas: those named already are kept and not offered again."""
    before, comma, last = incomplete.rpartition(",")
    named = {name.strip() for name in before.split(",")}
    known = _keys("snugtune.memory", "devices.json", "devices")
    return [before + comma + name for name in known if name.startswith(last) and name not in named]


def runs(incomplete: str) -> list[str]:
    """Finished runs in the folder that is being typed; none of a folder that is not there."""
    typed, _ = os.path.split(incomplete)
    folders = [typed] if typed else RUN_FOLDERS
    found = (os.path.join(folder, name) for folder in folders for name in _names(folder))  # noqa: PTH118
    return _beginning((path for path in found if (Path(path) / "run.json").is_file()), incomplete)


def columns(*arguments: str) -> Callable[..., list[str]]:
    """Completes a column of the CSV that is given already, as one of these ``arguments``."""

    def complete(ctx: Any, incomplete: str) -> list[str]:
        # While an option lacks its value, the arguments before it are not told apart yet.
        given = (*(ctx.params.get(name) for name in arguments), *ctx.args)
        table = next(filter(None, given), None)
        return _beginning(_header(table), incomplete)

    # Typer looks at the annotations, and must not find a name that only type checkers import.
    import typer

    complete.__annotations__ = {"ctx": typer.Context, "incomplete": str}
    return complete


def _header(table: Any) -> list[str]:
    import csv

    if not isinstance(table, (str, Path)) or Path(table).suffix.lower() not in (".csv", ".tsv"):
        return []
    try:
        with Path(table).open(encoding="utf-8-sig", newline="") as file:
            line = file.readline(1 << 16)
            return next(csv.reader([line], csv.Sniffer().sniff(line, ",;\t|")), [])
    except (OSError, UnicodeError, csv.Error):
        return []


def _beginning(values: Iterable[str], incomplete: str) -> list[str]:
    return [value for value in values if value.startswith(incomplete)]


def _literals(annotation: Any) -> list[str]:
    """The words of every ``Literal`` within an annotation."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [word for part in get_args(annotation) for word in _literals(part)]


def _keys(package: str, name: str, inside: str | None = None) -> list[str]:
    table: dict[str, Any] = json.loads((files(package) / name).read_text(encoding="utf-8"))
    return list(table[inside] if inside else table)


def _names(folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder or ".") if not name.startswith("."))  # noqa: PTH208
    except OSError:
        return []
