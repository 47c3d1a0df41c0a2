"""Several processes make the step of one: shares of its rows, one sum of gradients, one update."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import HashStore

from groups import run_group
from snugtune.config import make_config
from snugtune.data.batches import shares
from snugtune.errors import RestartNeededError, TrainingError, UserInputError
from snugtune.memory.guard import Guard, HostMemory
from snugtune.model import sharding
from snugtune.model.adapter import trainable_state, wrap
from snugtune.model.sharding import check_sharded, shard
from snugtune.scale.launch import is_first, may_start_again, size_of_group
from snugtune.scale.meeting import meet
from snugtune.train import engine
from snugtune.train.group import ALONE, GradientSum, check_same
from snugtune.train.recovery import differences
from tiny_training import tiny_model, train_tiny

SETTINGS = {
    "num_train_epochs": 2, "early_stopping_patience": 9, "effective_batch_size": 8, "weight_decay": 0.1,
    "tokens_per_micro_batch": 64,
}  # fmt: skip


@given(lengths=st.lists(st.integers(1, 60), max_size=40), processes=st.integers(1, 6))
def test_shares_are_all_rows_once_and_about_as_long(lengths, processes):
    of_rows = np.array(lengths, dtype=np.int64)
    dealt = shares(np.arange(len(lengths)), of_rows, processes)
    assert len(dealt) == processes
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(lengths)))
    for share in dealt:
        assert of_rows[share].sum() <= of_rows.sum() / processes + of_rows.max(initial=0)
        assert (np.diff(of_rows[share]) >= 0).all()


def trained(group, settings, rows=45):
    """Losses, gradient norms' consequences and weights, as what can be sent."""
    result, model = train_tiny(settings, rows=rows, held_out=20, group=group)
    weights = {name: tensor.numpy() for name, tensor in trainable_state(model).items()}
    lines = [{k: v for k, v in line.items() if k != "elapsed_s"} for line in result.metrics]
    return lines, weights


def assert_close(one, other):
    lines, weights = one
    for line, same in zip(lines, other[0], strict=True):
        assert line == pytest.approx(same, rel=1e-5, abs=1e-6)
    for name, tensor in weights.items():
        np.testing.assert_allclose(other[1][name], tensor, rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_train_as_one_does(sharded):
    first, second = run_group(2, trained, SETTINGS, sharded=sharded)
    assert_close(trained(ALONE, SETTINGS), first)
    assert first[0] == second[0]
    assert all(np.array_equal(tensor, second[1][name]) for name, tensor in first[1].items())


def _exchange(group):
    found = {
        "any": group.any(group.rank == 1, False),
        "most": group.most(10 + group.rank), "least": group.least(10 + group.rank),
        "known": group.known_everywhere(np.array([True, group.rank == 0])).tolist(),
        "sum": group.add_up(torch.tensor([1.0, group.rank])).tolist(),
        "first": group.from_first({"of": group.rank, "text": "é"}),
    }  # fmt: skip
    tensors = {
        "a": torch.full((2, 2), float(group.rank)),
        "none": torch.zeros(0),
        "b": torch.tensor(group.rank),
    }
    received = group.tensors_from_first(tensors if group.rank == 0 else {})
    found["tensors"] = {name: tensor.tolist() for name, tensor in received.items()}
    try:
        check_same(group, {"data": group.rank}, differences)
    except TrainingError as error:
        found["same"] = str(error)
    return found


def _sum_of_gradients(group):
    """Of three parameters: the second has a gradient in one process only, the third in none."""
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.tensor([1.0, group.rank])
    if group.rank == 1:
        parameters[1].grad = torch.ones(2)
    added = GradientSum(group, parameters)
    added.complete()
    added.fill()
    added.add_up()
    return [None if p.grad is None else p.grad.tolist() for p in parameters]


def _both(group):
    return _exchange(group), _sum_of_gradients(group)


def test_what_processes_exchange():
    for found, gradients in run_group(2, _both):
        same = found.pop("same")
        assert found == {
            "any": (True, False), "most": 11, "least": 10, "known": [True, False], "sum": [2.0, 1.0],
            "first": {"of": 0, "text": "é"}, "tensors": {"a": [[0.0, 0.0]] * 2, "none": [], "b": 0},
        }  # fmt: skip
        assert "Process 1 does not train on the same as the first one (data are others)" in same
        assert gradients == [[2.0, 1.0], [1.0, 1.0], None]


def test_one_process_exchanges_nothing():
    assert ALONE.any(True, False) == (True, False)
    assert ALONE.most(3) == ALONE.least(3) == 3
    assert ALONE.from_first({"a": 1}) == {"a": 1}
    check_same(ALONE, {"data": 1}, differences)


def test_weights_that_stay_whole_are_told(monkeypatch):
    model = wrap(tiny_model(), make_config({"train": "x"}))
    with pytest.raises(TrainingError, match="is whole on each of them"):
        check_sharded(model)

    def in_silence(*_, **__):
        """As libraries do where they find no accelerator."""

    monkeypatch.setattr(sharding, "fully_shard", in_silence)
    with pytest.raises(TrainingError, match="--sharding none"):
        shard(model, None)


def test_a_layer_that_is_computed_by_all_is_not_tried_again_by_one():
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RestartNeededError, match="computed one layer together"):
        Guard(HostMemory(), alone=False).again(fail, during="a test")


