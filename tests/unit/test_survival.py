"""Training survives numbers that are not finite, signals, clocks that jump, a disk that takes no state."""

import errno
import math
import os
import signal
import threading
import time

import pytest
import torch
from test_checkpoints import state_of

from snugtune.errors import NUMBERS, RestartNeededError, TrainingError
from snugtune.progress import Observer
from snugtune.train import checkpoints as checkpoints_module
from snugtune.train import engine
from snugtune.train.checkpoints import Checkpoints
from snugtune.train.engine import Services
from snugtune.train.interrupts import Interrupts
from snugtune.train.recovery import committed_folders, differences
from tiny_training import loss_scaler, train_tiny  # noqa: F401 - a fixture

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to speak of")
ONE_EPOCH = {"effective_batch_size": 8, "num_train_epochs": 1, "lr_scheduler_type": "constant"}


class Notes(Observer):
    def __init__(self):
        self.said, self.resumed = [], []

    def say(self, sentence):
        self.said.append(sentence)

    def on_resumed(self, info):
        self.resumed.append(info.step)


class Dying(Checkpoints):
    """Commits every step, and is killed when the step ``last`` is on the disk."""

    def __init__(self, folder, last):
        super().__init__(folder, fingerprint="a")
        self.last = last

    def due(self):
        return True

    def commit_behind(self, state, copy_s=0.0):
        super().commit_behind(state, copy_s)
        if state.step == self.last:
            self.finished(wait=True)
            raise SystemError("killed")


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard():
    """A shell that starts the tests in the background lets them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def faulty(monkeypatch):
    """Makes the loss (or the gradient) NaN at these calls; call 0 is the longest micro-batch, for nothing."""

    add_gradients = engine.add_gradients

    def make(calls, what="loss"):
        done = []

        def broken(model, *args, **kwargs):
            done.append(1)
            part = add_gradients(model, *args, **kwargs)
            if len(done) - 1 not in calls:
                return part
            if what == "gradient":
                next(p for p in model.parameters() if p.grad is not None).grad.fill_(math.nan)
                return part
            return part * math.nan

        monkeypatch.setattr(engine, "add_gradients", broken)

    return make


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_that_is_not_finite_sends_training_back_with_half_the_rates(faulty, what):
    faulty({3}, what)
    notes = Notes()
    result, model = train_tiny(ONE_EPOCH, services=lambda _: Services(notes))
    assert result.steps == 4
    assert not result.diverged
    rates = [line["learning_rate"] for line in result.metrics if "loss" in line]
    assert rates == [2.5e-4] * 4
    rows = result.rollbacks[0].pop("rows")
    assert len(rows) == 8
    assert result.rollbacks == [{"step": 3, "what": what, "to_step": 0, "learning_rate_factor": 0.5}]
    assert notes.resumed == [0]
    assert notes.said[0].startswith(f"The {what} is not finite at step 3 (rows ")
    assert notes.said[0].endswith("training goes back to step 0 and on with 0.5 of the learning rates.")
    assert all(p.isfinite().all() for p in model.parameters())


def test_numbers_that_stay_not_finite_end_training_with_the_best_weights(faulty):
    faulty(range(6, 100))  # from the second step of the second epoch on
    notes = Notes()
    result, model = train_tiny({**ONE_EPOCH, "num_train_epochs": 3}, services=lambda _: Services(notes))
    assert result.diverged
    assert [(one["step"], one["to_step"]) for one in result.rollbacks] == [(6, 4), (5, 4), (5, 4), (5, None)]
    assert [one.get("learning_rate_factor") for one in result.rollbacks] == [0.5, 0.25, 0.125, None]
    assert notes.said[-1].endswith(
        f"training ends with the best weights so far, those of step {result.best_step}."
    )
    assert all(p.isfinite().all() for p in model.parameters())


def test_without_anything_learned_it_is_an_error(faulty):
    faulty(range(1, 100))
    with pytest.raises(TrainingError, match=r"loss is not finite at step 1 \(rows .*\); lower the learning"):
        train_tiny({**ONE_EPOCH, "probe_start": False})


EIGHT_EPOCHS = {**ONE_EPOCH, "num_train_epochs": 8, "early_stopping_patience": 9}


def overflowing(result):
    return [line["step"] for line in result.metrics if line.get("skipped")]


@pytest.mark.usefixtures("loss_scaler")
def test_a_float16_gradient_that_never_fits_ends_training_once_no_scale_is_small_enough(faulty, tmp_path):
    """From 2**16 down to 2**-10; the weights are still those to go back to, so nothing is tried again."""
    faulty(range(5, 100), "gradient")
    notes, states = Notes(), Checkpoints(tmp_path, fingerprint="a", interval_s=0)
    result, model = train_tiny(
        EIGHT_EPOCHS, dtype=torch.float16, services=lambda _: Services(notes, checkpoints=states)
    )
    assert result.diverged
    assert overflowing(result) == list(range(5, 31))
    assert [(one["step"], one["what"], one["to_step"]) for one in result.rollbacks] == [
        (31, "gradient in float16", None)
    ]
    assert notes.said[-1].startswith("The gradient in float16 is not finite at step 31 (rows ")
    assert (
        "however small the loss is scaled; use bf16 or float32 instead of fp16: training ends"
        in notes.said[-1]
    )
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.usefixtures("loss_scaler")
def test_no_state_is_kept_of_steps_that_taught_nothing_and_float32_goes_on_before_them(faulty, tmp_path):
    faulty(range(5, 100), "gradient")
    states = Dying(tmp_path, last=-1)
    services = Services(checkpoints=states, float32_instead=True)
    with pytest.raises(RestartNeededError, match=r"float16 .* step 31 .*, however small") as caught:
        train_tiny(EIGHT_EPOCHS, dtype=torch.float16, services=lambda _: services)
    assert caught.value.kind == NUMBERS
    assert states.newest().step == 4
    faulty(())
    again = Services(checkpoints=Checkpoints(tmp_path, fingerprint="a"))
    result, _ = train_tiny(EIGHT_EPOCHS, services=lambda _: again)
    assert result.steps == 32
    assert overflowing(result) == []


@pytest.mark.usefixtures("loss_scaler")
def test_a_short_float16_training_without_a_single_step_is_told(faulty):
    faulty(range(1, 100), "gradient")
    notes = Notes()
    result, _ = train_tiny(ONE_EPOCH, dtype=torch.float16, services=lambda _: Services(notes))
    assert result.diverged
    assert result.best_step == 0
    assert notes.said[-1].startswith("The gradient in float16 is not finite at step 4")


@pytest.mark.usefixtures("loss_scaler")
def test_float16_gradients_that_overflow_now_and_then_are_skipped_as_ever(faulty):
    faulty({1, 2, 3, 9}, "gradient")
    result, _ = train_tiny(EIGHT_EPOCHS, dtype=torch.float16)
    assert not result.diverged
    assert result.rollbacks == []
    assert overflowing(result) == [1, 2, 3, 9]


@pytest.mark.usefixtures("loss_scaler")
def test_float16_gradients_that_overflow_after_good_steps_are_tried_with_lower_rates(faulty):
    """With states to go back to that are older than the first step that was skipped."""
    faulty(range(7, 34), "gradient")
    result, _ = train_tiny({**EIGHT_EPOCHS, "num_train_epochs": 12}, dtype=torch.float16)
    assert [(one["step"], one["to_step"]) for one in result.rollbacks] == [(33, 4)]
    assert not result.diverged
    assert result.steps > 33


def test_rates_stay_halved_in_a_process_that_goes_on(faulty, tmp_path):
    faulty({2})
    with pytest.raises(SystemError):
        train_tiny(ONE_EPOCH, services=lambda _: Services(checkpoints=Dying(tmp_path, 3)))
    result, _ = train_tiny(
        ONE_EPOCH, services=lambda _: Services(checkpoints=Checkpoints(tmp_path, fingerprint="a"))
    )
    rates = [line["learning_rate"] for line in result.metrics if "loss" in line]
    assert rates == [5e-4, 2.5e-4, 2.5e-4, 2.5e-4]
    assert len(result.rollbacks) == 1


@pytest.mark.parametrize("last", [3, 7, 11])
def test_ranks_of_adalora_go_on_to_the_same_bits(tmp_path, last):
    # Ranks are cut from the third to the twelfth step, at each of them.
    settings = {
        **ONE_EPOCH, "num_train_epochs": 4, "method": "adalora", "init_r": 4, "target_r": 1, "tinit": 2,
        "tfinal": 4, "deltaT": 1,
    }  # fmt: skip
    _, straight = train_tiny(settings)
    with pytest.raises(SystemError):
        train_tiny(settings, services=lambda _: Services(checkpoints=Dying(tmp_path, last)))
    _, resumed = train_tiny(
        settings, services=lambda _: Services(checkpoints=Checkpoints(tmp_path, fingerprint="a"))
    )
    trained = dict(resumed.named_parameters())
    assert all(torch.equal(trained[name], p) for name, p in straight.named_parameters())
    assert any((p == 0).any() for name, p in trained.items() if "lora_E" in name)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_a_whole_step_and_what_it_ended_goes_on_to_the_same_bits(
    tmp_path, number, monkeypatch
):
    settings = {**ONE_EPOCH, "lora_dropout": 0.1}
    straight, straight_model = train_tiny(settings, dropout=0.2)

    def told_to_stop(*_):
        raise SystemExit(143)

    if number == signal.SIGTERM:
        before = signal.signal(number, told_to_stop)
    update = engine._Run._update

    def interrupted(self, losses):
        if self.result.steps == 1:
            signal.raise_signal(number)
        return update(self, losses)

    checkpoints = Checkpoints(tmp_path, fingerprint="same")
    try:
        with monkeypatch.context() as patch:
            patch.setattr(engine._Run, "_update", interrupted)
            try:
                result, _ = train_tiny(
                    settings, dropout=0.2, services=lambda _: Services(checkpoints=checkpoints)
                )
                assert number == signal.SIGINT
                assert result.interrupted
            except SystemExit:
                assert number == signal.SIGTERM
    finally:
        if number == signal.SIGTERM:
            signal.signal(number, before)
    assert checkpoints.last_step == 2
    again = Checkpoints(tmp_path, fingerprint="same")
    resumed, model = train_tiny(settings, dropout=0.2, services=lambda _: Services(checkpoints=again))

    def untimed(result):
        return [{k: v for k, v in line.items() if k != "elapsed_s"} for line in result.metrics]

    assert untimed(resumed) == untimed(straight)
    trained = dict(model.named_parameters())
    assert all(torch.equal(trained[name], p) for name, p in straight_model.named_parameters())


@posix
def test_a_signal_before_training_begins_leaves_no_state_and_the_next_run_is_whole(tmp_path, monkeypatch):
    """The model is not yet what training begins from: its probe is loaded after the first look."""
    generator = torch.Generator().manual_seed(3)
    probe = {"classifier.weight": torch.randn(4, 32, generator=generator)}
    straight, straight_model = train_tiny(ONE_EPOCH, head=probe)
    checkpoints = Checkpoints(tmp_path, fingerprint="same")
    with monkeypatch.context() as patch:
        patch.setattr(engine._Run, "try_longest", lambda _run: signal.raise_signal(signal.SIGINT))
        result, _ = train_tiny(ONE_EPOCH, head=probe, services=lambda _: Services(checkpoints=checkpoints))
    assert result.interrupted
    assert result.best_score == -math.inf
    assert checkpoints.last_step is None
    again = Checkpoints(tmp_path, fingerprint="same")
    resumed, model = train_tiny(ONE_EPOCH, head=probe, services=lambda _: Services(checkpoints=again))
    assert resumed.best_score == straight.best_score
    trained = dict(model.named_parameters())
    assert all(torch.equal(trained[name], p) for name, p in straight_model.named_parameters())


@posix
def test_who_presses_again_is_obeyed_at_once():
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert not interrupts.at_rest
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert interrupts.at_rest
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_time_is_told_by_a_clock_that_can_be_set(monkeypatch):
    jumps = iter(range(0, 10**9, 86_400))
    monkeypatch.setattr(time, "time", lambda: -float(next(jumps)))
    result, _ = train_tiny(ONE_EPOCH)
    elapsed = [line["elapsed_s"] for line in result.metrics if "loss" in line]
    assert elapsed == sorted(elapsed)
    assert elapsed[0] > 0
    assert elapsed[-1] <= result.train_s < 600


class Held(Checkpoints):
    """Writes when it may."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.may_write = threading.Event()

    def _commit(self, state, meters):
        self.may_write.wait()
        super()._commit(state, meters)


