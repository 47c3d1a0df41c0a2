"""The classification head of each architecture, and how to start it from a linear probe.

The saved model must stay a stock Transformers one, so the probe is written into the layers that the
architecture already has: a standardising ``dense`` before a tanh where there is one, then the last linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

TANH_SCALE = 0.5
"""Standardised features are scaled by this before tanh: most stay in its nearly linear part."""

TANH_HEADS = {
    "bert",
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "mpnet",
    "data2vec-text",
    "ernie",
}
"""Model types (``config.model_type``) whose head is dense, tanh, linear in Transformers 5."""


@dataclass(frozen=True)
class Head:
    """The head of a plain (not yet PEFT-wrapped) sequence-classification model.

    ``dense`` is the layer before the tanh, or None where the architecture has none; ``modules_to_save``
    are the names PEFT must train and save in full.
    """

    dense: nn.Linear | None
    final: nn.Linear
    modules_to_save: tuple[str, ...]

    @property
    def feature_layer(self) -> nn.Linear:
        """The layer whose input is what a linear probe sees."""
        return self.dense or self.final


def find_head(model: PreTrainedModel, modules_to_save: tuple[str, ...] | None = None) -> Head:
    """Find the head; ``dense`` is used only if it is among the modules that will be saved."""
    named = dict(model.named_modules())
    final_name = _final_name(named, model.config.num_labels)
    dense_name = _dense_name(named, final_name)
    default = tuple(dict.fromkeys(_owner(name) for name in (dense_name, final_name) if name))
    saved = modules_to_save or default
    tanh = model.config.model_type in TANH_HEADS
    dense = named[dense_name] if tanh and dense_name and _owner(dense_name) in saved else None
    final = named[final_name]
    assert isinstance(final, nn.Linear)
    return Head(dense if isinstance(dense, nn.Linear) else None, final, saved)


def write_probe(head: Head, probe: Probe) -> None:
    """Set the head's weights so that its logits are the probe's."""
    with torch.no_grad():
        if head.dense is not None:
            # tanh(scale * (x - mean) / std), as one diagonal layer
            head.dense.weight.copy_(torch.diag(TANH_SCALE / probe.std))
            head.dense.bias.copy_(-TANH_SCALE * probe.mean / probe.std)
            weight, bias = probe.weight, probe.bias
        else:
            weight = probe.weight / probe.std
            bias = probe.bias - weight @ probe.mean
        head.final.weight.copy_(weight)
        if head.final.bias is not None:
            head.final.bias.copy_(bias)


@dataclass(frozen=True)
class Probe:
    """A linear probe over standardised features.

    ``weight`` is (K, H), ``bias`` (K,), ``mean`` and ``std`` (H,).
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    @staticmethod
    def transform(features: Tensor, mean: Tensor, std: Tensor, *, tanh: bool) -> NDArray[np.float32]:
        """Standardise (N, H) features, and squash them as the head's tanh will."""
        z = (features - mean) / std
        out: NDArray[np.float32] = (torch.tanh(TANH_SCALE * z) if tanh else z).numpy()
        return out


def _final_name(named: dict[str, nn.Module], num_labels: int) -> str:
    candidates = [
        name
        for name, module in named.items()
        if isinstance(module, nn.Linear) and module.out_features == num_labels
    ]
    heads = [n for n in candidates if n.split(".")[0] in {"classifier", "score", "classification_head"}]
    return (heads or candidates)[-1]


def _dense_name(named: dict[str, nn.Module], final_name: str) -> str | None:
    if final_name.endswith(".out_proj"):
        return final_name.removesuffix("out_proj") + "dense"
    return next((name for name in named if f".{name}".endswith(".pooler.dense")), None)


def _owner(name: str) -> str:
    """The module to save: ``classifier`` of ``classifier.out_proj``, ``pooler`` of ``bert.pooler.dense``."""
    parts = name.split(".")
    return "pooler" if "pooler" in parts else parts[0]
