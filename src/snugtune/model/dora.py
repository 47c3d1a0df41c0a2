"""DoRA on weights that have rows of zeros, as mean pooling written as a layer does (``model/pooling.py``).

DoRA (Liu et al. 2024, arXiv:2402.09353, equation 5) divides each row of W + BA by its norm, which makes a row
of zeros into numbers that are none, in PEFT too. Here BA of such a row begins as something faint instead of
nothing, so that its norm can be divided by and training can change it. The adapter stays a stock one.
"""

from __future__ import annotations

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

NOTHING = 1e-6
"""A row whose norm is smaller than this share of the mean may become 0 in half precision."""

FAINT = 1e-4
"""The norm it begins with, as a share of the mean, or where that is 0: less than the rounding of an ordinary
row in half precision."""


def wake_dead_rows(model: nn.Module) -> None:
    """Give rows without weight a faint B and its norm as magnitude, in each DoRA layer of ``model``.

    On the meta device there are no values to look at, and nothing is done.
    """
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and "default" in layer.lora_magnitude_vector:
            magnitude = layer.lora_magnitude_vector["default"].weight
            if magnitude.device.type != "meta":
                _wake(layer, magnitude)


@torch.no_grad()
def _wake(layer: LoraLayer, magnitude: torch.Tensor) -> None:
    mean = magnitude.mean()
    dead = magnitude <= NOTHING * mean
    if not dead.any():
        return
    faint = FAINT * torch.where(mean > 0, mean, 1.0)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    # BA of the row is then s^-1 faint times the first row of A at length 1; s is LoRA's scaling.
    b[dead, 0] = faint / (layer.scaling["default"] * a[0].norm())
    magnitude[dead] = faint
