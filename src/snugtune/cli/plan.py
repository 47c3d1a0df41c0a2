"""``snugtune plan``."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snugtune.cli import options
from snugtune.errors import UserInputError

if TYPE_CHECKING:
    from snugtune.config import FitConfig
    from snugtune.memory.devices import Device
    from snugtune.memory.plan import Plan
    from snugtune.model.parameters import ParameterReport

Option = typer.Option


def plan(
    data: Annotated[str | None, typer.Argument(help="A table: labels and lengths are read from it.")] = None,
    labels: Annotated[int | None, Option("--labels", "-k", help="Number of classes.")] = None,
    text: Annotated[list[str] | None, Option(help="Text column; repeat for several.")] = None,
    label: Annotated[str | None, Option(help="Label column.")] = None,
    model: Annotated[str, Option(help="'minilm', a known name, a folder, or a Hub name.")] = "minilm",
    revision: Annotated[str | None, Option(help="Branch, tag or commit on the Hub.")] = None,
    max_length: Annotated[int | None, Option(help="Tokens kept of each text.")] = None,
    effective_batch_size: Annotated[int | None, Option(help="Examples per optimiser step.")] = None,
    num_train_epochs: Annotated[float | None, Option("--epochs", help="Passes over the data.")] = None,
    gpu: Annotated[
        str | None, Option(help="GPUs by commas, as t4,l4,a100-40; this machine if left out.")
    ] = None,
    memory: Annotated[str | None, Option(help="Memory to stay within, as 15GiB.")] = None,
    price: Annotated[float | None, Option(help="Your price in USD per hour.")] = None,
    recipe: Annotated[str | None, Option(help="'blog': a well-known recipe beside our plan.")] = None,
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
    """Say what a fit trains, takes and costs, before it runs: snugtune plan --labels 20 --gpu t4,l4."""
    from snugtune.config import make_config
    from snugtune.model.parameters import plan_parameters
    from snugtune.quiet import quiet_libraries
    from snugtune.train.planning import plan_devices

    quiet_libraries()
    if recipe is not None:
        _recipe(recipe, price, json=json)
        return
    given: dict[str, Any] = {
        "model": model, "revision": revision, "method": method, "r": r, "lora_alpha": lora_alpha,
        "target_modules": target_modules, "lora_dropout": lora_dropout,
        "use_dora": use_dora, "use_rslora": use_rslora, "modules_to_save": modules_to_save,
        "max_length": max_length, "effective_batch_size": effective_batch_size,
        "num_train_epochs": num_train_epochs, "price_per_hour_usd": price,
        "text": text or None, "label": label, "train": data,
    }  # fmt: skip
    # Without data the one setting that has no default stays empty.
    settings = {"train": ""} | options.settings(given)
    config = make_config(settings)
    lengths = None
    if data is not None:
        from snugtune.train.survey import survey

        found = survey(config)
        labels, lengths = labels or found.labels, found.lengths
    if labels is None:
        raise UserInputError("Give the number of classes with --labels, or a table to count them in.")
    report = plan_parameters(config, labels)
    plans = plan_devices(config, labels, _devices(gpu, memory), lengths=lengths)
    if json:
        typer.echo(
            json_module.dumps(
                {"model": model, "labels": labels, "parameters": report.as_dict(),
                 "devices": [one.as_dict() for one in plans]}
            )
        )  # fmt: skip
    else:
        _show(model, labels, report, config)
        _show_devices(plans)


def _devices(gpu: str | None, memory: str | None) -> list[Device]:
    from snugtune.memory.devices import find_device, parse_memory, this_device, with_memory

    devices = [find_device(name) for name in gpu.split(",") if name.strip()] if gpu else [this_device()]
    if memory is None:
        return devices
    budget = parse_memory(memory)
    return [with_memory(device, min(budget, device.usable_gib) if gpu else budget) for device in devices]


def _show(model: str, labels: int, report: ParameterReport, config: FitConfig) -> None:
    from rich.table import Table

    table = Table("part")
    table.add_column("parameters", justify="right")
    table.add_column("trained", justify="right")
    for name, part in report.parts.items():
        table.add_row(name, f"{part.all:,}", f"{part.trainable:,}")
    table.add_section()
    table.add_row("total", f"{report.all:,}", f"{report.trainable:,}")
    _console().print(table)
    _say(
        f"{model} with {labels:,} labels has {report.all:,} parameters, and a fit trains "
        f"{report.trainable:,} of them ({report.percent:.4f} %)."
    )


def _show_devices(plans: list[Plan]) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    right = (Column(name, justify="right") for name in ("GiB there", "GiB needed", "batch", "time", "USD"))
    table = Table("device", "fits", *right, "basis")
    for one in plans:
        table.add_row(
            escape(one.name), "yes" if one.fits else "no",
            f"{one.capacity_gib:.2f}", f"{one.predicted_peak_gib:.2f}",
            str(one.micro_batch or "-"), _time(one.time_s), _usd(one.cost_usd),
            one.basis,
        )  # fmt: skip
    _console().print(table)
    for one in plans:
        _say(f"{one.name} with {'; '.join(one.levers) or 'no lever'}: {one.why}")
        for other in one.alternatives:
            price = f" ({other.price})" if other.price else ""
            verdict = f"micro-batch {other.micro_batch}" if other.fits else "does not fit"
            levers = "; ".join(other.levers) or "no lever"
            _say(f"  or {levers}{price}: {other.predicted_peak_gib:.2f} GiB, {verdict}.")
    if plans:
        _show_peak(plans[0])
    _say("Estimated: no card has confirmed these figures yet; 4 % of each is left free for that.")


def _show_peak(one: Plan) -> None:
    from rich.table import Column, Table

    table = Table(f"the peak on {one.name} consists of", Column("GiB", justify="right"), "")
    largest = max(one.composition.values(), default=1.0) or 1.0
    for name, size in sorted(one.composition.items(), key=lambda item: -item[1]):
        if size >= 0.005 * largest:
            table.add_row(name, f"{size:.3f}", "█" * max(1, round(30 * size / largest)))
    _console().print(table)
    _say(f"It falls on {one.peak_place}.")


def _recipe(name: str, price: float | None, *, json: bool) -> None:
    if name != "blog":
        raise UserInputError(f"The recipe {name!r} is not known; there is 'blog'.")
    from snugtune.train.recipes import compare_with_blog

    found = compare_with_blog(price)
    if json:
        typer.echo(json_module.dumps(found))
        return
    recipe, ours, full = found["recipe"], found["ours"], found["full_fine_tuning"]
    from rich.table import Table

    table = Table("on a V100 with 16 GB", "the recipe", "our plan")
    reported = (
        f"{recipe['predicted_peak_gib']:.2f} GiB (its author read around {recipe['reported_gb']:.0f} GB)"
    )
    table.add_row("predicted peak", reported, f"{ours['predicted_peak_gib']:.2f} GiB")
    table.add_row(
        "micro-batch", f"{recipe['micro_batch']} x {recipe['max_length']}", str(ours["micro_batch"])
    )
    told = f"{_time(recipe['time_s'])} (its author: {recipe['reported_hours']:.0f} h)"
    table.add_row("time, estimated", told, _time(ours["time_s"]))
    formula = f"{recipe['cost_usd']:.2f} ({recipe['compute_units']:.0f} units, by its author's formula)"
    table.add_row("USD", formula, _usd(ours["cost_usd"]))
    table.add_row("levers", "", "; ".join(ours["levers"]))
    _console().print(table)
    for micro_batch in (1, recipe["micro_batch"]):
        row = full[f"micro_batch_{micro_batch}"]
        _say(
            f"Full fine-tuning at {micro_batch} x {recipe['max_length']}: {row['full_gib']:.2f} GiB against "
            f"{row['lora_gib']:.2f} GiB with LoRA, {row['ratio']:.1f} times as much."
        )
    _say(f"The claim is {full['claim']}. {full['why']}")


def _console() -> Any:
    from rich.console import Console

    return Console()


def _say(sentence: str) -> None:
    _console().print(sentence, markup=False, highlight=False, soft_wrap=True)


def _time(seconds: float | None) -> str:
    from snugtune.units import duration

    return "-" if seconds is None else duration(seconds)


def _usd(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
