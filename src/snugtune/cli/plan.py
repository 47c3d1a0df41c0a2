"""``snugtune plan``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from snugtune.cli import completion, options
from snugtune.errors import UserInputError

Option = typer.Option
WHERE = "Where"
NOT_SETTINGS = {
    "data", "labels", "rows", "gpu", "memory", "devices", "link", "max_hours", "max_time", "max_cost",
    "recipe", "picture", "config", "json", "price",
}  # fmt: skip


def plan(
    context: typer.Context,
    data: Annotated[str | None, typer.Argument(help="A table: labels and lengths are read from it.")] = None,
    labels: Annotated[int | None, Option("--labels", "-k", help="Number of classes.")] = None,
    rows: Annotated[
        int | None, Option(help="Without a table: how many texts, to tell time and cost.")
    ] = None,
    gpu: Annotated[
        str | None,
        Option(
            help="GPUs by commas, as t4,l4,a100-40; this machine if left out.",
            autocompletion=completion.gpus,
            rich_help_panel=WHERE,
        ),
    ] = None,
    memory: Annotated[
        str | None, Option(help="Memory to stay within, as 15GiB (what is free now).", rich_help_panel=WHERE)
    ] = None,
    devices: Annotated[
        int, Option(help="How many of them train together (torchrun).", rich_help_panel=WHERE)
    ] = 1,
    link: Annotated[
        float,
        Option(
            help="With several: what passes between two of them in GB/s, for the time they wait.",
            rich_help_panel=WHERE,
        ),
    ] = 10.0,
    max_hours: Annotated[
        float | None,
        Option(help="The longest it may take; says what would keep it.", rich_help_panel=options.BUDGET),
    ] = None,
    max_time: Annotated[
        str | None, Option(help="The same as for fit: 90min, 1.5h.", rich_help_panel=options.BUDGET)
    ] = None,
    max_cost: Annotated[
        float | None, Option(help="The most it may cost in USD; likewise.", rich_help_panel=options.BUDGET)
    ] = None,
    recipe: Annotated[
        str | None,
        Option(
            help="'blog': a well-known recipe beside our plan.", autocompletion=completion.choice_of("blog")
        ),
    ] = None,
    picture: Annotated[
        Path | None, Option(help="Draw what the peaks consist of into this file (.svg, .png or .pdf).")
    ] = None,
    config: Annotated[Path | None, Option(help="YAML settings of a fit; the options given here win.")] = None,
    json: Annotated[bool, Option("--json", help="Print the plan as JSON alone.")] = False,
    text: options.Text = None,
    label: options.Label = None,
    label_separator: options.LabelSeparator = None,
    multi_label: options.MultiLabel = False,
    problem_type: options.ProblemType = None,
    sheet: options.Sheet = None,
    encoding: options.Encoding = None,
    delimiter: options.Delimiter = None,
    model: options.Model = None,
    revision: options.Revision = None,
    max_length: options.MaxLength = None,
    long_texts: options.LongTexts = None,
    pooling: options.Pooling = None,
    method: options.Method = None,
    load_in_4bit: options.LoadIn4bit = None,
    hidden_dropout: options.HiddenDropout = None,
    r: options.R = None,
    lora_alpha: options.LoraAlpha = None,
    target_modules: options.TargetModules = None,
    lora_dropout: options.LoraDropout = None,
    bias: options.Bias = None,
    modules_to_save: options.ModulesToSave = None,
    use_dora: options.UseDora = None,
    use_rslora: options.UseRslora = None,
    layers_to_transform: options.LayersToTransform = None,
    eva_rho: options.EvaRho = None,
    loraplus_lr_ratio: options.LoraPlus = None,
    init_r: options.InitR = None,
    target_r: options.TargetR = None,
    tinit: options.Tinit = None,
    tfinal: options.Tfinal = None,
    deltaT: options.DeltaT = None,
    beta1: options.Beta1 = None,
    beta2: options.Beta2 = None,
    orth_reg_weight: options.OrthRegWeight = None,
    d_initial: options.DInitial = None,
    projection_prng_key: options.ProjectionPrngKey = None,
    oft_block_size: options.OftBlockSize = None,
    use_cayley_neumann: options.UseCayleyNeumann = None,
    boft_block_size: options.BoftBlockSize = None,
    feedforward_modules: options.FeedforwardModules = None,
    num_virtual_tokens: options.NumVirtualTokens = None,
    prefix_projection: options.PrefixProjection = None,
    prompt_tuning_init: options.PromptTuningInit = None,
    prompt_tuning_init_text: options.PromptTuningInitText = None,
    encoder_reparameterization_type: options.EncoderReparameterizationType = None,
    encoder_hidden_size: options.EncoderHiddenSize = None,
    encoder_num_layers: options.EncoderNumLayers = None,
    num_train_epochs: options.Epochs = None,
    effective_batch_size: options.EffectiveBatchSize = None,
    per_device_train_batch_size: options.PerDeviceTrainBatchSize = None,
    gradient_accumulation_steps: options.GradientAccumulationSteps = None,
    tokens_per_micro_batch: options.TokensPerMicroBatch = None,
    packing: options.Packing = None,
    sharding: options.Sharding = None,
    fp16: options.Fp16 = None,
    bf16: options.Bf16 = None,
    price: Annotated[
        str | None,
        Option(
            "--price",
            "--price-per-hour-usd",
            help="USD per hour of what it runs on; of several GPUs as t4=0.35,h100=2.5.",
            rich_help_panel=options.RESULT,
        ),
    ] = None,
) -> None:
    """Say what a fit trains, takes and costs, before it runs."""
    from rich.console import Console

    from snugtune.cli.plan_tables import show_parameters, show_plans, show_recipe
    from snugtune.cli.terminal import escape
    from snugtune.config import make_config, read_config
    from snugtune.memory.devices import devices_named
    from snugtune.memory.fleet import fleet_of
    from snugtune.memory.limits import Limits
    from snugtune.model.parameters import plan_parameters
    from snugtune.quiet import quiet_libraries
    from snugtune.train.planning import labels_and_lengths, own_prices, plan_devices

    quiet_libraries()
    given_limits = Limits(_hours(max_hours, max_time), _positive("--max-cost", max_cost))
    if recipe is not None:
        with Console(stderr=True).status("Rehearsing the recipe's steps and ours ..."):
            found = _recipe(recipe, price, context)
        typer.echo(json_module.dumps(found)) if json else show_recipe(found)
        return
    given = {key: value for key, value in context.params.items() if key not in NOT_SETTINGS}
    # Without data the one setting that has no default stays empty.
    base = {"train": ""} | (read_config(config) if config else {})
    settings = make_config(base | options.settings(given) | ({"train": data} if data else {}))
    # Those of a fit's configuration hold here, too.
    in_config = None if settings.max_time_s is None else settings.max_time_s / 3600
    limits = Limits(given_limits.max_hours or in_config, given_limits.max_cost_usd or settings.max_cost_usd)
    on = devices_named(gpu, memory)
    prices = own_prices(price, on)
    labels, lengths, are_exact = labels_and_lengths(settings, labels, rows)
    report = plan_parameters(settings, labels)
    fleet = fleet_of(devices, settings.sharding, link)
    with Console(stderr=True).status("Planning ...") as status:
        plans = plan_devices(
            settings, labels, on, lengths=lengths, limits=limits, fleet=fleet, prices=prices,
            on_device=lambda one: status.update(f"Rehearsing steps for {escape(one.name)} ..."),
        )  # fmt: skip
    if picture is not None:
        from snugtune.report.peak_picture import draw_peaks

        draw_peaks(plans, picture, title=f"{settings.model}, {labels:,} labels")
    if json:
        told = {"model": settings.model, "labels": labels, "parameters": report.as_dict()}
        told |= {"lengths": None if lengths is None else "measured" if are_exact else "estimated"}
        typer.echo(json_module.dumps(told | {"devices": [one.as_dict() for one in plans]}))
    else:
        show_parameters(settings.model, labels, report)
        show_plans(plans)
        if lengths is None:
            typer.echo("No time or cost is told without texts: give a table, or their number with --rows.")
        if settings.train and not are_exact:
            typer.echo(
                "Lengths are estimated from characters: the model's tokenizer is neither here nor to be had."
            )


def _hours(max_hours: float | None, max_time: str | None) -> float | None:
    """The shorter of both limits of time."""
    from snugtune.units import parse_duration

    found = [_positive("--max-hours", max_hours)]
    if max_time is not None:
        try:
            found.append(_positive("--max-time", parse_duration(max_time) / 3600))
        except ValueError as error:
            raise UserInputError(f"--max-time {max_time!r}: {error}.") from None
    return min((hours for hours in found if hours is not None), default=None)


def _positive(option: str, value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise UserInputError(f"{option} must be more than 0, not {value:g}.")
    return value


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _recipe(name: str, price: str | None, context: typer.Context) -> dict[str, Any]:
    """The comparison; what it compares is fixed, so everything but a price is refused beside it."""
    if name != "blog":
        raise UserInputError(f"The recipe {name!r} is not known; there is 'blog'.")
    from snugtune.memory.devices import find_device
    from snugtune.train.planning import own_prices
    from snugtune.train.recipes import CARD, compare_with_blog

    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in {"recipe", "price", "json"} and _is_given(context, str(parameter.name))
    ]
    if given:
        raise UserInputError(
            f"--recipe {name} has its own model, texts and card; leave {', '.join(given)} out."
        )
    return compare_with_blog(own_prices(price, [find_device(CARD)]).get(CARD))
