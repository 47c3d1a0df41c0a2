"""Model code is imported as Python, whatever the version of Transformers compiles."""

import sys
from importlib import import_module
from types import FunctionType

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


def test_functions_of_an_earlier_transformers_stay_plain(tmp_path, monkeypatch):
    (tmp_path / "scripted.py").write_text("import torch\n@torch.jit.script\ndef add(x):\n    return x + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SCRIPTED, "deberta", "scripted")
    monkeypatch.delitem(sys.modules, "scripted", raising=False)
    import_unscripted(AutoConfig.for_model("deberta"))
    assert isinstance(sys.modules.pop("scripted").add, FunctionType)


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
