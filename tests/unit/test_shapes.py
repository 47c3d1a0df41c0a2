"""The short way of fake tensors makes the trace that PyTorch's own fake mode makes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from families import FAMILIES, write_family
from snugtune.config import make_config
from snugtune.memory import shapes
from snugtune.memory.setup import Setup
from snugtune.memory.shapes import Shapes
from snugtune.train import rehearsal
from snugtune.train.rehearsal import Rehearsal

CARD = Setup()
SETUPS = {
    "card": CARD,
    "checkpointed": replace(
        CARD, activation_checkpointing=1, embedding_on_host=True, chunked_evaluation=True
    ),
    "bfloat16": replace(CARD, weights="bfloat16", compute="bfloat16"),
    "cpu": Setup("cpu", "float32", "float32"),
    "cpu, bfloat16": Setup("cpu", "bfloat16", "bfloat16"),
}


def test_what_is_plain_takes_the_short_way(monkeypatch):
    asked = []
    usual = FakeTensorMode.__torch_dispatch__
    monkeypatch.setattr(
        FakeTensorMode, "__torch_dispatch__",
        lambda self, func, *rest: (asked.append(func), usual(self, func, *rest))[1],
    )  # fmt: skip
    with Shapes():
        a = torch.empty(2, 3)
        asked.clear()
        out = (a @ a.t() * 2).view(4).unsqueeze_(0)
    assert isinstance(out, FakeTensor)
    assert out.shape == (1, 4)
    assert set(asked) - {torch.ops.prim.device.default} == {torch.ops.aten.unsqueeze_.default}


@pytest.mark.parametrize(
    ("others", "is_alike"),
    [
        (lambda a: [2.5], True),
        (lambda a: [a.clone()], True),
        (lambda a: [2j], False),
        (lambda a: [a.half()], False),
        (lambda a: [a[:, :1]], False),
        (lambda a: [a.t()], False),
    ],
)
def test_only_tensors_of_one_kind_make_another_of_it(others, is_alike):
    with Shapes():
        a = torch.empty(3, 3)
        assert shapes._are_alike([a, *others(a)]) is is_alike
        assert not shapes._are_alike([a.t(), 2])
        assert not shapes._are_alike([torch.empty(3, dtype=torch.int64), 2.5])


@pytest.mark.parametrize("family", FAMILIES)
def test_traces_are_those_of_the_usual_mode(family, tmp_path, monkeypatch):
    model = str(write_family(tmp_path, family))
    method = "full" if family in ("bert", "qwen3") else "lora"
    config = make_config({"train": "", "model": model, "method": method, "hidden_dropout": 0.1})
    names = ("card", "checkpointed") if family in ("gpt2", "albert", "mpnet") else SETUPS
    changes = {"weights": "float32", "embedding_on_host": False} if method == "full" else {}
    for setup in (replace(SETUPS[name], **changes) for name in names):
        found = Rehearsal(config, 3, setup).trace(2, 32, work=True)
        with monkeypatch.context() as context:
            context.setattr(rehearsal, "Shapes", FakeTensorMode)
            usual = Rehearsal(config, 3, setup).trace(2, 32, work=True)
        assert found.storages == usual.storages
        assert in_order(found.events) == in_order(usual.events)
        for name in ("flops", "n_bytes", "phase", "square_flops", "square_n_bytes"):
            assert np.array_equal(getattr(found.work, name), getattr(usual.work, name))


def in_order(events):
    """``events`` with what is freed at once in one order: autocast's copies go in that of their addresses."""
    ordered, freed = [], []
    for event in events.tolist():
        if event < 0:
            freed.append(event)
            continue
        ordered += [*sorted(freed), event]
        freed.clear()
    return [*ordered, *sorted(freed)]
