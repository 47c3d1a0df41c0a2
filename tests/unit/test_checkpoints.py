"""A committed state comes back bit for bit, or not at all."""

import errno
import json
import math
import os
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snugtune.errors import UserInputError
from snugtune.train import checkpoints as module
from snugtune.train.checkpoints import Checkpoints, TrainState, decode, encode
from snugtune.train.recovery import (
    Committed,
    Recovery,
    commit_number,
    committed_folders,
    fingerprint_of,
    newest_committed,
    states_folder,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []


def same(a, b):
    """Equal in type, order and every bit; NaN equals the same NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    return a == b


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    raw = draw(st.binary(min_size=8 * math.prod(shape), max_size=8 * math.prod(shape)))
    words = torch.frombuffer(bytearray(raw), dtype=torch.int64) if raw else torch.zeros(0, dtype=torch.int64)
    dtype = draw(st.sampled_from(DTYPES))
    if dtype == torch.bool:
        return (words % 2 == 0).reshape(shape)
    return words.view(dtype)[: math.prod(shape)].reshape(shape)


keys = st.one_of(st.text(max_size=5), st.integers(), st.sampled_from(["$tensor", "$float", "$dict"]))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
nested = st.recursive(
    scalars | tensors(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=20,
)


OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []}


def state_of(step=7, **changes):
    return replace(
        TrainState(
            step=step, weights={"a": torch.arange(6.0).reshape(2, 3)}, optimizer=OPTIMIZER, scheduler={},
            scaler={}, rng={"cpu": torch.get_rng_state()}, best={"score": -math.inf}, best_weights={},
            metrics=[], elapsed_s=1.5, limits={"training": 4096},
        ),
        **changes,
    )  # fmt: skip


def same_state(a, b):
    return same(vars(a), vars(b))


@pytest.fixture
def states(tmp_path):
    return Checkpoints(tmp_path / ".run.states", fingerprint="of this run")


@settings(max_examples=60, deadline=None)
@given(nested)
def test_any_value_goes_through_json_and_back(value):
    plain, found = encode(value)
    assert same(decode(json.loads(json.dumps(plain, allow_nan=False)), found), value)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(keys, nested, max_size=3), st.dictionaries(st.text(max_size=4), tensors(), max_size=4))
def test_any_state_comes_back_bit_for_bit(states, optimizer, weights):
    state = state_of(optimizer=OPTIMIZER | optimizer, weights=weights, best_weights=weights)
    assert states.commit(state) is None
    assert same_state(states.newest(), state)


def trained(steps, optimizer, scheduler, parameters):
    for step in range(steps):
        sum(((p - step) ** 2).sum() for p in parameters).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in parameters]


def fresh():
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(4))]
    optimizer = torch.optim.AdamW([{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:]}])
    return parameters, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def test_an_optimiser_goes_on_from_it_as_if_nothing_had_happened(states):
    parameters, optimizer, scheduler = fresh()
    trained(3, optimizer, scheduler, parameters)
    at_three = {str(i): p.detach() for i, p in enumerate(parameters)}
    states.commit(
        state_of(weights=at_three, optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict())
    )
    expected = trained(3, optimizer, scheduler, parameters)

    parameters, optimizer, scheduler = fresh()
    state = states.newest()
    for i, parameter in enumerate(parameters):
        parameter.data.copy_(state.weights[str(i)])
    optimizer.load_state_dict(state.optimizer)
    scheduler.load_state_dict(state.scheduler)
    assert same(trained(3, optimizer, scheduler, parameters), expected)


def test_tensors_that_share_memory(states):
    whole = torch.arange(12.0).reshape(3, 4)
    weights = {"whole": whole, "again": whole, "row": whole[1], "columns": whole[:, 1:3], "turned": whole.T}
    weights["trained"] = torch.nn.Parameter(torch.ones(2))
    states.commit(state_of(weights=weights))
    found = states.newest().weights
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    found["whole"].zero_()
    assert found["again"].sum() == whole.sum()


def test_values_of_another_kind_are_a_fault_of_the_program(states):
    with pytest.raises(TypeError, match="cannot hold a set"):
        states.commit(state_of(best={"what": {1, 2}}))
    assert states.newest() is None


def test_the_newest_two_are_kept(states):
    for step in (10, 20, 15):
        assert states.commit(state_of(step)) is None
    assert [folder.name for folder in committed_folders(states.folder)] == [
        "000003-step-15",
        "000002-step-20",
    ]
    assert states.newest().step == 15
    assert newest_committed(states.folder) == Committed(15, "of this run")


def damage(folder, how):
    path = folder / how.split()[-1]
    if how.startswith("missing"):
        path.unlink()
    elif how.startswith("truncated"):
        os.truncate(path, path.stat().st_size // 2)
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["truncated", "missing", "a bit flipped in"])
def test_a_damaged_one_is_passed_over(states, how, file):
    good = state_of(10)
    states.commit(good)
    states.commit(state_of(20))
    damage(committed_folders(states.folder)[0], f"{how} {file}")
    assert same_state(states.newest(), good)
    assert len(states.skipped) == 1
    assert states.skipped[0].startswith("000002-step-20 is not used: ")
    assert states.commit(state_of(30)) is None
    assert states.newest().step == 30
    assert states.skipped == []


def test_one_of_other_settings_is_never_taken(states):
    states.commit(state_of())
    other = Checkpoints(states.folder, fingerprint="of another")
    assert other.newest() is None
    assert "other settings or other data" in other.skipped[0]


def test_what_else_lies_there_is_no_state(states):
    assert states.newest() is None
    assert newest_committed(states.folder) is None
    states.commit(state_of())
    (states.folder / ".000009").mkdir()
    (states.folder / "notes.txt").write_text("mine")
    assert states.newest().step == 7
    assert commit_number(states.folder / "notes.txt") == 0
    states.commit(state_of(8))
    assert not (states.folder / ".000009").exists()
    assert (states.folder / "notes.txt").exists()


def disk_full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("moment", ["save_file", "flush", "_flushed", "flush_folder"])
def test_a_disk_that_fills_up_costs_this_state_only(states, monkeypatch, moment):
    states.commit(state_of(10))
    with monkeypatch.context() as patch:
        patch.setattr(module, moment, disk_full)
        warning = states.commit(state_of(20))
    assert warning == (
        "The training state of step 20 could not be saved (No space left on device); training goes on, and "
        "should it break off, it starts again from step 10."
    )
    assert [folder.name for folder in states.folder.iterdir()] == ["000001-step-10"]
    assert states.commit(state_of(30)) is None


def test_room_is_looked_for_first_and_made_from_the_older_one(states, monkeypatch):
    states.commit(state_of(10))
    states.commit(state_of(20))
    asked = []

    def nearly_full(folder, needed):
        asked.append(needed)
        if len(committed_folders(folder)) > 1:
            raise UserInputError("The disk has 1 MiB free and the run needs about 2 MiB; free some.")

    monkeypatch.setattr(module, "check_free_space", nearly_full)
    assert states.commit(state_of(30)) is None
    assert [folder.name for folder in committed_folders(states.folder)] == [
        "000003-step-30",
        "000002-step-20",
    ]
    assert len(asked) == 2
    monkeypatch.setattr(module, "check_free_space", disk_full)
    assert "from step 30" in states.commit(state_of(40))


def test_due_after_the_interval_and_after_what_commits_cost(tmp_path):
    now = 0.0
    states = Checkpoints(tmp_path, fingerprint="f", interval_s=30, clock=lambda: now)
    assert not states.due()
    now = 30.0
    assert states.due()
    assert states.commit(state_of()) is None
    assert not states.due()
    now = 59.9
    assert not states.due()
    now = 60.0
    assert states.due()

    ticks = iter([100.0, 104.0, 104.0])
    states._clock = lambda: next(ticks)
    states.commit(state_of())
    states._clock = lambda: now
    now = 503.0
    assert not states.due()
    now = 504.0
    assert states.due()


def test_fingerprints_know_content_and_not_order():
    assert fingerprint_of({"a": 1, "b": [2]}) == fingerprint_of({"b": [2], "a": 1})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})


def test_recovery_goes_to_another_process(tmp_path):
    recovery = Recovery(states_folder(tmp_path / "runs" / "a"), 2, 1, ("killed", "out of memory"))
    assert recovery.states == tmp_path / "runs" / ".a.states"
    assert Recovery.from_json(json.loads(json.dumps(recovery.to_json()))) == recovery
