"""The classification head of each architecture, and how to start it from a linear probe.

The saved model must stay a stock Transformers one, so the probe is written into the layers that the
architecture already has: a standardising ``dense`` before an activation where there is one, then the last
linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import gelu, relu
from transformers import PreTrainedModel

from snugtune.errors import UserInputError

NEW_PARAMETERS = "snugtune_new_parameters"
"""Attribute of a loaded model: names of the parameters that its weights file did not hold (frozenset)."""

HEAD_LAYERS = {"classifier", "score", "classification_head", "logits_proj", "sequence_summary"}
"""Top-level names under which Transformers' sequence classifiers keep their last linear."""


@dataclass(frozen=True)
class Activation:
    """What the head applies between ``dense`` and the last linear, and where standardised features go in.

    Features z (zero mean, unit variance) enter as ``scale * z + shift``: tanh is nearly linear for small
    inputs, ReLU and GELU for inputs well above zero, so little of z is lost.
    """

    function: Callable[[Tensor], Tensor]
    scale: float
    shift: float


TANH = Activation(torch.tanh, 0.5, 0.0)
RELU = Activation(relu, 1.0, 3.0)
GELU = Activation(gelu, 1.0, 3.0)

ACTIVATIONS = {
    "albert": TANH,
    "bart": TANH,
    "bert": TANH,
    "camembert": TANH,
    "data2vec-text": TANH,
    "deberta": GELU,
    "deberta-v2": GELU,
    "distilbert": RELU,
    "electra": GELU,
    "ernie": TANH,
    "longformer": TANH,
    "mbart": TANH,
    "mpnet": TANH,
    "mt5": TANH,
    "roberta": TANH,
    "t5": TANH,
    "xlm-roberta": TANH,
    "xlm-roberta-xl": TANH,
}
"""By model type (``config.model_type``): the activation of heads that are dense, activation, linear in
Transformers 5. The probe of any other head is written into its last linear alone."""


@dataclass(frozen=True)
class Head:
    """The head of a plain (not yet PEFT-wrapped) sequence-classification model.

    ``dense`` and ``activation`` come before the last linear, ``final``; both are None where the architecture
    has none, or none that will be saved. ``modules_to_save`` are the names PEFT must train and save in full.
    """

    dense: nn.Linear | None
    activation: Activation | None
    final: nn.Linear
    modules_to_save: tuple[str, ...]

    @property
    def feature_layer(self) -> nn.Linear:
        """The layer whose input is what a linear probe sees."""
        return self.dense or self.final


def find_head(model: PreTrainedModel, modules_to_save: tuple[str, ...] | None = None) -> Head:
    """Find the head of ``model``.

    The modules to save are those named by the user or, by default, all that the backbone lacks: every module
    beside the backbone, and the backbone's pooler. Whatever is named, the last linear and all that loading
    drew at random are among them, for a frozen random layer would not be the same after the next loading.

    Raises:
        UserInputError: a name in ``modules_to_save`` fits no module.
    """
    named = dict(model.named_modules())
    final_name = _final_name(named, model.config.num_labels)
    final = named[final_name]
    assert isinstance(final, nn.Linear)
    if modules_to_save:
        _check_names(modules_to_save, named)
    wanted = modules_to_save or _head_modules(model)
    saved = tuple(dict.fromkeys((*wanted, *_new_modules(model), _owner(final_name))))
    dense, activation = _dense(model, named, final_name, saved)
    return Head(dense, activation, final, saved)


def write_probe(head: Head, probe: Probe) -> None:
    """Set the head's weights, in float32, so that its logits are the probe's.

    Raises:
        ValueError: the probe has a constant term where the head has no bias to hold it.
    """
    final = head.final.float()
    with torch.no_grad():
        if head.dense is not None and head.activation is not None:
            # scale * (x - mean) / std + shift, as one diagonal layer
            dense = head.dense.float()
            scale, shift = head.activation.scale, head.activation.shift
            dense.weight.copy_(torch.diag(scale / probe.std))
            dense.bias.copy_(shift - scale * probe.mean / probe.std)
            # The probe was fitted on the activation less its shift.
            weight, bias = probe.weight, probe.bias - shift * probe.weight.sum(1)
        else:
            weight = probe.weight / probe.std
            bias = probe.bias - weight @ probe.mean
        final.weight.copy_(weight)
        if has_bias(final):
            final.bias.copy_(bias)
        elif bias.any():
            raise ValueError("this head has no bias: fit its probe without mean and intercept")


