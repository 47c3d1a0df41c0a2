"""``snugtune export``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snugtune.cli import completion

TARGETS = ("merged", "onnx", "onnx-int8", "adapter", "static", "space", "hub")
DTYPES, PUSHES = ("float32", "bfloat16", "float16"), ("auto", "merged", "adapter")
"""For completion; they are checked where they are used."""

HUB, STATIC = "To the Hugging Face Hub (--to hub)", "A page that runs in the browser (--to static)"

if TYPE_CHECKING:
    from snugtune.export.export import Exported


def export(
    run: Annotated[
        Path, typer.Argument(autocompletion=completion.runs, help="The run folder that fit wrote.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to write; not with --to hub.")
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            autocompletion=completion.choice_of(*TARGETS),
            help="merged (a Transformers folder), onnx, onnx-int8, adapter (PEFT), static (a page that runs "
            "in the browser), space (a web app for Hugging Face Spaces), or hub.",
        ),
    ] = "merged",
    dtype: Annotated[
        str,
        typer.Option(
            autocompletion=completion.choice_of(*DTYPES),
            help="Number format of a merged model: float32, bfloat16 or float16.",
        ),
    ] = "float32",
    rows: Annotated[
        str | None, typer.Option(help="The table with the run's held-out rows, if it has moved since.")
    ] = None,
    repo_id: Annotated[
        str | None, typer.Option(rich_help_panel=HUB, help="OWNER/NAME on the Hub, with --to hub.")
    ] = None,
    push: Annotated[
        str,
        typer.Option(
            autocompletion=completion.choice_of(*PUSHES),
            rich_help_panel=HUB,
            help="With --to hub: merged, adapter, or auto: the adapter if its base is there, too.",
        ),
    ] = "auto",
    private: Annotated[
        bool, typer.Option("--private", rich_help_panel=HUB, help="Make a new repository a private one.")
    ] = False,
    example: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=STATIC, help="With --to static: a text to try it with; may be repeated."
        ),
    ] = None,
    npm_package_dir: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=STATIC, help="With --to static: where npm pack put the two archives it runs on."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an export (no other folder, no run).")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON alone.")] = False,
) -> None:
    """A run for other programs, checked in a new process."""
    from snugtune.cli.render import RichObserver
    from snugtune.errors import UserInputError
    from snugtune.export.export import export_run
    from snugtune.quiet import quiet_libraries

    faults = {
        "--to hub goes to --repo-id, not to --output.": to == "hub" and output is not None,
        "Name the folder to write: -o FOLDER.": to != "hub" and output is None,
        "Name the repository on the Hub: --repo-id OWNER/NAME.": to == "hub" and repo_id is None,
        "--repo-id is for --to hub.": to != "hub" and repo_id is not None,
        "--example and --npm-package-dir are for --to static.": to != "static"
        and bool(example or npm_package_dir),
    }
    for sentence, found in faults.items():
        if found:
            raise UserInputError(sentence)
    quiet_libraries()
    with RichObserver() as observer:
        options: dict[str, Any] = {
            "dtype": dtype, "rows": rows, "overwrite": overwrite, "observer": observer,
            **({"what": push, "private": private} if to == "hub" else {"to": to}),
            **({"examples": example or (), "npm_package_dir": npm_package_dir} if to == "static" else {}),
        }  # fmt: skip
        if repo_id is not None:
            from snugtune.export.hub import export_to_hub

            exported, where = export_to_hub(run, repo_id, **options)
        else:
            assert output is not None
            exported, where = export_run(run, output, **options), str(output)
    if json:
        typer.echo(json_module.dumps(_json(exported, where), ensure_ascii=False))
    else:
        _show(exported, where)


def _json(exported: Exported, where: str) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "where": where, "to": exported.to, "dtype": exported.dtype, "agreement": exported.agreement.as_dict(),
        "serving": [asdict(verdict) for verdict in exported.serving], "notes": exported.notes,
    }  # fmt: skip


def _show(exported: Exported, where: str) -> None:
    typer.echo(f"{where}: {exported.to}, {exported.dtype}")
    typer.echo(
        f"In a new process {exported.agreement.sentence()} (let pass: {exported.tolerance.sentence()})."
    )
    for verdict in exported.serving:
        why = f": {'; '.join(verdict.why)}" if verdict.why else ""
        typer.echo(f"{verdict.program}: {'yes' if verdict.runs else 'no'}{why}")
    for note in exported.notes:
        typer.echo(note)