def test_a_launcher_is_known_by_what_it_sets(monkeypatch):
    whole = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert size_of_group({}) == size_of_group({"WORLD_SIZE": "1"}) == 1
    assert size_of_group(whole) == 2
    with pytest.raises(UserInputError, match="MASTER_PORT is not set"):
        size_of_group({name: value for name, value in whole.items() if name != "MASTER_PORT"})
    with pytest.raises(UserInputError, match="no number"):
        size_of_group({"WORLD_SIZE": "two"})
    assert is_first()
    for name, value in whole.items():
        monkeypatch.setenv(name, value)
    assert not is_first()


def test_what_is_started_again():
    assert may_start_again(-signal.SIGKILL)
    assert may_start_again(RestartNeededError.exit_code)
    assert not any(map(may_start_again, (0, 1, 2, -signal.SIGINT, -signal.SIGTERM)))


def _lost(group):
    if group.rank == 1:
        os._exit(0)
    time.sleep(0.5)
    from snugtune.scale.distributed import _is_of_lost_process

    try:
        for _ in range(3):
            group.any(True)
    except RuntimeError as error:
        return _is_of_lost_process(error)


def test_a_lost_process_is_recognised():
    with pytest.raises(AssertionError, match="process 1 died") as failed:
        run_group(2, _lost)
    assert "process 0" not in str(failed.value)


def _short_of_memory(group, settings):
    """As ``trained``, but for the first process every micro-batch of more than two rows is too large."""
    plain = engine.add_gradients

    def add_gradients(model, batch, *rest, **more):
        if group.rank == 0 and len(batch.target) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(model, batch, *rest, **more)

    engine.add_gradients = add_gradients
    guard = Guard(HostMemory())
    result, model = train_tiny(
        settings, rows=45, held_out=20, group=group, services=lambda _: engine.Services(guard=guard)
    )
    weights = {name: tensor.numpy() for name, tensor in trainable_state(model).items()}
    return [line["loss"] for line in result.metrics if "loss" in line], weights, len(guard.events)


def test_one_of_two_processes_that_is_short_of_memory_changes_nothing():
    settings = SETTINGS | {"num_train_epochs": 1, "tokens_per_micro_batch": 2048}
    (losses, weights, failures), (_, others, none) = run_group(2, _short_of_memory, settings)
    assert failures > 0
    assert none == 0
    lines, expected = trained(ALONE, settings)
    assert losses == pytest.approx([line["loss"] for line in lines if "loss" in line], rel=1e-5)
    for name, tensor in expected.items():
        np.testing.assert_allclose(weights[name], tensor, rtol=1e-5, atol=2e-6, err_msg=name)
        np.testing.assert_array_equal(weights[name], others[name], err_msg=name)


def _interrupted(group):
    """Ctrl-C reaches the second process in the middle of the third step."""
    plain = engine._Run._accumulate

    def accumulate(run, texts, parts):
        if run.group.rank == 1 and run.result.steps == 2:
            signal.raise_signal(signal.SIGINT)
        return plain(run, texts, parts)

    engine._Run._accumulate = accumulate
    signal.signal(signal.SIGINT, signal.default_int_handler)
    result, _ = train_tiny(SETTINGS, rows=45, held_out=20, group=group)
    return result.interrupted, result.steps


@pytest.mark.parametrize("sharded", [False, True])
def test_an_interrupt_of_one_ends_all_after_the_same_step(sharded):
    assert run_group(2, _interrupted, sharded=sharded) == [(True, 3), (True, 3)]


def test_processes_meet_where_dead_ones_have_met():
    store = HashStore()
    for rank in (1, 2):
        store.set(f"hello/{rank}", "of a dead one")

    def late(rank):
        time.sleep(0.1 * rank)
        return meet(store, rank, 3, 20)

    with ThreadPoolExecutor(3) as threads:
        first = set(threads.map(late, range(3)))
        second = set(threads.map(late, range(3)))
    assert len(first) == len(second) == 1
    assert first != second
    with pytest.raises(TrainingError, match="1 of 2 processes have not come"):
        meet(HashStore(), 0, 2, 0.1)
    with pytest.raises(TrainingError, match="The first process has not come"):
        meet(HashStore(), 1, 2, 0.1)