@dataclass(frozen=True)
class Probe:
    """A linear probe over standardised features.

    ``weight`` is (K, H), ``bias`` (K,), ``mean`` and ``std`` (H,).
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def logits(self, features: Tensor, activation: Activation | None) -> Tensor:
        """What the head must give for ``features`` (N, H): logits (N, K)."""
        squashed = torch.from_numpy(self.transform(features, self.mean, self.std, activation))
        return squashed @ self.weight.T + self.bias

    @staticmethod
    def transform(
        features: Tensor, mean: Tensor, std: Tensor, activation: Activation | None
    ) -> NDArray[np.float32]:
        """Standardise (N, H) features, and squash them as the head's activation will (less its shift)."""
        z = (features - mean) / std
        if activation is not None:
            z = activation.function(activation.scale * z + activation.shift) - activation.shift
        out: NDArray[np.float32] = z.numpy()
        return out


def pooled_positions(input_ids: Tensor, pad_token_id: int) -> Tensor:
    """Which token of each row (batch, length) a decoder's head reads: the last that is not the pad token.

    Transformers' own rule (5.23, ``modeling_layers.py``, ``GenericForSequenceClassification``): it sees ids,
    not the attention mask, so a text that ends in the pad token itself is read before it.
    """
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    return (positions * (input_ids != pad_token_id)).argmax(1)


def has_bias(layer: nn.Linear) -> bool:
    """Whether ``layer`` adds a constant (the type stubs of torch say it always does)."""
    bias: Tensor | None = layer.bias
    return bias is not None


def _final_name(named: dict[str, nn.Module], num_labels: int) -> str:
    candidates = [
        name
        for name, module in named.items()
        if isinstance(module, nn.Linear) and module.out_features == num_labels
    ]
    heads = [n for n in candidates if n.split(".")[0] in HEAD_LAYERS]
    if not candidates:
        raise UserInputError(
            "This model's classifier ends in no linear layer that can be trained; choose another model."
        )
    return (heads or candidates)[-1]


def _dense(
    model: PreTrainedModel, named: dict[str, nn.Module], final_name: str, saved: tuple[str, ...]
) -> tuple[nn.Linear, Activation] | tuple[None, None]:
    """The square layer before the activation, where it will be saved and can hold a standardisation."""
    activation = ACTIVATIONS.get(model.config.model_type)
    # DeBERTa's configuration chooses the activation; GELU is what its published models have.
    chosen = getattr(model.config, "pooler_hidden_act", "gelu")
    if activation is None or (activation is GELU and chosen != "gelu"):
        return None, None
    name = _dense_name(model, named, final_name)
    dense = named.get(name) if name else None
    if name is None or not isinstance(dense, nn.Linear) or _owner(name) not in saved:
        return None, None
    is_square = dense.in_features == dense.out_features == named[final_name].in_features
    return (dense, activation) if is_square and has_bias(dense) else (None, None)


def _dense_name(model: PreTrainedModel, named: dict[str, nn.Module], final_name: str) -> str | None:
    base = model.base_model_prefix
    inside = final_name.rpartition(".")[0]
    candidates = [f"{inside}.dense"] if inside else []
    candidates += ["pre_classifier", "pooler.dense", f"{base}.pooler.dense", f"{base}.pooler"]
    return next((name for name in candidates if name in named), None)


def _head_modules(model: PreTrainedModel) -> tuple[str, ...]:
    """Modules with parameters beside the backbone, and the backbone's pooler, in the model's order."""
    base = model.base_model_prefix
    beside = [name for name, child in model.named_children() if name != base and _has_parameters(child)]
    pooler = getattr(getattr(model, base, None), "pooler", None)
    return tuple(dict.fromkeys([*(["pooler"] if _has_parameters(pooler) else []), *beside]))


def _new_modules(model: PreTrainedModel) -> tuple[str, ...]:
    """Modules of which loading drew at least one parameter at random (none if nothing was loaded)."""
    new: Iterable[str] = getattr(model, NEW_PARAMETERS, ())
    return tuple(dict.fromkeys(_owner(name) for name in sorted(new)))


def _has_parameters(module: nn.Module | None) -> bool:
    return module is not None and next(module.parameters(), None) is not None


def _check_names(modules_to_save: tuple[str, ...], named: dict[str, nn.Module]) -> None:
    for wanted in modules_to_save:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in named):
            top = sorted({name for name in named if name and "." not in name})
            raise UserInputError(
                f"modules_to_save names {wanted}, but the model has no such module; its outermost ones are "
                f"{', '.join(top)}."
            )


def _owner(name: str) -> str:
    """The module to save: ``classifier`` of ``classifier.out_proj``, ``pooler`` of ``bert.pooler.dense``."""
    parts = name.split(".")
    return "pooler" if "pooler" in parts else parts[0]
