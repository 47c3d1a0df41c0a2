"""The options that fit and plan share: each is the setting of the same name in ``FitConfig``.

A value that is left out stays None, so that the setting's own default holds.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import typer

from snugtune.cli import completion

DATA, MODEL, ADAPTER = "Data", "Model", "Adapter (PEFT's names)"
TRAINING, PRECISION, RESULT = "Training", "Batches and number formats", "Result"
BUDGET = "Budget"

SHORTHANDS = {"multi_label"}
"""Options that stand for a value of a setting of another name."""

LISTS = ("label_levels", "target_modules", "modules_to_save", "layers_to_transform", "feedforward_modules")
"""Options that hold names or numbers by commas."""


def _option(panel: str, help_text: str, *names: str, values: Any = None) -> Any:
    """An option of ``panel``; ``values`` completes what may be given, and is the shell's own if left out."""
    return typer.Option(
        *names, help=help_text, rich_help_panel=panel, show_default=False, autocompletion=values
    )


def _choice(setting: str, panel: str, help_text: str, *names: str) -> Any:
    """An option whose values are those of ``setting``."""
    return _option(panel, help_text, *names, values=completion.choice_of_setting(setting))


Text: TypeAlias = Annotated[
    list[str] | None,
    _option(DATA, "Text column; repeat for several.", values=completion.columns("train", "data")),
]
Label: TypeAlias = Annotated[
    list[str] | None,
    _option(
        DATA,
        "Label column; with --multi-label repeat it, one for each label (or a,b,c).",
        values=completion.columns("train", "data"),
    ),
]
OneLabel: TypeAlias = Annotated[
    list[str] | None,
    _option(DATA, "Label column of rows that have one.", values=completion.columns("pool", "table")),
]
LabelLevels: TypeAlias = Annotated[
    str | None,
    _option(DATA, "Columns above the label, such as Product,Issue: the scores at each.", "--label-levels"),
]
LabelSeparator: TypeAlias = Annotated[
    str | None, _option(DATA, "What parts the labels in a cell that holds several, such as ';'.")
]
MultiLabel: TypeAlias = Annotated[
    bool,
    _option(DATA, "A text may carry several labels or none: --problem-type multi_label_classification."),
]
Sheet: TypeAlias = Annotated[str | None, _option(DATA, "Sheet of a workbook, if not the first in sight.")]
TestSheet: TypeAlias = Annotated[str | None, _option(DATA, "Sheet of a test workbook.")]
Encoding: TypeAlias = Annotated[str | None, _option(DATA, "Encoding of a table that is not UTF-8.")]
Delimiter: TypeAlias = Annotated[str | None, _option(DATA, "Delimiter of a CSV, if it is not found.")]
Corrections: TypeAlias = Annotated[
    str | None, _option(DATA, "The label_issues.xlsx of an audit with its corrected_label column filled in.")
]
Add: TypeAlias = Annotated[
    list[str] | None,
    _option(
        DATA,
        "The reviews.db of snugtune app, or a spreadsheet with labels: what people decided joins the "
        "training rows. Repeat for several.",
    ),
]
LabelledBefore: TypeAlias = Annotated[
    list[str] | None,
    _option(
        DATA,
        "A spreadsheet that was filled in before, or a reviews.db: its texts are not asked for again. Repeat "
        "for several; those of --run are known.",
    ),
]
Duplicates: TypeAlias = Annotated[
    str | None, _choice("duplicates", DATA, "Exact duplicates: drop (default) or keep.")
]
NearDuplicates: TypeAlias = Annotated[
    str | None,
    _choice(
        "near_duplicates",
        DATA,
        "Training rows almost like another of the same label: keep (default) or drop.",
    ),
]
Conflicts: TypeAlias = Annotated[
    str | None, _choice("conflicts", DATA, "Same text, other label: keep (default) or drop.")
]
MergeLabelVariants: TypeAlias = Annotated[
    bool | None,
    _option(
        DATA,
        "Labels that differ by case or spacing only become one (default).",
        "--merge-label-variants/--keep-label-variants",
    ),
]
MinClassCount: TypeAlias = Annotated[int | None, _option(DATA, "Leave out classes with fewer rows.")]
ValidationFraction: TypeAlias = Annotated[float | None, _option(DATA, "Share held back for validation (.1).")]
TestFraction: TypeAlias = Annotated[
    float | None, _option(DATA, "Share held back for the test where there is no --test (.1).")
]
Seed: TypeAlias = Annotated[int | None, _option(DATA, "Seed of split, order and initial weights (0).")]

