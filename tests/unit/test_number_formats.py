"""In which number format a process goes on after another, and what is planned for then."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from snugtune.config import make_config
from snugtune.model.precision import compute_dtype
from snugtune.progress import Observer
from snugtune.stages import agreeing
from snugtune.stages.job import _other_format
from snugtune.train.group import ALONE
from snugtune.train.recovery import ON_CPU, Recovery

V100 = (7, 0)


@pytest.mark.parametrize(
    ("recovery", "expected"),
    [
        (None, torch.float16),
        (Recovery(Path("a")), torch.float16),
        (Recovery(Path("a"), float32=True), torch.float32),
    ],
)
def test_float32_takes_the_place_of_a_float16_that_nobody_asked_for(monkeypatch, recovery, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: V100)
    config = make_config({"train": "x"}).model_copy(update=_other_format(recovery))
    assert compute_dtype(config, torch.device("cuda")) == expected


def test_on_the_cpu_nothing_is_computed_in_float16():
    recovery = Recovery(Path("a"), caution=ON_CPU)
    config = make_config({"train": "x", "fp16": True}).model_copy(update=_other_format(recovery))
    assert compute_dtype(config, torch.device("cpu")) != torch.float16


class _Told(Observer):
    def __init__(self):
        self.plans = []

    def on_plan(self, info):
        self.plans.append(info)


@pytest.mark.parametrize(("dtype", "bf16"), [(torch.float16, None), (torch.float32, False)])
def test_a_plan_is_for_the_format_that_is_computed_in(monkeypatch, dtype, bf16):
    asked = []
    plan = SimpleNamespace(
        predicted_peak_gib=3.5, capacity_gib=14.5, tokens_per_micro_batch=512, levers=(), basis="estimated",
        fits=True,
    )  # fmt: skip
    monkeypatch.setattr(agreeing, "plan_run", lambda config, *_: asked.append(config) or plan)
    monkeypatch.setattr(agreeing, "_device", lambda _job: None)
    monkeypatch.setattr(agreeing, "_of_first", lambda _job, plan: plan)
    told = _Told()
    job = SimpleNamespace(
        config=make_config({"train": "x"}), backbone=SimpleNamespace(source="folder"), on_card=True,
        dtype=dtype, data=SimpleNamespace(labels=SimpleNamespace(names=["a", "b"])), clock=told, group=ALONE,
    )  # fmt: skip
    assert agreeing._plan(job, SimpleNamespace(lengths=[3])) is plan
    assert asked[0].bf16 is bf16
    assert asked[0].model == "folder"
    assert [(info.peak_gib, info.capacity_gib, info.fits) for info in told.plans] == [(3.5, 14.5, True)]
