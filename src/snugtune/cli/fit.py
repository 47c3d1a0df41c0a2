"""``snugtune fit``."""

from __future__ import annotations

import json as json_module
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from snugtune.cli import options
from snugtune.progress import Observer

NOT_SETTINGS = {"out", "config", "overwrite", "json", "supervise", "resume", "devices"}


def fit(
    context: typer.Context,
    train: Annotated[str, typer.Argument(help="The table to learn from: CSV, Excel, Parquet, JSON lines.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run folder to write.")] = Path("runs/run"),
    test: Annotated[str | None, typer.Option(help="A table to test on, touched once at the end.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML settings; the options given here win.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print run.json alone.")] = False,
    supervise: Annotated[
        bool | None,
        typer.Option(
            "--supervise/--no-supervise",
            help="Train in a process of its own, started again from where it was should it die "
            "(default: where there is a GPU).",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--no-resume",
            help="Go on with the unfinished run in --out and refuse if there is none, or begin anew "
            "(default: go on if the same command left one).",
            show_default=False,
        ),
    ] = None,
    devices: Annotated[
        int, typer.Option(help="Train on so many GPUs of this machine (or cores, where there is none).")
    ] = 1,
    text: options.Text = None,
    label: options.Label = None,
    label_levels: options.LabelLevels = None,
    label_separator: options.LabelSeparator = None,
    multi_label: options.MultiLabel = False,
    problem_type: options.ProblemType = None,
    sheet: options.Sheet = None,
    test_sheet: options.TestSheet = None,
    encoding: options.Encoding = None,
    delimiter: options.Delimiter = None,
    corrections: options.Corrections = None,
    add: options.Add = None,
    duplicates: options.Duplicates = None,
    near_duplicates: options.NearDuplicates = None,
    conflicts: options.Conflicts = None,
    merge_label_variants: options.MergeLabelVariants = None,
    min_class_count: options.MinClassCount = None,
    validation_fraction: options.ValidationFraction = None,
    test_fraction: options.TestFraction = None,
    seed: options.Seed = None,
    model: options.Model = None,
    revision: options.Revision = None,
    max_length: options.MaxLength = None,
    long_texts: options.LongTexts = None,
    pooling: options.Pooling = None,
    method: options.Method = None,
    load_in_4bit: options.LoadIn4bit = None,
    hidden_dropout: options.HiddenDropout = None,
    task_type: options.TaskType = None,
    r: options.R = None,
    lora_alpha: options.LoraAlpha = None,
    target_modules: options.TargetModules = None,
    lora_dropout: options.LoraDropout = None,
    bias: options.Bias = None,
    modules_to_save: options.ModulesToSave = None,
    use_dora: options.UseDora = None,
    use_rslora: options.UseRslora = None,
    init_lora_weights: options.InitLoraWeights = None,
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
    learning_rate: options.LearningRate = None,
    head_learning_rate: options.HeadLearningRate = None,
    weight_decay: options.WeightDecay = None,
    warmup_ratio: options.WarmupRatio = None,
    lr_scheduler_type: options.LrSchedulerType = None,
    max_grad_norm: options.MaxGradNorm = None,
    label_smoothing: options.LabelSmoothing = None,
    probe_start: options.ProbeStart = None,
    metric: options.Metric = None,
    early_stopping_patience: options.Patience = None,
    effective_batch_size: options.EffectiveBatchSize = None,
    per_device_train_batch_size: options.PerDeviceTrainBatchSize = None,
    per_device_eval_batch_size: options.PerDeviceEvalBatchSize = None,
    gradient_accumulation_steps: options.GradientAccumulationSteps = None,
    tokens_per_micro_batch: options.TokensPerMicroBatch = None,
    packing: options.Packing = None,
    sharding: options.Sharding = None,
    fp16: options.Fp16 = None,
    bf16: options.Bf16 = None,
    audit: options.Audit = None,
    report_texts: options.ReportTexts = None,
    mix_with_baseline: options.MixWithBaseline = None,
    imbalance: options.Imbalance = None,
    precision_target: options.PrecisionTarget = None,
    price_per_hour_usd: options.Price = None,
    predictions_per_month: options.PredictionsPerMonth = None,
    max_cost_usd: options.MaxCost = None,
    max_time_s: options.MaxTime = None,
    max_units: options.MaxUnits = None,
    track: options.Track = None,
) -> None:
    """Train a classifier on a table."""
    from snugtune.cli.render import RichObserver, read_run, show_run
    from snugtune.config import make_config, read_config
    from snugtune.errors import RunInterruptedError
    from snugtune.quiet import quiet_libraries
    from snugtune.scale.launch import in_group, is_first
    from snugtune.supervise import fit as supervise_fit
    from snugtune.supervise import has_gpu

    given = {key: value for key, value in context.params.items() if key not in NOT_SETTINGS}
    settings = make_config((read_config(config) if config else {}) | options.settings(given))
    if devices != 1 and not in_group():
        _start_on(devices)
        return
    run_fit: Any = supervise_fit
    if in_group():
        # Whoever started the group watches it.
        from snugtune.scale import distributed

        run_fit, supervise = distributed.fit, bool(supervise)
    supervised = has_gpu() if supervise is None else supervise
    if not supervised:
        quiet_libraries()
    with (
        RichObserver(price_per_hour_usd=settings.price_per_hour_usd) if is_first() else _silence() as observer
    ):
        run = run_fit(
            settings, out, overwrite=overwrite, observer=observer, supervised=supervised, resume=resume
        )
    if not is_first():
        return
    record = read_run(run)
    if json:
        typer.echo(json_module.dumps(record, ensure_ascii=False))
    else:
        show_run(record, run)
    if record["training"]["interrupted"]:
        raise RunInterruptedError(f"Interrupted; what was learned until then is kept in {run}.")


def _start_on(devices: int) -> None:
    """The same command as so many processes, of which the first one shows what comes of it."""
    from snugtune.cli.terminal import plain
    from snugtune.scale.launch import run_on_devices

    run_on_devices(sys.argv[1:], devices, say=lambda sentence: typer.echo(plain(sentence), err=True))


def _silence() -> AbstractContextManager[Observer]:
    return nullcontext(Observer())
