"""Progress bars and tables of the terminal, through rich."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from snugtune.progress import Observer, StepInfo, ValidationInfo
from snugtune.units import duration

PHASES = {
    "data": "Reading and splitting the data",
    "probe": "Frozen pass for the probe start",
    "train": "Training",
    "evaluate": "Evaluating",
    "save": "Saving and reloading in a new process",
}


class RichObserver(Observer):
    """Draws a job's progress on standard error, so that standard output holds results alone."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> RichObserver:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def say(self, sentence: str) -> None:
        """Print the sentence above the bar."""
        self.console.print(sentence, markup=False, highlight=False)

    def phase(self, name: str, total: int | None = None) -> None:
        """Name the phase; draw a bar if its size is known."""
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(PHASES.get(name, name), total=total or 1, note="")

    def advance(self, done: int) -> None:
        """Move the bar."""
        if self.task is not None:
            self.progress.advance(self.task, done)

    def on_step(self, info: StepInfo) -> None:
        """Show step, loss and time left."""
        if self.task is not None:
            note = f"loss {info.loss:.3f}  {duration(info.remaining_s)} left"
            self.progress.update(self.task, completed=info.step, total=info.steps, note=note)

    def on_validation(self, info: ValidationInfo) -> None:
        """Print one line for each look at the validation part."""
        mark = "  best so far" if info.best else ""
        self.say(
            f"Epoch {info.epoch:.1f}: validation score {info.score:.4f}, log loss {info.log_loss:.4f}{mark}"
        )


def quiet_libraries() -> None:
    """Keep Transformers' loading bars and reports, and PEFT's deprecation notes, off the terminal."""
    import warnings

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")


def read_run(run: Path) -> dict[str, Any]:
    """The ``run.json`` of a finished run."""
    record: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return record


def show_run(record: dict[str, Any], run: Path) -> None:
    """The result of a fit as a table, and where everything lies."""
    console = Console()
    table = Table("", *record["metrics"])
    for key in ("accuracy", "f1_macro", "f1_weighted", "ece"):
        table.add_row(key, *(f"{part[key]:.4f}" for part in record["metrics"].values()))
    console.print(table)
    console.print(f"Trained in {duration(record['time']['train_s'])}; everything lies in {run}", markup=False)


def show_evaluation(result: dict[str, Any]) -> None:
    """Metrics and classes of an evaluated table, the largest classes first."""
    console = Console()
    console.print(f"{result['rows']:,} rows, {100 * result['review_share']:.1f} % for a person to look at")
    if unseen := result.get("unseen_labels"):
        count = sum(unseen.values())
        console.print(f"{count:,} rows carry {len(unseen)} labels unseen in training; they are not scored.")
    if "metrics" not in result:
        return
    metrics = result["metrics"]
    low, high = metrics["intervals"]["accuracy"]
    console.print(f"accuracy {metrics['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f})")
    console.print(f"F1 macro {metrics['f1_macro']:.4f}, weighted {metrics['f1_weighted']:.4f}")
    table = Table("class", "precision", "recall", "F1", "support")
    for row in sorted(metrics["per_class"], key=lambda row: -row["support"]):
        figures = (f"{row[key]:.3f}" for key in ("precision", "recall", "f1"))
        table.add_row(escape(row["label"]), *figures, f"{row['support']:,}")
    console.print(table)
