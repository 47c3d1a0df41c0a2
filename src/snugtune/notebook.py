"""The same jobs as the commands', for a notebook: each is one call, and what comes back shows itself.

Settings are those of ``FitConfig`` under their names. Progress is drawn live where there is a notebook, and
not at all elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snugtune.audit import audit
from snugtune.config import make_config
from snugtune.data.sample import write_sample
from snugtune.memory.devices import devices_named
from snugtune.memory.limits import Limits
from snugtune.memory.plan import Plan
from snugtune.model.parameters import ParameterReport, plan_parameters
from snugtune.progress import Observer, StepInfo, ValidationInfo
from snugtune.quiet import quiet_libraries
from snugtune.report.inline import (
    Html,
    audit_html,
    live_html,
    page_html,
    plans_html,
    run_html,
    sections_html,
)
from snugtune.report.page import RunFiles, read_run_files
from snugtune.supervise import fit
from snugtune.train.planning import labels_and_lengths, own_prices, plan_devices

if TYPE_CHECKING:
    import polars as pl

    from snugtune.export.export import Exported
    from snugtune.predict.predictor import Predictor

__all__ = ["Audit", "Plans", "Run", "audit_table", "fit_table", "open_run", "plan", "write_sample"]

REDRAWN_AFTER_S = 0.5
"""A browser is not asked to draw more often."""

PHASES = {
    "data": "Reading and splitting the data", "probe": "Reading the texts with the frozen model",
    "train": "Training", "evaluate": "Evaluating", "baseline": "Training the TF-IDF baseline",
    "audit": "Auditing the data", "survey": "Reading the table", "predict": "Classifying",
    "save": "Saving and loading in a new process", "export": "Writing the export",
    "reference": "Answers of the run on held-out rows", "compare": "Asking the export in a new process",
}  # fmt: skip


@dataclass(frozen=True)
class Plans:
    """A model's parameters, and a ``Plan`` for each device that was asked for."""

    model: str
    labels: int
    parameters: ParameterReport
    devices: tuple[Plan, ...]

    def __repr__(self) -> str:
        told = (f"{one.name} {'fits' if one.fits else 'does not fit'}" for one in self.devices)
        return f"Plans({self.model!r}, {self.labels:,} labels: {', '.join(told)})"

    def _repr_html_(self) -> str:
        return plans_html(self.model, self.labels, self.parameters, self.devices).html


@dataclass(frozen=True)
class Audit:
    """What ``audit.json`` holds, and the ``folder`` that it lies in, beside ``label_issues.xlsx``."""

    record: dict[str, Any]
    folder: Path

    def __repr__(self) -> str:
        return f"Audit({str(self.folder)!r}: {self.record['audit']['rows']:,} rows)"

    def _repr_html_(self) -> str:
        return audit_html(self.record, str(self.folder)).html


class Run:
    """A finished run: what it measured, and its model.

    Attributes:
        folder: the run folder.
        record: what its ``run.json`` holds.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files: RunFiles = read_run_files(self.folder)
        if not self._files.record.get("config", {}).get("report_texts", True):
            self._files = self._files.without_texts()
        self.record: dict[str, Any] = self._files.record

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        return run_html(self._files, str(self.folder)).html

    def show(self, *sections: str) -> Html:
        """Sections of the report: verdict, data, quality, classes, trust, training, cost.

        Raises:
            ValueError: there is no section of that name.
        """
        return sections_html(self._files, sections)

    def report(self, height_px: int = 720) -> Html:
        """The whole report, in a frame of ``height_px`` pixels."""
        return page_html(self._files, height_px)

    @cached_property
    def predictor(self) -> Predictor:
        """The run's model, loaded when it is first needed."""
        from snugtune.predict.predictor import Predictor

        return Predictor.load(self.folder)

    def predict(self, texts: Sequence[str]) -> pl.DataFrame:
        """A row for each text: the text, its label, the confidence and whether a person should look at it.

        Raises:
            UserInputError: ``texts`` is no list of strings.
        """
        from snugtune.errors import UserInputError

        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UserInputError("predict takes a list of texts; write [text] for a single one.")
        found = self.predictor.columns(list(texts))
        import polars as pl

        return found.insert_column(0, pl.Series("text", list(texts), dtype=pl.String))

    def predict_table(self, source: str | Path, output: str | Path, **options: Any) -> dict[str, int]:
        """Classify a table as ``snugtune predict`` does; the options are those of its library function.

        Returns:
            ``rows`` and ``needs_review``.

        Raises:
            UserInputError: the table or the output cannot be used.
        """
        from snugtune.predict.table import predict_table

        with watching() as observer:
            return predict_table(self.predictor, source, output, observer=observer, **options)

    def export(self, out: str | Path, **options: Any) -> Exported:
        """The run for other programs, as ``snugtune export`` makes it: ``to="onnx"`` and so on.

        Raises:
            UserInputError: a choice or the folder cannot be used.
            ArtifactError: the export gives other answers than the run.
        """
        from snugtune.export.export import export_run

        with watching() as observer:
            return export_run(self.folder, out, observer=observer, **options)


