"""What a tracker gets, and what happens without one. TensorBoard alone is installed with the tests."""

import pytest

from snugtune.errors import UserInputError
from snugtune.progress import StepInfo, ValidationInfo
from snugtune.train import track
from snugtune.train.engine import Services
from snugtune.train.track import PACKAGES, Tracker, check_installed, tracking
from tiny_training import train_tiny

RECORD = {
    "metrics": {"test": {"accuracy": 0.9, "rows": 10, "per_class": []}},
    "time": {"total_s": 12.5},
    "cost": {"usd": 0.25},
    "training": {"steps": 8},
}


class Fake:
    """A tracker in the manner of Accelerate's that keeps what it is given."""

    name = "fake"

    def __init__(self, fails=False):
        self.logged, self.fails, self.finished = [], fails, False

    def log(self, values, step):
        if self.fails:
            raise ConnectionError("no route to host")
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


def test_steps_looks_and_the_result_are_logged():
    fake = Fake()
    tracker = Tracker(fake, print)
    tracker.on_step(StepInfo(3, 8, 0.5, 1e-3, 1.0, 2.0, 1.5, {"peak_gib": 1.5}))
    tracker.on_validation(ValidationInfo(4, 1.0, 0.75, 0.5, True))
    tracker.log_result(RECORD)
    tracker.finish()
    assert fake.logged == [
        (3, {"train/loss": 0.5, "train/learning_rate": 1e-3, "memory/peak_gib": 1.5}),
        (4, {"validation/score": 0.75, "validation/log_loss": 0.5, "validation/epoch": 1.0}),
        (8, {"result/test/accuracy": 0.9, "result/total_s": 12.5, "result/usd": 0.25}),
    ]
    assert fake.finished


def test_a_tracker_that_fails_is_told_once_and_training_goes_on():
    told = []
    tracker = Tracker(Fake(fails=True), told.append)
    result, _ = train_tiny(
        {"num_train_epochs": 1, "effective_batch_size": 8}, services=lambda _: Services(tracker)
    )
    assert result.steps == 4
    tracker.finish()
    assert len(told) == 1
    assert "fake failed (no route to host)" in told[0]


def test_without_a_tracker_nothing_is_logged(tmp_path):
    with tracking(None, tmp_path, "run", {}, say=print) as tracker:
        tracker.log_result(RECORD)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_one_sentence(name, monkeypatch):
    monkeypatch.setattr(track, "find_spec", lambda module: None)
    with pytest.raises(
        UserInputError, match=rf"--track {name} .*pip install '{PACKAGES[name][1][:8]}"
    ) as caught:
        check_installed(name)
    assert caught.value.exit_code == 2


def test_a_tracker_that_cannot_start_is_one_sentence(tmp_path, monkeypatch):
    class Broken(Fake):
        def start(self):
            raise PermissionError("not logged in")

    monkeypatch.setattr(track, "_tracker", lambda *_: Broken())
    with (
        pytest.raises(UserInputError, match="cannot be started: not logged in"),
        tracking("tensorboard", tmp_path, "run", {}, say=print),
    ):
        pass


def test_tensorboard_reads_what_was_logged(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = {"r": 16, "text": ("a", "b"), "test": None}
    with tracking("tensorboard", tmp_path, "run", settings, say=print) as tracker:
        result, _ = train_tiny(
            {"num_train_epochs": 1, "effective_batch_size": 8}, services=lambda _: Services(tracker)
        )
        tracker.log_result(RECORD)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/learning_rate", "validation/score", "result/test/accuracy"} <= set(
        events.Tags()["scalars"]
    )
    losses = [line["loss"] for line in result.metrics if "loss" in line]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
