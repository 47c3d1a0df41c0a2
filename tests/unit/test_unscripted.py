"""Model code is imported as Python, whatever the version of Transformers compiles."""

import sys
from importlib import import_module

import pytest
import torch
from transformers import AutoConfig

from snugtune.model.unscripted import SCRIPTED, import_unscripted


@pytest.mark.parametrize("model_type", sorted(SCRIPTED))
def test_no_function_is_compiled(model_type, monkeypatch):
    name = SCRIPTED[model_type]
    monkeypatch.delitem(sys.modules, name, raising=False)
    script = torch.jit.script
    import_unscripted(AutoConfig.for_model(model_type))
    assert torch.jit.script is script
    compiled = [f for f in vars(sys.modules[name]).values() if isinstance(f, torch.jit.ScriptFunction)]
    assert not compiled


def test_what_is_imported_already_stays(monkeypatch):
    name = SCRIPTED["deberta-v2"]
    module = import_module(name)
    import_unscripted(AutoConfig.for_model("deberta-v2"))
    assert sys.modules[name] is module


def test_a_module_that_cannot_be_imported_leaves_the_compiler_as_it_was(monkeypatch):
    monkeypatch.setitem(SCRIPTED, "deberta", "transformers.models.nowhere")
    script = torch.jit.script
    with pytest.raises(ImportError):
        import_unscripted(AutoConfig.for_model("deberta"))
    assert torch.jit.script is script
