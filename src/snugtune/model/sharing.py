"""Weights that several models have in common, kept in memory once.

Classifiers of one backbone differ in their adapters and heads, which are small. Each stays a model of its
own, with nothing to switch between one text and the next; only the tensors of their frozen weights are the
same.
"""

from __future__ import annotations

import re
import weakref
from collections import defaultdict

import torch
from torch import nn

_WRAPPERS = re.compile(r"base_model\.model\.|base_layer\.|original_module\.|modules_to_save\.default\.")
"""What PEFT puts into the names of a model's own weights."""

_Key = tuple[str, torch.Size, torch.dtype, torch.device]


class SharedWeights:
    """The weights of the models given to it, as long as one of them lives."""

    def __init__(self) -> None:
        self._known: dict[_Key, list[weakref.ref[nn.Parameter]]] = defaultdict(list)
        self.saved_bytes = 0
        """By all models so far, those that are gone included."""

    def share(self, model: nn.Module) -> None:
        """Let ``model``'s weights lie where equal ones of earlier models lie.

        Equal is: of the same name (PEFT's wrappers aside), shape, number format and device, and the same in
        every bit. ``model`` must not be trained afterwards.
        """
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                key = (_WRAPPERS.sub("", name), parameter.shape, parameter.dtype, parameter.device)
                known = self._find(key, parameter)
                if known is not None and known.data_ptr() != parameter.data_ptr():
                    self.saved_bytes += parameter.numel() * parameter.element_size()
                    parameter.data = known.data
                self._known[key].append(weakref.ref(parameter))

    def _find(self, key: _Key, parameter: nn.Parameter) -> nn.Parameter | None:
        living = [known for ref in self._known[key] if (known := ref()) is not None]
        self._known[key] = [weakref.ref(known) for known in living]
        return next((known for known in living if torch.equal(known, parameter)), None)
