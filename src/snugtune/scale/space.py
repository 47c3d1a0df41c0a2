"""What a search varies: for each method the settings that matter, in ranges around the project's defaults.

Learning rates and their defaults are those of ``decisions/0006-learning-rates.md`` and
``decisions/0030-methods.md``; why these ranges is in ``decisions/0032-search.md``. A setting that the user
has given is not varied.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from snugtune.config import FitConfig, make_config
from snugtune.errors import ConfigError
from snugtune.methods import METHOD_SETTINGS, METHODS, TARGETED, MethodName

EPOCHS: Final = "num_train_epochs"
METHOD: Final = "method"

ALPHA_OVER_R: Final = "lora_alpha / r"
"""LoRA's output is multiplied by it, so it can be varied apart from the rank."""

LAYERS: Final = "layers"
"""Stands for ``layers_to_transform``: ``ALL`` of them, or the ``UPPER`` half, which trains faster."""

ALL, UPPER = "all", "upper half"

RATE_FACTOR = 5.0
"""A learning rate is looked for from its default divided by this to its default times this."""

EPOCHS_FACTOR = 2
"""The most epochs, as a multiple of the default."""

BATCH_SETTINGS: Final = ("effective_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")

OTHER_NAMES: Final = {ALPHA_OVER_R: "lora_alpha", LAYERS: "layers_to_transform"}
"""The settings that dimensions of another name stand for."""

SHOWN_DIGITS = 3
"""Significant digits of a learning rate that is tried: more say nothing, and people read them."""

Value = str | int | float | bool | None
Point = dict[str, Value]


@dataclass(frozen=True)
class Dimension:
    """What one setting may be: one of ``choices``, or from ``low`` to ``high``.

    ``log``: its logarithm is drawn evenly. ``whole``: it is a whole number.
    """

    default: Value
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        if self.choices:
            return {"default": self.default, "choices": list(self.choices)}
        told = asdict(self)
        return {key: told[key] for key in ("default", "low", "high", "log", "whole")}


@dataclass(frozen=True)
class Facts:
    """What ranges depend on beside the settings: how many ``layers`` the model has, the names of the
    ``linear`` ones in them, the tokens it can read (None: any number), and by method the default learning
    rates of what is adapted and of the head.
    """

    layers: int
    linear: tuple[str, ...]
    positions: int | None
    rates: Mapping[MethodName, tuple[float, float]]


@dataclass(frozen=True)
class Space:
    """The dimensions of each method, by name, and the settings that hold in every trial.

    ``given`` are the settings that the user fixed; those that a method does not have are left out for it.
    ``layers`` and ``linear`` are the model's, as in `Facts`.
    """

    given: Mapping[str, Any]
    dimensions: Mapping[MethodName, Mapping[str, Dimension]]
    layers: int = 0
    linear: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[MethodName, ...]:
        """Those that are tried, the user's first one first."""
        return tuple(self.dimensions)

    def label(self, method: MethodName, name: str) -> str:
        """What a dimension is called where several methods are tried, whose ranges differ."""
        return name if len(self.methods) == 1 or name == EPOCHS else f"{method}: {name}"

    def default(self, method: MethodName) -> Point:
        """The default settings of ``method`` as a point of the space, by label."""
        point: Point = {} if len(self.methods) == 1 else {METHOD: method}
        return point | {
            self.label(method, name): one.default for name, one in self.dimensions[method].items()
        }

    def config(self, method: MethodName, values: Mapping[str, Value]) -> FitConfig:
        """The settings of a fit with ``values`` by name of dimension."""
        fixed = {key: value for key, value in self.given.items() if _belongs(key, method)}
        return make_config({**fixed, METHOD: method, **_settings(values, self, method)})

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: dimensions by method and name."""
        return {
            method: {name: one.as_dict() for name, one in dimensions.items()}
            for method, dimensions in self.dimensions.items()
        }

    def digest(self) -> str:
        """SHA-256 of the dimensions, in hexadecimal."""
        told = json.dumps(self.as_dict(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(told.encode("utf-8")).hexdigest()


def make_space(given: Mapping[str, Any], methods: Sequence[MethodName], facts: Facts) -> Space:
    """The space of a search over ``methods`` where the settings ``given`` are fixed.

    Raises:
        ConfigError: a setting that is given belongs to none of the methods, or cannot be used.
    """
    for name in sorted(given.keys() & METHOD_SETTINGS):
        if not any(_belongs(name, method) for method in methods):
            raise ConfigError(f"{name} has no effect with {' or '.join(methods)}; leave it out.")
    dimensions = {}
    for method in methods:
        fixed = {key: value for key, value in given.items() if _belongs(key, method)}
        config = make_config({**fixed, METHOD: method})
        dimensions[method] = {
            name: one for name, one in _dimensions(config, facts).items() if not _is_fixed(name, given)
        }
    return Space(dict(given), dimensions, facts.layers, facts.linear)


def changed_settings(values: Mapping[str, Any], ranges: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Those of a trial that are not the default of their range; ``ranges`` as `Space.as_dict` has them."""
    return [(name, value) for name, value in values.items() if value != ranges[name]["default"]]