def test_training_does_not_wait_for_the_disk_and_states_do_not_queue_up(tmp_path):
    states = Held(tmp_path, fingerprint="f", interval_s=0)
    states.commit_behind(state_of(1))
    assert not states.due()
    assert states.finished() is None
    assert committed_folders(tmp_path) == []
    states.may_write.set()
    assert states.finished(wait=True) is None
    assert states.newest().step == 1


def test_what_a_thread_cannot_write_is_told_and_what_it_cannot_understand_is_raised(tmp_path, monkeypatch):
    states = Checkpoints(tmp_path, fingerprint="f")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module, "save_file", full)
        states.commit_behind(state_of(1))
        assert "could not be saved (No space left on device)" in states.finished(wait=True)
    states.commit_behind(state_of(best={"what": {1}}))
    with pytest.raises(TypeError, match="cannot hold a set"):
        states.finished(wait=True)
    assert states.finished() is None


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_states_without_the_optimiser_are_refused(tmp_path):
    states = Checkpoints(tmp_path, fingerprint="f")
    states.commit(state_of(1))
    states.commit(state_of(2, optimizer={}))
    assert states.newest().step == 1
    assert states.skipped == ["000002-step-2 is not used: it has no state of the optimiser."]


def test_states_of_other_settings_say_in_what_they_differ_and_stay(tmp_path):
    def states(r, **more):
        return Checkpoints(tmp_path, identity={"config": {"r": r, "seed": 0}, "data": "abc", **more})

    states(16).commit(state_of(1))
    other = states(8)
    assert other.newest() is None
    assert other.skipped[0].endswith("it belongs to other settings or other data (r was 16 and is 8).")
    for step in (1, 2, 3):
        other.commit(state_of(step))
    assert states(16).newest().step == 1
    assert differences({"data": "a", "config": {"r": 1}}, {"data": "b", "config": {"q": "x", "r": 1}}) == [
        'q was not set and is "x"',
        "data are others",
    ]


def test_what_a_run_took_goes_with_its_states(tmp_path):
    states = Checkpoints(tmp_path, fingerprint="f", meters=lambda: {"spent_s": 12.5})
    assert states.found_meters() is None
    states.commit(state_of())
    assert Checkpoints(tmp_path, fingerprint="f").found_meters() == {"spent_s": 12.5}
    assert Checkpoints(tmp_path, fingerprint="g").found_meters() is None