Model: TypeAlias = Annotated[
    str | None, _option(MODEL, "'minilm' (default), a folder, or a Hub name.", values=completion.models)
]
Revision: TypeAlias = Annotated[str | None, _option(MODEL, "Branch, tag or commit on the Hub.")]
MaxLength: TypeAlias = Annotated[int | None, _option(MODEL, "Tokens kept of each text (the model's limit).")]
LongTexts: TypeAlias = Annotated[
    str | None,
    _choice(
        "long_texts",
        MODEL,
        "Longer texts: truncate (default), head_tail (first and last tokens), windows (all of it), or auto "
        "(by validation).",
    ),
]
Method: TypeAlias = Annotated[
    str | None,
    _choice(
        "method",
        MODEL,
        "lora (default), adalora, vera, oft, boft, ia3, bitfit, prefix, prompt, p-tuning, head or full.",
    ),
]
LoadIn4bit: TypeAlias = Annotated[
    bool | None,
    _option(MODEL, "Hold frozen weights in 4 bits (NF4); needs snugtune\\[quantized].", "--load-in-4bit"),
]
Pooling: TypeAlias = Annotated[
    str | None,
    _choice(
        "pooling",
        MODEL,
        "What the head reads: auto (default; as the model was trained), first token, or mean.",
    ),
]
HiddenDropout: TypeAlias = Annotated[float | None, _option(MODEL, "Dropout inside the model (0).")]

ProblemType: TypeAlias = Annotated[
    str | None,
    _choice("problem_type", MODEL, "single_label_classification (default) or multi_label_classification."),
]
TaskType: TypeAlias = Annotated[str | None, _choice("task_type", ADAPTER, "SEQ_CLS, the only one here.")]
R: TypeAlias = Annotated[int | None, _option(ADAPTER, "LoRA rank (16).", "--r")]
LoraAlpha: TypeAlias = Annotated[float | None, _option(ADAPTER, "LoRA scaling: alpha / r (32).")]
TargetModules: TypeAlias = Annotated[
    str | None, _option(ADAPTER, "Module names, by commas, or all-linear (query and value).")
]
LoraDropout: TypeAlias = Annotated[float | None, _option(ADAPTER, "Dropout before the adapter (0).")]
Bias: TypeAlias = Annotated[
    str | None, _choice("bias", ADAPTER, "Biases trained: none (default), all, lora_only.")
]
ModulesToSave: TypeAlias = Annotated[
    str | None, _option(ADAPTER, "Modules trained in full, by commas (the head).")
]
UseDora: TypeAlias = Annotated[bool | None, _option(ADAPTER, "DoRA: train magnitudes as well.", "--use-dora")]
UseRslora: TypeAlias = Annotated[
    bool | None, _option(ADAPTER, "Rank-stabilised LoRA: scale by alpha / sqrt(r).", "--use-rslora")
]
InitLoraWeights: TypeAlias = Annotated[
    str | None,
    _choice("init_lora_weights", ADAPTER, "true (default), gaussian, pissa, olora, orthogonal or eva."),
]
LayersToTransform: TypeAlias = Annotated[
    str | None, _option(ADAPTER, "Layers that get an adapter, by commas, counted from 0 (all).")
]
EvaRho: TypeAlias = Annotated[
    float | None, _option(ADAPTER, "EVA: most ranks of a layer, as a multiple of r (2).", "--eva-rho")
]
LoraPlus: TypeAlias = Annotated[
    float | None,
    _option(ADAPTER, "LoRA+: how many times faster B learns than A.", "--loraplus-lr-ratio"),
]
InitR: TypeAlias = Annotated[int | None, _option(ADAPTER, "AdaLoRA: rank at the start (12).", "--init-r")]
TargetR: TypeAlias = Annotated[
    int | None, _option(ADAPTER, "AdaLoRA: mean rank at the end (8).", "--target-r")
]
Tinit: TypeAlias = Annotated[
    int | None, _option(ADAPTER, "AdaLoRA: steps before ranks are cut (a tenth of them).", "--tinit")
]
Tfinal: TypeAlias = Annotated[
    int | None, _option(ADAPTER, "AdaLoRA: steps after the last cut (half of them).", "--tfinal")
]
DeltaT: TypeAlias = Annotated[
    int | None, _option(ADAPTER, "AdaLoRA: steps between two cuts (a hundredth of them).", "--delta-t")
]
Beta1: TypeAlias = Annotated[
    float | None, _option(ADAPTER, "AdaLoRA: smoothing of the importance (.85).", "--beta1")
]
Beta2: TypeAlias = Annotated[
    float | None, _option(ADAPTER, "AdaLoRA: smoothing of its uncertainty (.85).", "--beta2")
]
OrthRegWeight: TypeAlias = Annotated[
    float | None,
    _option(ADAPTER, "AdaLoRA: weight of the penalty on directions that are not orthogonal (.5)."),
]
DInitial: TypeAlias = Annotated[float | None, _option(ADAPTER, "VeRA: first value of its vector d (.1).")]
ProjectionPrngKey: TypeAlias = Annotated[
    int | None, _option(ADAPTER, "VeRA: seed of its frozen matrices (0).")
]
OftBlockSize: TypeAlias = Annotated[
    int | None,
    _option(ADAPTER, "OFT: size of the blocks that are rotated (32, if it divides the model's width)."),
]
UseCayleyNeumann: TypeAlias = Annotated[
    bool | None,
    _option(
        ADAPTER,
        "OFT: rotations by a series (default), not by an exact solution.",
        "--use-cayley-neumann/--no-use-cayley-neumann",
    ),
]
BoftBlockSize: TypeAlias = Annotated[int | None, _option(ADAPTER, "BOFT: size of its blocks (4).")]
FeedforwardModules: TypeAlias = Annotated[
    str | None, _option(ADAPTER, "IA3: which of the target modules are scaled at their input, by commas.")
]
NumVirtualTokens: TypeAlias = Annotated[
    int | None, _option(ADAPTER, "prefix, prompt, p-tuning: virtual tokens before each text (20).")
]
PrefixProjection: TypeAlias = Annotated[
    bool | None, _option(ADAPTER, "prefix: make keys and values by a small network.", "--prefix-projection")
]
PromptTuningInit: TypeAlias = Annotated[
    str | None, _option(ADAPTER, "prompt: begin as SAMPLE_VOCAB (default), RANDOM or TEXT.")
]
PromptTuningInitText: TypeAlias = Annotated[
    str | None, _option(ADAPTER, "prompt: the text to begin as, with --prompt-tuning-init TEXT.")
]
EncoderReparameterizationType: TypeAlias = Annotated[
    str | None, _option(ADAPTER, "p-tuning: what makes its tokens, MLP (default) or LSTM.")
]
EncoderHiddenSize: TypeAlias = Annotated[
    int | None, _option(ADAPTER, "p-tuning, prefix projection: width of that network (the model's).")
]
EncoderNumLayers: TypeAlias = Annotated[int | None, _option(ADAPTER, "p-tuning: layers of an LSTM (2).")]