def told(value: Value) -> str:
    """A value as people write it."""
    if isinstance(value, float):
        return f"{value:.{SHOWN_DIGITS}g}"
    return "the method's own" if value is None else str(value)


def _belongs(setting: str, method: MethodName) -> bool:
    return setting not in METHOD_SETTINGS or setting in METHODS[method].settings


def _is_fixed(name: str, given: Collection[str]) -> bool:
    if name == BATCH_SETTINGS[0]:
        return any(one in given for one in BATCH_SETTINGS)
    return OTHER_NAMES.get(name, name) in given


def _dimensions(config: FitConfig, facts: Facts) -> dict[str, Dimension]:
    """Everything that is worth varying with the method of ``config``, fixed or not."""
    body, head = facts.rates[config.method]
    found = {} if config.method == "head" else {"learning_rate": _rate(body)}
    found |= {
        "head_learning_rate": _rate(head),
        EPOCHS: Dimension(
            round(config.num_train_epochs), low=1, whole=True,
            high=max(1, round(EPOCHS_FACTOR * config.num_train_epochs)),
        ),
        BATCH_SETTINGS[0]: _choice(32, 16, 64),
        "warmup_ratio": _choice(0.1, 0.0, 0.2),
        "weight_decay": _choice(0.0, 0.01, 0.1),
    }  # fmt: skip
    if not config.is_multi_label:
        found["label_smoothing"] = _choice(0.0, 0.05, 0.1)
    return found | _of_method(config, facts)


def _of_method(config: FitConfig, facts: Facts) -> dict[str, Dimension]:
    """What only some methods have. Blocks of OFT and BOFT must divide the model's sizes, so they are left."""
    method, found = config.method, {}
    if method in ("lora", "adalora"):
        name, default = ("r", 16) if method == "lora" else ("target_r", 8)
        most = 64 if method == "lora" else config.init_r - 1 if "init_r" in config.model_fields_set else 64
        found[name] = _choice(default, *(rank for rank in (4, 8, 16, 32, 64) if rank <= most))
        found["lora_dropout"] = _choice(0.0, 0.05, 0.1)
        found["target_modules"] = _choice(None, "all-linear")
    if method == "lora":
        found[ALPHA_OVER_R] = _choice(config.lora_alpha / config.r, 1.0, 2.0, 4.0)
    # PEFT takes no numbers of layers beside a pattern.
    if (
        METHODS[method].settings >= TARGETED
        and facts.layers > 1
        and not isinstance(config.target_modules, str)
    ):
        found[LAYERS] = _choice(ALL, UPPER)
    if method == "vera":
        found["r"] = _choice(256, 64, 128, 512)
        found["d_initial"] = Dimension(0.1, low=0.02, high=0.5, log=True)
    if METHODS[method].has_virtual_tokens:
        # Texts need most of what the model can read.
        most = 50 if facts.positions is None else facts.positions // 4
        found["num_virtual_tokens"] = _choice(20, *(n for n in (5, 10, 50) if n <= most))
    if method == "prefix":
        found["prefix_projection"] = _choice(False, True)
    if method == "full":
        found["hidden_dropout"] = _choice(0.0, 0.1)
    return found


def _rate(default: float) -> Dimension:
    return Dimension(default, low=default / RATE_FACTOR, high=default * RATE_FACTOR, log=True)


def _choice(default: Value, *others: Value) -> Dimension:
    return Dimension(default, (default, *(one for one in others if one != default)))


def _settings(values: Mapping[str, Value], space: Space, method: MethodName) -> dict[str, Any]:
    """The settings of ``FitConfig`` that a point stands for."""
    found: dict[str, Any] = {key: value for key, value in values.items() if key not in OTHER_NAMES}
    for name, one in space.dimensions[method].items():
        if one.log and name in found:
            found[name] = float(f"{found[name]:.{SHOWN_DIGITS}g}")
    if found.get("target_modules", "") is None:
        del found["target_modules"]
    if ALPHA_OVER_R in values:
        r = found.get("r", space.given.get("r", FitConfig.model_fields["r"].default))
        found["lora_alpha"] = float(values[ALPHA_OVER_R]) * r  # type: ignore[arg-type]
    if "target_r" in found and "init_r" not in space.given:
        # AdaLoRA begins with half as much again, as by default.
        found["init_r"] = found["target_r"] * 3 // 2
    if values.get(LAYERS) == UPPER:
        found["layers_to_transform"] = tuple(range(space.layers // 2, space.layers))
        if found.get("target_modules") == "all-linear":
            found["target_modules"] = space.linear
    return found
