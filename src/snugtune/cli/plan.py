"""``snugtune plan``."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from snugtune.model.parameters import ParameterReport

Option = typer.Option


def plan(
    labels: Annotated[int, Option("--labels", "-k", help="Number of classes.")],
    model: Annotated[str, Option(help="'minilm', a known name, a folder, or a Hub name.")] = "minilm",
    revision: Annotated[str | None, Option(help="Branch, tag or commit on the Hub.")] = None,
    method: Annotated[str | None, Option(help="lora, full or head.")] = None,
    r: Annotated[int | None, Option(help="LoRA rank.")] = None,
    lora_alpha: Annotated[float | None, Option(help="LoRA scaling.")] = None,
    target_modules: Annotated[str | None, Option(help="Module names, by commas, or all-linear.")] = None,
    lora_dropout: Annotated[float | None, Option(help="Dropout before the adapter.")] = None,
    use_dora: Annotated[bool, Option("--use-dora", help="DoRA: train magnitudes as well.")] = False,
    use_rslora: Annotated[bool, Option("--use-rslora", help="Rank-stabilised LoRA.")] = False,
    modules_to_save: Annotated[str | None, Option(help="Modules trained in full, by commas.")] = None,
    json: Annotated[bool, Option("--json", help="Print the plan as JSON alone.")] = False,
) -> None:
    """Say what a fit would train, without data or weights: snugtune plan --model roberta-base --labels 20."""
    from snugtune.cli.render import quiet_libraries
    from snugtune.config import make_config
    from snugtune.model.parameters import plan_parameters

    quiet_libraries()
    given: dict[str, Any] = {
        "model": model, "revision": revision, "method": method, "r": r, "lora_alpha": lora_alpha,
        "target_modules": _target_modules(target_modules), "lora_dropout": lora_dropout,
        "use_dora": use_dora, "use_rslora": use_rslora, "modules_to_save": _names(modules_to_save),
    }  # fmt: skip
    # A plan reads no table, so the one setting without a default stays empty.
    settings = {"train": ""} | {key: value for key, value in given.items() if value is not None}
    report = plan_parameters(make_config(settings), labels)
    if json:
        typer.echo(json_module.dumps({"model": model, "labels": labels, "parameters": report.as_dict()}))
    else:
        _show(model, labels, report)


def _show(model: str, labels: int, report: ParameterReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("part")
    table.add_column("parameters", justify="right")
    table.add_column("trained", justify="right")
    for name, part in report.parts.items():
        table.add_row(name, f"{part.all:,}", f"{part.trainable:,}")
    table.add_section()
    table.add_row("total", f"{report.all:,}", f"{report.trainable:,}")
    console = Console()
    console.print(table)
    console.print(
        f"{model} with {labels:,} labels has {report.all:,} parameters, and a fit trains "
        f"{report.trainable:,} of them ({report.percent:.4f} %).",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _target_modules(text: str | None) -> tuple[str, ...] | str | None:
    return text if text == "all-linear" else _names(text)


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(part.strip() for part in text.split(",") if part.strip())
