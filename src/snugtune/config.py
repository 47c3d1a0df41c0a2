"""Settings of a fit: one flat, strict model under the names PEFT and Transformers users know."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from snugtune.errors import ConfigError
from snugtune.files import write_text
from snugtune.methods import METHOD_SETTINGS, METHODS, MethodName, methods_with
from snugtune.table_url import hide_password
from snugtune.units import parse_duration

CPU_TOKENS_PER_MICRO_BATCH = 2048
DEFAULT_EFFECTIVE_BATCH_SIZE = 32
VERA_R = 256

SINGLE_LABEL: Final = "single_label_classification"
MULTI_LABEL: Final = "multi_label_classification"
"""Values of ``problem_type``, which are Transformers' own."""

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Source = Annotated[str, AfterValidator(hide_password)]  # what is kept has no password
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


def _seconds(value: Any) -> Any:
    """Text such as ``90min`` as seconds; everything else is left for the check that follows."""
    return parse_duration(value) if isinstance(value, str) else value


WITHOUT_EFFECT_ON_WEIGHTS = frozenset(
    {
        "price_per_hour_usd",
        "predictions_per_month",
        "max_cost_usd",
        "max_time_s",
        "max_units",
        "sharding",
        "track",
        "report_texts",
    }
)
"""Settings that may change between a run that broke off and the same one going on."""


