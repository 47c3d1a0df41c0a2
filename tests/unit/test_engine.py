"""An optimiser step is defined by its examples: how it is cut must change nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from snugtune.config import make_config
from snugtune.errors import TrainingError
from snugtune.memory.guard import Guard, HostMemory
from snugtune.memory.meter import PeakMeter
from snugtune.model.adapter import on_trained, trainable_state, wrap
from snugtune.progress import Observer
from snugtune.train.checkpoints import Checkpoints
from snugtune.train.engine import Services, train
from snugtune.train.keeper import BestKeeper
from snugtune.units import GIB
from tiny_training import (  # noqa: F401 - a fixture
    CPU,
    examples,
    loss_scaler,
    tiny_model,
    train_tiny,
)


def run(**settings):
    settings = {"num_train_epochs": 2, "early_stopping_patience": 9, **settings}
    result, model = train_tiny(settings, rows=90, held_out=40)
    return result, trainable_state(model)


@pytest.mark.parametrize("budget", [16, 100, 333])
def test_the_cut_changes_neither_losses_nor_weights(budget):
    whole, whole_state = run(tokens_per_micro_batch=100_000)
    cut, cut_state = run(tokens_per_micro_batch=budget)
    losses = [[m["loss"] for m in r.metrics if "loss" in m] for r in (whole, cut)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-6)
    for name, tensor in whole_state.items():
        torch.testing.assert_close(cut_state[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_one_process_trains_in_one_precision_after_another():
    losses = []
    for dtype in (torch.bfloat16, torch.float32):
        result, _ = train_tiny({"num_train_epochs": 1}, held_out=8, dtype=dtype)
        losses.append(result.metrics[1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_accumulation_settings_mean_what_they_say():
    one, _ = run(effective_batch_size=16)
    two, _ = run(per_device_train_batch_size=2, gradient_accumulation_steps=8)
    first, second = (next(m["loss"] for m in r.metrics if "loss" in m) for r in (one, two))
    assert first == pytest.approx(second, abs=1e-6)
    assert one.steps == two.steps


def test_it_learns_and_keeps_the_best_weights():
    result, _ = run(num_train_epochs=12, learning_rate=5e-3, head_learning_rate=5e-3, effective_batch_size=8)
    scores = [m["eval_score"] for m in result.metrics if "eval_score" in m]
    assert result.best_score == max(scores)
    assert result.best_score > scores[0] + 0.3


def test_only_adapter_and_head_are_trained_in_float32():
    model = wrap(tiny_model().to(torch.bfloat16), make_config({"train": "x"}))
    trained = {n: p.dtype for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in n or "classifier" in n or "pooler" in n for n in trained)
    assert set(trained.values()) == {torch.float32}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}


def test_a_loss_that_is_not_finite_stops_with_step_and_rows():
    plain = tiny_model()
    with torch.no_grad():
        plain.classifier.weight.fill_(float("nan"))
    config = make_config({"train": "x"})
    model = wrap(plain, config)
    with pytest.raises(TrainingError, match=r"step 1 \(rows .* of the training table\)"):
        train(
            model, examples(20, 1), examples(8, 2), config,
            head_names=("pooler", "classifier"), pad_token_id=0, dtype=torch.float32, device=CPU,
        )  # fmt: skip


def test_patience_counts_from_the_best_trained_score_not_from_the_start():
    keeper = BestKeeper(tiny_model(), patience=2, guard=Guard(HostMemory()))
    for step, score in enumerate([0.9, 0.5, 0.6, 0.7]):
        keeper.offer(score, 1.0, step)
        assert not keeper.exhausted
    assert (keeper.score, keeper.step) == (0.9, 0)
    keeper.offer(0.7, 1.0, 4)
    assert not keeper.exhausted
    keeper.offer(0.65, 1.0, 5)
    assert keeper.exhausted


class _EveryStep(Checkpoints):
    """Commits after each step, and ends the process, so to say, after ``die_after`` of them."""

    def __init__(self, folder, die_after=None):
        super().__init__(folder, fingerprint="same", interval_s=0)
        self.die_after = die_after

    def due(self):
        return True

    def commit_behind(self, state, copy_s=0.0):
        super().commit_behind(state, copy_s)
        if state.step == self.die_after:
            self.finished(wait=True)
            raise SystemError("killed")


@pytest.mark.usefixtures("loss_scaler")
@pytest.mark.parametrize("die_after", [1, 4, 7, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_run_that_died_goes_on_to_the_same_bits(tmp_path, die_after, dtype):
    settings = {"num_train_epochs": 3, "effective_batch_size": 8, "lora_dropout": 0.1}
    straight, straight_state = _trained_with(None, settings, dtype)
    with pytest.raises(SystemError, match="killed"):
        _trained_with(_EveryStep(tmp_path, die_after), settings, dtype)
    resumed, resumed_state = _trained_with(_EveryStep(tmp_path), settings, dtype)
    assert resumed.steps == straight.steps == 12
    assert [_untimed(m) for m in resumed.metrics] == [_untimed(m) for m in straight.metrics]
    for name, tensor in straight_state.items():
        assert torch.equal(resumed_state[name], tensor), name


@pytest.mark.parametrize(
    ("line", "counts"),
    [({"allocated_gib": 99.0, "reserved_gib": 99.0}, False), ({"resident_gib": 99.0}, True)],
)
def test_a_peak_of_another_device_is_not_this_ones(tmp_path, line, counts):
    """A run may have come from a card, or go back to one."""
    settings = {"num_train_epochs": 1, "effective_batch_size": 8}
    with pytest.raises(SystemError, match="killed"):
        _trained_with(_EveryStep(tmp_path, 2), settings, torch.float32)
    states = Checkpoints(tmp_path, fingerprint="same")
    told = {"step": 1, "elapsed_s": 1.0, **line, "peak_gib": 99.0}
    assert states.commit(replace(states.newest(), memory=[told])) is None
    with PeakMeter(CPU) as meter:
        services = Services(checkpoints=_EveryStep(tmp_path), meter=meter)
        train_tiny(settings, services=lambda _: services)
    assert (meter.peak_bytes >= 99 * GIB) is counts
    assert meter.is_of_this_process is not counts


def _trained_with(checkpoints, settings, dtype):
    services = Services(checkpoints=checkpoints)
    result, model = train_tiny(settings, dtype=dtype, dropout=0.2, services=lambda _: services)
    return result, trainable_state(model)


def test_ctrl_c_commits_nothing_that_may_be_half_done(tmp_path):
    checkpoints = _EveryStep(tmp_path)
    services = Services(observer=_CtrlC(at_step=2), checkpoints=checkpoints)
    result, _ = train_tiny({"effective_batch_size": 8}, services=lambda _: services)
    assert result.interrupted
    assert checkpoints.newest().step == 1


class _CtrlC(Observer):
    def __init__(self, at_step):
        self.at_step = at_step

    def on_step(self, info):
        if info.step == self.at_step:
            raise KeyboardInterrupt


def _untimed(row):
    return {key: value for key, value in row.items() if key != "elapsed_s"}


def test_training_begins_from_what_is_given_once_the_start_is_scored():
    begin = {"classifier.weight": torch.zeros(4, 32), "classifier.bias": torch.tensor([0, 9.0, 0, 0])}
    seen = []
    settings = {"num_train_epochs": 1, "learning_rate": 1e-9, "head_learning_rate": 1e-9}
    services = Services(observer=_Scores(seen))
    result, _ = train_tiny(settings, held_out=40, head=begin, services=lambda _: services)
    always_second = float((examples(40, 2).y == 1).mean())
    assert seen[0] != always_second
    assert seen[1] == pytest.approx(always_second)
    assert result.best_score == max(seen)


class _Scores(Observer):
    def __init__(self, seen):
        self.seen = seen

    def on_validation(self, info):
        self.seen.append(info.score)


@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_tensors_of_the_plain_model_are_found_in_the_one_that_trains(method):
    plain = tiny_model()
    head = {n: p.detach().clone() for n, p in plain.named_parameters() if "classifier" in n}
    model = wrap(plain, make_config({"train": "x", "method": method}))
    found = on_trained(model, head)
    assert len(found) == 2
    assert found.keys() <= trainable_state(model).keys()
