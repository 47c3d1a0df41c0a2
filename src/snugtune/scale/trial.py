"""One trial: a fit that ends when its training has, or earlier if others did better at the same point.

It is told to end through its own observer. What it has trained is committed by then, so the winner goes on
from there: its test rows are looked at once, and the others' never.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from snugtune.config import FitConfig, write_config
from snugtune.errors import RunInterruptedError, SnugtuneError, UserInputError
from snugtune.progress import Observer, QuoteInfo, ResumedInfo, StepInfo, TrainedInfo, ValidationInfo
from snugtune.scale.study import Study, Trial
from snugtune.train.recovery import states_folder

Fit = Callable[..., Path]
"""``snugtune.supervise.fit``, or what stands in for it."""


class EnoughError(Exception):
    """Nothing more is wanted of this fit; raised from its observer, so it ends as if it had failed."""


@dataclass
class Watch(Observer):
    """Listens to the fit of a trial, and ends it.

    ``looks`` are the looks at validation so far, ``trained`` how training ended (None: it did not).
    ``wants_to_end`` is asked after each look, with the share of training that is done and the score; only
    looks at trained weights count. ``shown`` is told of steps, ``alive`` called at each.
    """

    epochs: float
    wants_to_end: Callable[[float, float], bool] = lambda *_: False
    shown: Observer = field(default_factory=Observer)
    alive: Callable[[], None] = lambda: None
    looks: list[dict[str, Any]] = field(default_factory=list)
    quote: QuoteInfo | None = None
    trained: TrainedInfo | None = None
    pruned: bool = False

    def on_step(self, info: StepInfo) -> None:
        """Passed on."""
        self.alive()
        self.shown.on_step(info)

    def phase(self, name: str, total: int | None = None) -> None:  # noqa: ARG002
        """Still alive."""
        self.alive()

    def advance(self, done: int) -> None:  # noqa: ARG002
        """Still alive."""
        self.alive()

    def on_quote(self, info: QuoteInfo) -> None:
        """Kept."""
        self.quote = info

    def on_validation(self, info: ValidationInfo) -> None:
        """Kept; the fit ends here if so much is known."""
        look = asdict(info)
        del look["best"]
        self._look(look)

    def on_resumed(self, info: ResumedInfo) -> None:
        """What was told of later steps no longer holds."""
        self.looks = []
        for line in info.metrics:
            if "eval_score" in line:
                look = {"step": line["step"], "epoch": line["epoch"]}
                self._look({**look, "score": line["eval_score"], "log_loss": line["eval_loss"]})

    def on_trained(self, info: TrainedInfo) -> None:
        """The end."""
        self.trained = info
        raise EnoughError

    def _look(self, look: dict[str, Any]) -> None:
        self.looks.append(look)
        if look["step"] and self.wants_to_end(look["epoch"] / self.epochs, look["score"]):
            self.pruned = True
            raise EnoughError

    @property
    def best(self) -> dict[str, Any]:
        """The look whose weights are kept: the highest score, then the lowest log loss, then the first."""
        return max(self.looks, key=lambda look: (look["score"], -look["log_loss"]))

    @property
    def best_trained(self) -> float:
        """The highest score after a step: by it trials differ that all fall below their probe."""
        return float(max((look["score"] for look in self.looks if look["step"]), default=self.best["score"]))


def run_trial(
    fit: Fit, config: FitConfig, study: Study, trial: Trial, *, shown: Observer, supervised: bool | None
) -> None:
    """Train ``trial`` and enter how it ended.

    Raises:
        KeyboardInterrupt: Ctrl-C; the trial is given back.
        UserInputError: the data or a setting of all trials cannot be used.
    """
    watch = Watch(config.num_train_epochs, trial.report, shown, trial.show_sign)
    trial.out.parent.mkdir(parents=True, exist_ok=True)
    # What is left of the budget now is no setting of the trial.
    write_config(config.model_copy(update={"max_time_s": None}), trial.out.with_suffix(".yaml"))
    state, more = "FAIL", {}
    began = time.perf_counter()
    try:
        fit(config, trial.out, observer=watch, supervised=supervised)
    except EnoughError:
        if watch.trained is not None and watch.trained.interrupted:
            study.let_go(trial)
            raise KeyboardInterrupt from None
        state = "PRUNED" if watch.pruned else "COMPLETE"
    except (KeyboardInterrupt, RunInterruptedError):
        study.let_go(trial)
        raise KeyboardInterrupt from None
    except SnugtuneError as error:
        more = {"error": str(error)}
        if isinstance(error, UserInputError) and trial.is_default:
            study.end(trial, state, None, {**_notes(watch, time.perf_counter() - began), **more})
            raise
    except BaseException:
        study.let_go(trial)
        raise
    notes = {**_notes(watch, trial.earlier_s + time.perf_counter() - began), **more}
    study.end(trial, state, watch.best_trained if state == "COMPLETE" else None, notes)


def _notes(watch: Watch, seconds: float) -> dict[str, Any]:
    """What is kept of a trial."""
    trained, looks = watch.trained, watch.looks
    train_s = trained.train_s if trained is not None else None
    best = watch.best if looks else {"score": None, "log_loss": None, "epoch": None}
    return {
        "seconds": seconds, "train_s": train_s, "looks": looks,
        "epochs": looks[-1]["epoch"] if looks else 0.0,
        "score": best["score"], "log_loss": best["log_loss"], "best_epoch": best["epoch"],
        "over_budget": trained is not None and trained.over_budget,
        "diverged": trained is not None and trained.diverged,
    }  # fmt: skip


def forget_states(out: Path) -> None:
    """Remove what a trial has trained."""
    shutil.rmtree(states_folder(out), ignore_errors=True)
    shutil.rmtree(out.with_name(f".{out.name}.partial"), ignore_errors=True)
