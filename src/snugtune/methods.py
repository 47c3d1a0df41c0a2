"""The methods of fine-tuning: which settings are theirs, what they can do, and their learning rates.

Names of settings are PEFT's. What each of them makes of a model is in ``model/peft_config.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

MethodName = Literal[
    "lora", "adalora", "vera", "oft", "boft", "ia3", "bitfit", "prefix", "prompt", "p-tuning", "head", "full"
]

TARGETED: Final = frozenset({"target_modules", "layers_to_transform"})


@dataclass(frozen=True)
class Method:
    """A method of fine-tuning.

    ``settings`` are those that it has beside what all methods have. ``learning_rate`` is of what it trains
    in the body of the model, where the head starts from a probe; see ``decisions/0030-methods.md``.
    ``passes`` is what training on a text takes, in forward passes of the frozen model: a pass backward for
    what flows back, and another for the gradients of weights, where these are trained.
    ``has_virtual_tokens``: it puts ``num_virtual_tokens`` before each text, and has nothing that could be
    merged into the weights.
    """

    title: str
    settings: frozenset[str]
    learning_rate: float
    passes: float = 2.0
    has_virtual_tokens: bool = False

    @property
    def limits_layers(self) -> bool:
        """Whether only some of the layers can be adapted."""
        return "layers_to_transform" in self.settings


METHODS: Final[dict[MethodName, Method]] = {
    "lora": Method(
        "LoRA",
        TARGETED
        | {
            "r", "lora_alpha", "lora_dropout", "bias", "use_dora", "use_rslora", "init_lora_weights",
            "loraplus_lr_ratio", "eva_rho", "load_in_4bit",
        },
        5e-4,
    ),
    "adalora": Method(
        "AdaLoRA",
        TARGETED
        | {
            "init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight",
            "lora_alpha", "lora_dropout",
        },
        2e-3,
    ),
    "vera": Method("VeRA", TARGETED | {"r", "d_initial", "projection_prng_key"}, 5e-3, 2.5),
    "oft": Method("OFT", TARGETED | {"oft_block_size", "use_cayley_neumann"}, 5e-4, 2.5),
    "boft": Method("BOFT", TARGETED | {"boft_block_size"}, 5e-4, 3.0),
    "ia3": Method("IA3", frozenset({"target_modules", "feedforward_modules"}), 3e-3),
    "bitfit": Method("BitFit", frozenset(), 1e-3),
    "prefix": Method(
        "prefix tuning",
        frozenset({"num_virtual_tokens", "prefix_projection", "encoder_hidden_size"}),
        5e-3,
        has_virtual_tokens=True,
    ),
    "prompt": Method(
        "prompt tuning",
        frozenset({"num_virtual_tokens", "prompt_tuning_init", "prompt_tuning_init_text"}),
        5e-3,
        has_virtual_tokens=True,
    ),
    "p-tuning": Method(
        "p-tuning",
        frozenset(
            {
                "num_virtual_tokens", "encoder_reparameterization_type", "encoder_hidden_size",
                "encoder_num_layers",
            }
        ),
        1e-3,
        has_virtual_tokens=True,
    ),
    "head": Method("the head alone", frozenset({"load_in_4bit"}), 5e-4, 1.0),
    "full": Method("full fine-tuning", frozenset(), 5e-5, 3.0),
}  # fmt: skip
"""By the value of the setting ``method``."""

METHOD_SETTINGS: Final = frozenset().union(*(method.settings for method in METHODS.values()))
"""Settings that belong to some methods only."""


def methods_with(setting: str) -> list[MethodName]:
    """The methods that have ``setting``."""
    return [name for name, method in METHODS.items() if setting in method.settings]