class FitConfig(BaseModel):
    """Everything that decides a fit; a YAML file of these keys reproduces it.

    Settings that Transformers or PEFT have too carry their names and mean what they mean there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Data
    train: Source
    test: Source | None = None
    text: tuple[str, ...] | None = None
    label: str | tuple[str, ...] | None = None
    label_levels: tuple[str, ...] | None = None
    label_separator: Annotated[str, Field(min_length=1)] | None = None
    sheet: str | None = None
    test_sheet: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    corrections: str | None = None
    add: str | tuple[str, ...] | None = None
    duplicates: Literal["keep", "drop"] = "drop"
    near_duplicates: Literal["keep", "drop"] = "keep"
    conflicts: Literal["keep", "drop"] = "keep"
    merge_label_variants: bool = True
    min_class_count: PositiveInt = 1
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    test_fraction: Fraction = 0.1
    seed: Annotated[int, Field(ge=0)] = 0

    # Model
    model: str = "minilm"
    revision: str | None = None
    max_length: PositiveInt | None = None
    long_texts: Literal["truncate", "head_tail", "windows", "auto"] = "truncate"
    pooling: Literal["auto", "first", "mean"] = "auto"
    method: MethodName = "lora"
    load_in_4bit: bool = False
    task_type: Literal["SEQ_CLS"] = "SEQ_CLS"
    problem_type: Literal["single_label_classification", "multi_label_classification"] = SINGLE_LABEL
    r: PositiveInt = 16
    lora_alpha: PositiveFloat = 32
    target_modules: tuple[str, ...] | str | None = None
    lora_dropout: Fraction = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    modules_to_save: tuple[str, ...] | None = None
    use_dora: bool = False
    use_rslora: bool = False
    init_lora_weights: bool | Literal["gaussian", "pissa", "olora", "orthogonal", "eva"] = True
    eva_rho: Annotated[float, Field(ge=1.0)] = 2.0
    loraplus_lr_ratio: Annotated[float, Field(ge=1.0)] | None = None
    layers_to_transform: tuple[int, ...] | None = None
    init_r: PositiveInt = 12
    target_r: PositiveInt = 8
    tinit: Annotated[int, Field(ge=0)] | None = None
    tfinal: Annotated[int, Field(ge=0)] | None = None
    deltaT: PositiveInt | None = None  # noqa: N815 - PEFT's name
    beta1: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.85
    beta2: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.85
    orth_reg_weight: Annotated[float, Field(ge=0.0)] = 0.5
    d_initial: PositiveFloat = 0.1
    projection_prng_key: Annotated[int, Field(ge=0)] = 0
    oft_block_size: PositiveInt | None = None
    use_cayley_neumann: bool = True
    boft_block_size: PositiveInt = 4
    feedforward_modules: tuple[str, ...] | None = None
    num_virtual_tokens: PositiveInt = 20
    prefix_projection: bool = False
    prompt_tuning_init: Literal["SAMPLE_VOCAB", "RANDOM", "TEXT"] = "SAMPLE_VOCAB"
    prompt_tuning_init_text: str | None = None
    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    encoder_hidden_size: PositiveInt | None = None
    encoder_num_layers: PositiveInt = 2

    # Training
    effective_batch_size: PositiveInt | None = None
    per_device_train_batch_size: PositiveInt | None = None
    per_device_eval_batch_size: PositiveInt | None = None
    gradient_accumulation_steps: PositiveInt | None = None
    tokens_per_micro_batch: PositiveInt | None = None
    packing: Literal["auto", "off"] = "auto"
    sharding: Literal["none", "full"] = "none"
    num_train_epochs: PositiveFloat = 4
    learning_rate: PositiveFloat | None = None
    head_learning_rate: PositiveFloat | None = None
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    warmup_ratio: Fraction = 0.1
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: PositiveFloat = 1.0
    label_smoothing: Fraction = 0.0
    hidden_dropout: Fraction = 0.0
    probe_start: bool = True
    metric: Literal["accuracy", "f1_macro", "f1_micro"] = "accuracy"
    early_stopping_patience: PositiveInt | None = 3
    fp16: bool = False
    bf16: bool | None = None

    # Result
    audit: bool = True
    report_texts: bool = True
    mix_with_baseline: bool = True
    imbalance: Literal["none", "auto", "weights", "logit_adjustment", "sampling"] = "auto"
    precision_target: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95
    price_per_hour_usd: Annotated[float, Field(ge=0.0)] | None = None
    predictions_per_month: PositiveInt | None = None
    max_cost_usd: PositiveFloat | None = None
    max_time_s: Annotated[PositiveFloat, BeforeValidator(_seconds)] | None = None
    max_units: PositiveFloat | None = None
    track: Literal["tensorboard", "mlflow", "wandb", "trackio"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_several_labels(cls, given: Any) -> Any:
        """Defaults that depend on others: a separator says that a cell holds several labels, and so on."""
        if not isinstance(given, Mapping):
            return given
        values = dict(given)
        if values.get("label_separator") is not None:
            values.setdefault("problem_type", MULTI_LABEL)
        if values.get("problem_type") == MULTI_LABEL:
            values.setdefault("metric", "f1_micro")
        if values.get("method") == "vera":
            # Its matrices are not trained, so rank costs little; 256 is PEFT's default, too.
            values.setdefault("r", VERA_R)
        return values

    @model_validator(mode="after")
    def _one_label_or_several(self) -> FitConfig:
        if self.is_multi_label:
            if self.imbalance not in ("auto", "none"):
                raise ValueError(
                    f"imbalance={self.imbalance!r} is for one label a text; thresholds by label do that for "
                    "several, so leave it out"
                )
            if self.label_levels:
                raise ValueError(
                    f"label_levels are for one label a text; leave them out with problem_type={MULTI_LABEL}"
                )
            if self.corrections is not None:
                raise ValueError(
                    "corrections hold one label for each row; correct the labels in the table itself where "
                    f"problem_type is {MULTI_LABEL}"
                )
            return self
        if self.label_separator is not None:
            raise ValueError(f"label_separator needs problem_type={MULTI_LABEL}; leave one of the two out")
        if not (self.label is None or isinstance(self.label, str)):
            raise ValueError(
                f"label names {len(self.label)} columns; name one, or say with problem_type={MULTI_LABEL} "
                "(--multi-label) that each of them is a label which may apply to a text or not"
            )
        return self

    @model_validator(mode="after")
    def _one_batch_size(self) -> FitConfig:
        product = self._batch_size_product()
        if self.effective_batch_size and product and self.effective_batch_size != product:
            raise ValueError(
                f"effective_batch_size={self.effective_batch_size} contradicts per_device_train_batch_size x "
                f"gradient_accumulation_steps = {product}; set one or the other"
            )
        if self.fp16 and self.bf16:
            raise ValueError("fp16 and bf16 exclude each other; set one")
        return self

    @model_validator(mode="after")
    def _settings_of_the_method(self) -> FitConfig:
        faults = [*self._foreign_settings(), *self._contradictions()]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _foreign_settings(self) -> Iterator[str]:
        """A sentence for each setting that has no effect with this method."""
        fields = type(self).model_fields
        for name in sorted(METHOD_SETTINGS - METHODS[self.method].settings):
            if getattr(self, name) != fields[name].default:
                theirs = " and ".join(repr(method) for method in methods_with(name))
                yield (
                    f"{name} has no effect with method={self.method!r}, it belongs to {theirs}; leave it out"
                )

    def _contradictions(self) -> Iterator[str]:
        """A sentence for each pair of settings of the method that exclude each other."""
        if self.load_in_4bit and self.bias != "none":
            yield (
                f"bias={self.bias!r} trains biases of layers that load_in_4bit freezes; leave one of them out"
            )
        if self.eva_rho != 2.0 and self.init_lora_weights != "eva":
            yield "eva_rho needs init_lora_weights='eva'; leave it out"
        if self.target_r >= self.init_r:
            yield (
                f"target_r={self.target_r} must be less than init_r={self.init_r}: AdaLoRA begins with "
                "init_r and comes down to target_r on the average"
            )
        if (self.prompt_tuning_init == "TEXT") != (self.prompt_tuning_init_text is not None):
            yield "prompt_tuning_init='TEXT' and prompt_tuning_init_text go together; give both or neither"
        if self.method == "prefix" and self.encoder_hidden_size and not self.prefix_projection:
            yield "encoder_hidden_size needs prefix_projection here; leave it out"

    @property
    def is_multi_label(self) -> bool:
        """Whether a text may carry several labels, or none."""
        return self.problem_type == MULTI_LABEL

    @property
    def tokens_on_cpu(self) -> int:
        """Most tokens of a micro-batch on a CPU, where larger ones are no faster."""
        return self.tokens_per_micro_batch or CPU_TOKENS_PER_MICRO_BATCH

    @property
    def virtual_tokens(self) -> int:
        """Tokens that the method puts before each text."""
        return self.num_virtual_tokens if METHODS[self.method].has_virtual_tokens else 0

    def _batch_size_product(self) -> int | None:
        if self.per_device_train_batch_size is None and self.gradient_accumulation_steps is None:
            return None
        # Transformers' own defaults stand in for the one that is left out.
        return (self.per_device_train_batch_size or 8) * (self.gradient_accumulation_steps or 1)

    @property
    def step_examples(self) -> int:
        """Examples per optimiser step, from whichever of the batch settings were given."""
        return self.effective_batch_size or self._batch_size_product() or DEFAULT_EFFECTIVE_BATCH_SIZE


def make_config(settings: Mapping[str, Any]) -> FitConfig:
    """Validate ``settings``.

    Raises:
        ConfigError: naming every unknown key and every value out of range, all at once.
    """
    try:
        return FitConfig.model_validate(dict(settings))
    except ValidationError as error:
        faults = _faults(error.errors(include_url=False))
        raise ConfigError(f"The settings cannot be used: {faults}.") from None


def read_config(
    path: str | Path, what: str = "configuration file", example: str = "'r: 16'"
) -> dict[str, Any]:
    """Settings from a YAML file, not yet validated, so that command-line options can go on top.

    Errors call the file ``what``, and show a line of it by ``example``.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping of settings.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise ConfigError(f"{path} has more than 1 MiB: it is no {what}; check the path.")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"Cannot read the {what} {path}: {reason}.") from None
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # it is a SafeLoader
    except _TwiceError as error:
        raise ConfigError(f"The {what} {path} {error}; keep one of them.") from None
    except Exception as error:  # beside its own, PyYAML raises what int(), dates and deep nesting raise
        place = getattr(error, "problem_mark", None)
        where = f" near line {place.line + 1}" if place else ""
        raise ConfigError(f"The {what} {path} is not valid YAML{where}; correct it.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"The {what} {path} holds no settings; write lines such as {example}.")
    return {str(key): item for key, item in value.items()}


_LARGEST_BYTES = 1 << 20


class _TwiceError(Exception):
    """A key of a mapping is there twice, of which PyYAML would silently take the last."""


class _StrictLoader(yaml.SafeLoader):
    """Plain values only, no objects of Python, and no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in lines:
                    raise _TwiceError(f"sets {_short(key.value)} twice, in lines {lines[name]} and {line}")
                lines[name] = line
        return super().construct_mapping(node, deep)


def write_config(config: FitConfig, path: str | Path) -> None:
    """Save every setting, defaults included, as YAML."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


_MOST_FAULTS, _MOST_TOLD = 20, 1_000
"""Faults told at once, and about how many characters of them: what has more is no list of settings."""

_OF_CODE = {"trust_remote_code", "auto_map", "custom_pipelines"}
"""Settings of others by which a model asks for its own code to be run."""


def _faults(items: Sequence[Any]) -> str:
    told: list[str] = []
    for item in items[:_MOST_FAULTS]:
        if sum(map(len, told)) > _MOST_TOLD:
            break
        told.append(_fault(item))
    more = len(items) - len(told)
    return "; ".join([*told, f"and {more:,} more"] if more > 0 else told)


def _fault(item: Any) -> str:
    name = _short(".".join(str(part) for part in item["loc"]))
    if name in _OF_CODE:
        return f"{name} asks for a model's own code to be run, which snugtune never does"
    if item["type"] == "extra_forbidden":
        return f"unknown setting '{name}'"
    message = item["msg"].removeprefix("Value error, ")
    value = _VALUES.repr(item["input"])
    told = value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}..."
    return f"{name}={told}: {message}" if name else message


def _short(text: str) -> str:
    return " ".join(text.split()) if len(text) <= 60 else " ".join(text[:57].split()) + "..."


_LONGEST_VALUE = 200  # lists of lists add up

_VALUES = reprlib.Repr()
"""Tells values of any size in a line, those of YAML's aliases too, which may hold each other."""
_VALUES.maxstring = _VALUES.maxother = _VALUES.maxlong = 80
_VALUES.maxlevel, _VALUES.maxlist, _VALUES.maxtuple, _VALUES.maxdict = 2, 8, 8, 8
