"""A step asks the device for work and never waits for it; its numbers come one step later."""

import math
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.masking_utils import sdpa_mask

from snugtune.config import make_config
from snugtune.model import attention
from snugtune.progress import Observer
from snugtune.train import engine
from snugtune.train.checkpoints import Checkpoints
from snugtune.train.engine import Services
from snugtune.train.optim import make_optimizer
from snugtune.train.readback import Readback
from tiny_training import tiny_model, train_tiny

aten = torch.ops.aten
WAITING_OPERATORS = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select,
    aten._unique2, aten.unique_dim,
}  # fmt: skip
"""Operators whose result, or its shape, is a number that the host must know."""

WAITING_METHODS = {
    Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__bool__, Tensor.__float__, Tensor.__int__,
    Tensor.__index__,
}  # fmt: skip
"""What reads values without an operator, where the tensor lies on the host already."""


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        looks_at_mask = func.overloadpacket is aten.index and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        waits = looks_at_mask or func.overloadpacket in WAITING_OPERATORS
        assert not waits, f"{func} waits"
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in WAITING_METHODS, f"{func} waits"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting():
    with _Methods(), _Operators():
        yield


def inside(context, method):
    def run(*args, **options):
        with context():
            return method(*args, **options)

    return run


@pytest.fixture
def _mask_as_on_a_gpu(monkeypatch):
    def always(*args, **options):
        return sdpa_mask(
            *args, **options | {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        )

    with monkeypatch.context() as patched:
        patched.setattr(attention, "mask", always)
        yield
    attention.register()


@pytest.fixture
def course(monkeypatch, _mask_as_on_a_gpu):
    """What happens in the loop of steps, which waits for nothing but a step's numbers, in order."""
    course = []
    step, read = engine._Run.optimizer_step, Readback.read

    def numbered(run, rows):
        course.append(f"step {run.result.steps + 1}")
        return step(run, rows)

    def reading(self):
        course.append("read")
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
            return read(self)

    monkeypatch.setattr(engine._Run, "optimizer_step", inside(no_waiting, numbered))
    monkeypatch.setattr(engine._Run, "report", inside(no_waiting, engine._Run.report))
    monkeypatch.setattr(Readback, "read", reading)
    return course


class _Course(Observer):
    def __init__(self, course):
        self.course = course

    def on_step(self, info):
        self.course.append(f"told of {info.step}")

    def on_validation(self, info):
        self.course.append("validation")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_waits_for_nothing_and_is_told_of_while_the_next_one_runs(course, dtype):
    settings = {"num_train_epochs": 1, "effective_batch_size": 12, "tokens_per_micro_batch": 100}
    train_tiny(settings, dtype=dtype, dropout=0.1, services=lambda _: Services(_Course(course)))
    assert course == [
        "validation", "step 1", "step 2", "read", "told of 1", "step 3", "read", "told of 2",
        "read", "told of 3", "validation",
    ]  # fmt: skip


def test_the_test_sees_what_waits():
    values = torch.arange(3.0)
    waiting = [
        values.sum().item, values.tolist, lambda: bool(values.any()), lambda: values[values > 1],
        values.nonzero, values.numpy,
    ]  # fmt: skip
    for wait in waiting:
        with pytest.raises(AssertionError, match="waits"), no_waiting():
            wait()


class _EveryStep(Checkpoints):
    def due(self):
        return True


@pytest.fixture
def _third_loss_is_nan(monkeypatch):
    calls, add_gradients = [], engine.add_gradients

    def broken(*args, **kwargs):
        calls.append(args)
        part = add_gradients(*args, **kwargs)
        return part * math.nan if len(calls) == 1 + 3 else part  # the first call is the longest, for nothing

    monkeypatch.setattr(engine, "add_gradients", broken)


@pytest.mark.usefixtures("_third_loss_is_nan")
@pytest.mark.parametrize("commits", [True, False])
def test_a_loss_that_is_not_finite_is_found_before_anything_rests_on_it(tmp_path, commits):
    course = []
    checkpoints = _EveryStep(tmp_path, fingerprint="", interval_s=0) if commits else None
    services = Services(_Course(course), checkpoints=checkpoints)
    result, _ = train_tiny({"effective_batch_size": 8, "num_train_epochs": 1}, services=lambda _: services)
    good = 2 if commits else 0
    told = [f"told of {step}" for step in (1, 2, *range(good + 1, 5))]
    assert course == ["validation", *told, "validation"]
    assert [m["step"] for m in result.metrics] == [0, 1, 2, 3, 4, 4]
    assert [(one["step"], one["to_step"]) for one in result.rollbacks] == [(3, good)]


def test_the_last_step_is_told_of_after_ctrl_c():
    class CtrlC(_Course):
        def on_step(self, info):
            super().on_step(info)
            if info.step == 2:
                raise KeyboardInterrupt

    course = []
    result, _ = train_tiny({"effective_batch_size": 8}, services=lambda _: Services(CtrlC(course)))
    assert result.interrupted
    assert course == ["validation", "told of 1", "told of 2", "told of 3"]
    assert [m["step"] for m in result.metrics if "loss" in m] == [1, 2, 3]


def test_the_optimiser_is_the_one_that_reads_nothing_back():
    optimizer = make_optimizer(tiny_model(), make_config({"train": "x", "method": "full"}), ("classifier",))
    assert optimizer.param_groups[0]["fused"] is True
    assert optimizer._step_supports_amp_scaling