Epochs: TypeAlias = Annotated[
    float | None, _option(TRAINING, "Passes over the data.", "--epochs", "--num-train-epochs")
]
LearningRate: TypeAlias = Annotated[float | None, _option(TRAINING, "Of the adapter, or of the backbone.")]
HeadLearningRate: TypeAlias = Annotated[float | None, _option(TRAINING, "Of the classification head.")]
WeightDecay: TypeAlias = Annotated[float | None, _option(TRAINING, "AdamW's (0).")]
WarmupRatio: TypeAlias = Annotated[
    float | None, _option(TRAINING, "Share of the steps in which the rate rises (.1).")
]
LrSchedulerType: TypeAlias = Annotated[
    str | None, _choice("lr_scheduler_type", TRAINING, "After warm-up: linear (default), cosine or constant.")
]
MaxGradNorm: TypeAlias = Annotated[float | None, _option(TRAINING, "Gradients are clipped to it (1).")]
LabelSmoothing: TypeAlias = Annotated[float | None, _option(TRAINING, "Of the cross-entropy (0).")]
ProbeStart: TypeAlias = Annotated[
    bool | None,
    _option(TRAINING, "Start the head from a linear probe (default).", "--probe-start/--no-probe-start"),
]
Metric: TypeAlias = Annotated[
    str | None,
    _choice(
        "metric",
        TRAINING,
        "Validation score that chooses the weights: accuracy (default), f1_macro, or f1_micro.",
    ),
]
Patience: TypeAlias = Annotated[
    int | None,
    _option(
        TRAINING,
        "Stop after so many looks at validation without a gain (3).",
        "--patience",
        "--early-stopping-patience",
    ),
]

