"""Model code that PyTorch's compiler of old would hide from us, imported as plain Python.

Before Transformers 5.23 small functions of DeBERTa are compiled by TorchScript, which fails on the meta
device, where memory is traced. They compute the same as Python.
"""

from __future__ import annotations

import sys
from importlib import import_module

import torch
from transformers import PretrainedConfig

SCRIPTED = {
    "deberta": "transformers.models.deberta.modeling_deberta",
    "deberta-v2": "transformers.models.deberta_v2.modeling_deberta_v2",
}
"""By model type, the modules with functions under ``torch.jit.script``."""


def import_unscripted(config: PretrainedConfig) -> None:
    """Import the code of such a model before Transformers does, unless that has happened."""
    module = SCRIPTED.get(config.model_type)
    if module is None or module in sys.modules:
        return
    script = torch.jit.script
    torch.jit.script = lambda function, *_args, **_options: function  # type: ignore[assignment]
    try:
        import_module(module)
    finally:
        torch.jit.script = script