def plan(
    train: str | None = None,
    *,
    labels: int | None = None,
    rows: int | None = None,
    gpu: str | None = None,
    memory: str | None = None,
    max_hours: float | None = None,
    max_cost_usd: float | None = None,
    **settings: Any,
) -> Plans:
    """What a fit would take, in memory, time and money, before it runs; as ``snugtune plan``.

    Args:
        train: a table, from which labels and lengths are read.
        labels: the number of classes, where there is no table.
        rows: how many texts, likewise.
        gpu: cards by commas, as ``"t4,l4,h100"``; this machine if left out.
        memory: the most to be used, as ``"15GiB"``.
        max_hours: a limit of time; the plan says what would keep it.
        max_cost_usd: likewise, of money.
        **settings: of the fit; ``price_per_hour_usd`` of several cards as ``"t4=0.35,l4=0.8"``.

    Raises:
        UserInputError: the table, a setting or a card cannot be used.
    """
    quiet_libraries()
    devices = devices_named(gpu, memory)
    prices = own_prices(settings.pop("price_per_hour_usd", None), devices)
    config = make_config({**settings, "train": train or ""})
    labels, lengths, _ = labels_and_lengths(config, labels, rows)
    limits = Limits(max_hours, max_cost_usd)
    plans = plan_devices(config, labels, devices, lengths=lengths, limits=limits, prices=prices)
    return Plans(config.model, labels, plan_parameters(config, labels), tuple(plans))


def audit_table(
    train: str,
    out: str | Path = "audit",
    *,
    frozen_pass: bool = True,
    overwrite: bool = False,
    observer: Observer | None = None,
    **settings: Any,
) -> Audit:
    """Look at a table before anything is spent on it, as ``snugtune audit``.

    Raises:
        UserInputError: the table, a setting or the folder cannot be used.
    """
    quiet_libraries()
    config = make_config({**settings, "train": train})
    with watching(observer) as told:
        record = audit(config, out, frozen_pass=frozen_pass, overwrite=overwrite, observer=told)
    return Audit(record, Path(out))


def fit_table(
    train: str,
    out: str | Path = "runs/run",
    *,
    overwrite: bool = False,
    observer: Observer | None = None,
    **settings: Any,
) -> Run:
    """Train a classifier on a table, as ``snugtune fit``, with loss and memory drawn while it trains.

    Raises:
        SnugtuneError: as ``snugtune.fit`` does.
    """
    quiet_libraries()
    config = make_config({**settings, "train": train})
    with watching(observer, price_per_hour_usd=config.price_per_hour_usd) as told:
        return Run(fit(config, out, overwrite=overwrite, observer=told))


def open_run(folder: str | Path) -> Run:
    """A finished run, to be looked at and used.

    Raises:
        UserInputError: the folder is no run.
    """
    return Run(folder)


class NotebookObserver(Observer):
    """Draws a job in the output of the cell that started it: phase, time left, loss, memory, sentences.

    It keeps one output and replaces what is in it, so the notebook ends with the finished curves.
    """

    def __init__(self, display: Any, *, price_per_hour_usd: float | None = None) -> None:
        self.price_per_hour_usd = price_per_hour_usd
        self.sentences: list[str] = []
        self.metrics: list[dict[str, Any]] = []
        self.memory: list[dict[str, Any]] = []
        self._phase, self._total, self._done = "Starting", 0, 0
        self._step: StepInfo | None = None
        self._drawn_at = 0.0
        self._handle = display(self._html(), display_id=True)

    def __enter__(self) -> NotebookObserver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._phase, self._total, self._done = ("Done" if kind is None else "It ended with an error"), 0, 0
        self._draw(finished=kind is None, at_once=True)

    def say(self, sentence: str) -> None:
        """One more line."""
        self.sentences.append(sentence)
        self._draw()

    def phase(self, name: str, total: int | None = None) -> None:
        """Name the phase."""
        self._phase, self._total, self._done = PHASES.get(name, name), total or 0, 0
        self._draw(at_once=True)

    def advance(self, done: int) -> None:
        """Move the bar."""
        self._done += done
        self._draw()

    def on_step(self, info: StepInfo) -> None:
        """One more point of the curves."""
        self._step = info
        self.metrics.append({"step": info.step, "loss": info.loss, "learning_rate": info.learning_rate})
        if info.memory is not None:
            self.memory.append({"step": info.step, **info.memory})
        self._draw()

    def on_validation(self, info: ValidationInfo) -> None:
        """One look at validation."""
        look = {"step": info.step, "epoch": info.epoch, "eval_score": info.score, "eval_loss": info.log_loss}
        self.metrics.append(look)
        self._draw(at_once=True)

    def _draw(self, *, finished: bool = False, at_once: bool = False) -> None:
        now = time.monotonic()
        if not at_once and now - self._drawn_at < REDRAWN_AFTER_S:
            return
        self._drawn_at = now
        if self._handle is not None:
            self._handle.update(self._html(finished=finished))

    def _html(self, *, finished: bool = False) -> Html:
        step = self._step
        price = self.price_per_hour_usd
        state = {
            "phase": self._phase, "total": self._total, "done": min(self._done, self._total), "step": step,
            "share": self._share(), "sentences": self.sentences, "finished": finished,
            "usd": None if step is None or price is None else step.elapsed_s / 3600 * price,
        }  # fmt: skip
        return live_html(state, self.metrics, self.memory)

    def _share(self) -> float | None:
        if self._phase == PHASES["train"] and self._step is not None:
            return self._step.step / max(1, self._step.steps)
        return self._done / self._total if self._total else None


class _Silent(Observer):
    """Where nobody watches."""

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was opened."""


class _Given(_Silent):
    """The caller's own observer."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def __enter__(self) -> Observer:
        return self._observer


def watching(
    observer: Observer | None = None, *, price_per_hour_usd: float | None = None
) -> NotebookObserver | _Silent:
    """What draws a job: the caller's own observer, the notebook's, or nothing where there is no notebook."""
    if observer is not None:
        return _Given(observer)
    if not in_notebook():
        return _Silent()
    from IPython.display import display

    return NotebookObserver(display, price_per_hour_usd=price_per_hour_usd)


def in_notebook() -> bool:
    """Whether a kernel runs this code, whose output can hold HTML; IPython in a terminal is none."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None