EffectiveBatchSize: TypeAlias = Annotated[int | None, _option(PRECISION, "Examples per optimiser step (32).")]
PerDeviceTrainBatchSize: TypeAlias = Annotated[
    int | None, _option(PRECISION, "Most examples in a forward pass of training.")
]
PerDeviceEvalBatchSize: TypeAlias = Annotated[
    int | None, _option(PRECISION, "Most examples in a forward pass of evaluation.")
]
GradientAccumulationSteps: TypeAlias = Annotated[
    int | None, _option(PRECISION, "With the training batch size: the examples per optimiser step.")
]
TokensPerMicroBatch: TypeAlias = Annotated[
    int | None,
    _option(PRECISION, "Most tokens in a forward pass of training (a CPU: 2048; a GPU: what fits)."),
]
Packing: TypeAlias = Annotated[
    str | None,
    _choice("packing", PRECISION, "Train without padding where GPU and model can: auto (default) or off."),
]
Sharding: TypeAlias = Annotated[
    str | None,
    _choice(
        "sharding",
        PRECISION,
        "With several devices: each holds all weights (none, default) or a share of them (full: FSDP2).",
    ),
]
Fp16: TypeAlias = Annotated[
    bool | None, _option(PRECISION, "Hold and multiply frozen weights in float16.", "--fp16")
]
Bf16: TypeAlias = Annotated[
    bool | None, _option(PRECISION, "In bfloat16, or never (by device).", "--bf16/--no-bf16")
]

Audit: TypeAlias = Annotated[
    bool | None,
    _option(
        RESULT,
        "Audit the data: languages, suspected wrong labels, a forecast from more rows (default).",
        "--audit/--no-audit",
    ),
]
ReportTexts: TypeAlias = Annotated[
    bool | None,
    _option(
        RESULT,
        "Keep the beginnings of wrongly classified texts in the run folder and show them in its report "
        "(default).",
        "--report-texts/--no-report-texts",
    ),
]
MixWithBaseline: TypeAlias = Annotated[
    bool | None,
    _option(
        RESULT,
        "Mix in the TF-IDF baseline where validation says it helps (default).",
        "--mix-with-baseline/--no-mix-with-baseline",
    ),
]
Imbalance: TypeAlias = Annotated[
    str | None,
    _choice(
        "imbalance",
        RESULT,
        "Favour rare classes where validation says that raises --metric: auto (default); or none, weights, "
        "logit_adjustment, sampling.",
    ),
]
PrecisionTarget: TypeAlias = Annotated[
    float | None, _option(RESULT, "Precision that predictions without review must have (.95).")
]
Price: TypeAlias = Annotated[
    float | None, _option(RESULT, "USD per hour of this machine.", "--price", "--price-per-hour-usd")
]

PredictionsPerMonth: TypeAlias = Annotated[
    int | None, _option(RESULT, "Texts to classify each month, to tell what a year of them costs.")
]
MaxCost: TypeAlias = Annotated[
    float | None,
    _option(BUDGET, "The most the run may cost in USD; it ends in time.", "--max-cost", "--max-cost-usd"),
]
MaxTime: TypeAlias = Annotated[
    str | None,
    _option(BUDGET, "The longest it may take, as 90min or 1.5h; likewise.", "--max-time", "--max-time-s"),
]
MaxUnits: TypeAlias = Annotated[
    float | None, _option(BUDGET, "The most compute units (Colab's) it may use; likewise.")
]
Track: TypeAlias = Annotated[
    str | None,
    _choice("track", RESULT, "Also log to tensorboard (in the run folder), mlflow, wandb or trackio."),
]


def settings(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parsed options that were given, as settings of ``FitConfig``; lists come in by commas."""
    # An option that may be repeated and was not given is an empty tuple.
    given = {key: value for key, value in parameters.items() if value is not None and value != ()}
    for key in ("text", "add"):
        if key in given:
            given[key] = tuple(given[key])
    if "label" in given:
        labels = tuple(given["label"])
        given["label"] = labels[0] if len(labels) == 1 else labels
    if given.pop("multi_label", False):
        given["problem_type"] = "multi_label_classification"
    for key in LISTS:
        if key in given and given[key] != "all-linear":
            given[key] = tuple(part.strip() for part in given[key].split(",") if part.strip())
    if str(given.get("init_lora_weights")).lower() in ("true", "false"):
        given["init_lora_weights"] = given["init_lora_weights"].lower() == "true"
    return given
