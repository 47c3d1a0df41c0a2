"""The run's figures to an experiment tracker as well, through Accelerate's trackers; each one is optional."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from snugtune.errors import UserInputError
from snugtune.progress import Observer, ResumedInfo, StepInfo, ValidationInfo

PACKAGES = {
    "tensorboard": ("tensorboard", "snugtune[track]"),
    "mlflow": ("mlflow", "mlflow"),
    "wandb": ("wandb", "wandb"),
    "trackio": ("trackio", "trackio"),
}
"""By tracker: the module it needs, and what to install for it."""

PROJECT = "snugtune"
"""What runs are filed under where a tracker files them under something."""

SCALARS = (bool, int, float, str)
"""What every tracker takes as a setting; the rest is written out."""


class Tracker(Observer):
    """Logs steps, looks at validation and the result to ``tracker`` (None: to nothing).

    A tracker that fails, such as one whose server is gone, is told of once and left alone from then on.

    Args:
        tracker: one of Accelerate's, started.
        say: takes a sentence for the user.
    """

    def __init__(self, tracker: Any | None, say: Callable[[str], None]) -> None:
        self._tracker, self._say = tracker, say
        self._has_steps = False

    def on_step(self, info: StepInfo) -> None:
        """Loss and learning rate, memory if measured."""
        self._has_steps = True
        values = {"train/loss": info.loss, "train/learning_rate": info.learning_rate}
        self.log(values | {f"memory/{name}": size for name, size in (info.memory or {}).items()}, info.step)

    def on_validation(self, info: ValidationInfo) -> None:
        """Score, log loss, epoch."""
        names = {"score": info.score, "log_loss": info.log_loss, "epoch": info.epoch}
        self.log({f"validation/{name}": value for name, value in names.items()}, info.step)

    def on_resumed(self, info: ResumedInfo) -> None:
        """The curves until then, where an earlier process drew them; what is drawn already stays."""
        if self._has_steps:
            return
        for line in info.metrics:
            names = {
                "eval_score": "validation/score",
                "eval_loss": "validation/log_loss",
                "loss": "train/loss",
            }
            names |= {"epoch": "validation/epoch", "learning_rate": "train/learning_rate"}
            self.log({told: line[name] for name, told in names.items() if name in line}, line["step"])

    def log_result(self, record: Mapping[str, Any]) -> None:
        """The averages of each part, time and money from the finished ``run.json``."""
        values = {
            f"result/{part}/{name}": value
            for part, metrics in record["metrics"].items()
            for name, value in metrics.items()
            if isinstance(value, float)
        }
        values["result/total_s"] = record["time"]["total_s"]
        if record["cost"]["usd"] is not None:
            values["result/usd"] = record["cost"]["usd"]
        self.log(values, record["training"]["steps"])

    def log(self, values: dict[str, Any], step: int) -> None:
        """Pass ``values`` on under ``step``."""
        self._attempt(lambda tracker: tracker.log(values, step=step))

    def finish(self) -> None:
        """Close what is open."""
        self._attempt(lambda tracker: tracker.finish())

    def _attempt(self, act: Callable[[Any], None]) -> None:
        if self._tracker is None:
            return
        try:
            act(self._tracker)
        except Exception as error:
            # Whatever a foreign service raises, training is worth more than its curve.
            name, self._tracker = self._tracker.name, None
            self._say(f"Warning: {name} failed ({error}); nothing more is logged to it, training goes on.")


@contextmanager
def tracking(
    name: str | None,
    folder: Path,
    run_name: str,
    settings: Mapping[str, Any],
    *,
    on_cpu: bool = False,
    say: Callable[[str], None],
) -> Iterator[Tracker]:
    """The tracker called ``name`` (None: one that logs nothing), open inside.

    TensorBoard's files lie in ``folder/tensorboard``; the others are set up by their own environment
    variables, such as ``MLFLOW_TRACKING_URI`` and ``WANDB_MODE``.

    Raises:
        UserInputError: its package is missing, or it cannot be started.
    """
    if name is None:
        yield Tracker(None, say)
        return
    check_installed(name)
    tracker = Tracker(_started(name, folder, run_name, settings, on_cpu), say)
    try:
        yield tracker
    finally:
        tracker.finish()


def check_installed(name: str) -> None:
    """Whether the package of the tracker ``name`` is there.

    Raises:
        UserInputError: it is not.
    """
    module, package = PACKAGES[name]
    if find_spec(module) is None:
        raise UserInputError(
            f"--track {name} needs a package that is not installed: pip install '{package}', "
            "or leave --track out."
        )


def _started(name: str, folder: Path, run_name: str, settings: Mapping[str, Any], on_cpu: bool) -> Any:
    from accelerate.state import PartialState

    # Accelerate's trackers log about themselves, which takes a state that would choose a device by itself.
    PartialState(cpu=on_cpu)
    tracker = _tracker(name, folder, run_name)
    try:
        tracker.start()
        tracker.store_init_configuration(
            {key: value if isinstance(value, SCALARS) else str(value) for key, value in settings.items()}
        )
    except Exception as error:
        raise UserInputError(f"--track {name} cannot be started: {error}") from error
    return tracker


def _tracker(name: str, folder: Path, run_name: str) -> Any:
    from accelerate import tracking as trackers

    if name == "tensorboard":
        return trackers.TensorBoardTracker("tensorboard", logging_dir=folder)
    if name == "mlflow":
        return trackers.MLflowTracker(experiment_name=PROJECT, run_name=run_name)
    if name == "wandb":
        return trackers.WandBTracker(PROJECT, name=run_name)
    return trackers.TrackioTracker(PROJECT, name=run_name)
