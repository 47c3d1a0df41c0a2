"""Progress bars and tables of the terminal, through rich."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from snugtune.cli.terminal import escape, plain
from snugtune.progress import Observer, StepInfo, ValidationInfo
from snugtune.report.headline import headline
from snugtune.units import duration

PHASES = {
    "data": "Reading and splitting the data",
    "probe": "Frozen pass for the probe start",
    "train": "Training",
    "evaluate": "Evaluating",
    "baseline": "Training the TF-IDF baseline",
    "audit": "Auditing the data",
    "survey": "Reading the table",
    "predict": "Classifying",
    "save": "Saving and reloading in a new process",
    "reference": "Answers of the run on held-out rows",
    "export": "Writing the export",
    "compare": "Asking the export in a new process",
    "push": "Pushing to the Hub",
    "search": "Trials",
}


UNITS = {"predict": "rows"}
"""What phases count whose pace is worth knowing."""


class _Pace(ProgressColumn):
    """Units a second, of phases that have one."""

    def render(self, task: Task) -> Text:
        unit, speed = task.fields.get("unit"), task.speed
        return Text(f"{speed:,.0f} {unit}/s" if unit and speed else "")


class RichObserver(Observer):
    """Draws a job's progress on standard error, so that standard output holds results alone."""

    def __init__(self, *, price_per_hour_usd: float | None = None) -> None:
        self.price_per_hour_usd = price_per_hour_usd
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            _Pace(),
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
        self.console.print(plain(sentence), markup=False, highlight=False)

    def phase(self, name: str, total: int | None = None) -> None:
        """Name the phase; draw a bar if its size is known."""
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(
            PHASES.get(name, name), total=total or 1, note="", unit=UNITS.get(name)
        )

    def advance(self, done: int) -> None:
        """Move the bar."""
        if self.task is not None:
            self.progress.advance(self.task, done)

    def on_step(self, info: StepInfo) -> None:
        """Show step, loss, peak memory and money; the bar itself knows the time left."""
        if self.task is not None:
            self.progress.update(self.task, completed=info.step, total=info.steps, note=self._note(info))

    def _note(self, info: StepInfo) -> str:
        parts = [f"loss {info.loss:.3f}"]
        if info.peak_gib is not None:
            parts.append(f"{info.peak_gib:.2f} GiB")
        if self.price_per_hour_usd is not None:
            parts.append(f"{info.elapsed_s / 3600 * self.price_per_hour_usd:.2f} USD")
        return "  ".join(parts)

    def on_validation(self, info: ValidationInfo) -> None:
        """Print one line for each look at the validation part."""
        mark = "  best so far" if info.best else ""
        self.say(
            f"Epoch {info.epoch:.1f}: validation score {info.score:.4f}, log loss {info.log_loss:.4f}{mark}"
        )


def read_run(run: Path) -> dict[str, Any]:
    """The ``run.json`` of a finished run."""
    record: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return record


def show_run(record: dict[str, Any], run: Path) -> None:
    """The result of a fit as a table, and where everything lies."""
    console = Console()
    table = Table("", *record["metrics"])
    shown = [key for key, _ in headline(record)]
    for key in shown:
        table.add_row(key, *(f"{part[key]:.4f}" for part in record["metrics"].values()))
    baseline = record["baseline"]
    for key in shown[:2]:
        figures = (f"{part[key]:.4f}" for part in baseline["metrics"].values())
        table.add_row(f"{baseline['name']}: {key}", *figures, style="dim")
    console.print(table)
    part = "test" if "test" in record["metrics"] else "validation"
    if levels := record["metrics"][part].get("levels"):
        console.print(_levels(levels, part))
    report = run / "report.html"
    where = f"Everything lies in {run}" + (f"; for a browser: {report}." if report.exists() else ".")
    for sentence in (*cost_sentences(record), where):
        console.print(plain(sentence), markup=False, highlight=False, soft_wrap=True)


def cost_sentences(record: dict[str, Any]) -> list[str]:
    """What the run took, and what predictions will take, a line each; only what is known."""
    cost, time = record["cost"], record["time"]
    took = [f"{duration(time['total_s'])}, {duration(time['train_s'])} of it training"]
    took.append(f"peak memory {record['memory']['measured_peak_gib']:.2f} GiB")
    if cost["energy_wh"] is not None:
        took.append(f"{cost['energy_wh']:.1f} Wh ({cost['energy_of']})")
    if cost["usd"] is not None:
        price = cost["price"]
        source = ", ".join(filter(None, (price["provider"], price["date"])))
        took.append(f"{cost['usd']:.2f} USD at {price['usd_per_hour']:.2f} an hour ({source})")
    if cost["compute_units"] is not None:
        units = {"by 1 GB for an hour": cost["compute_units"]["blog_formula"]}
        units |= {"on Colab": cost["compute_units"]["colab"]}
        told = [f"{value:.2f} {how}" for how, value in units.items() if value is not None]
        took.append(f"compute units: {', '.join(told)}")
    sentences = [f"It took {'; '.join(took)}."]
    if cost["budget"]["ended_run"]:
        sentences.append("The budget ended the training; the best weights until then were kept.")
    return [*sentences, *_prediction_sentences(cost)]


def _prediction_sentences(cost: dict[str, Any]) -> list[str]:
    per_1000, per_year = cost["per_1000_predictions"], cost["per_year"]
    if per_1000 is None:
        return []
    told = f"1,000 predictions take {duration(per_1000['seconds'])} here"
    if per_1000["usd"] is not None:
        told += f", {per_1000['usd']:.4f} USD"
    if per_year is not None:
        told += f"; a year of {per_year['predictions']:,} takes {duration(per_year['seconds'])}"
        if per_year["usd"] is not None:
            told += f", {per_year['usd']:.2f} USD"
    return [f"{told}."]


def show_evaluation(result: dict[str, Any]) -> None:
    """What was found in an evaluated table: counts, averages, classes by size, and the commonest mistakes."""
    console = Console()

    def say(sentence: str) -> None:
        console.print(plain(sentence), markup=False, highlight=False)

    say(f"{result['rows']:,} rows with a text, {100 * result['review_share']:.1f} % for a person to look at.")
    if result["rows_without_text"]:
        say(f"{result['rows_without_text']:,} rows have no text; they are not scored.")
    _say_drift(result["drift"], say)
    if result["label_column"] is None:
        say("There is no label column, so nothing is scored; the predicted mix:")
    else:
        _say_unscored(result, say)
    if "metrics" not in result:
        table = Table("predicted", _right("rows"))
        for label, count in result["predicted"].items():
            table.add_row(escape(label), f"{count:,}")
        console.print(table)
        return
    metrics, automated = result["metrics"], result["automated"]
    if automated["accuracy"] is not None:
        say(
            f"Of the {metrics['rows']:,} scored rows, {100 * automated['share']:.1f} % need no review; "
            f"{100 * automated['accuracy']:.1f} % of those are right."
        )
    console.print(_overall(metrics))
    console.print(_averages(metrics))
    if metrics.get("levels"):
        console.print(_levels(metrics["levels"], "this table"))
    console.print(_classes(metrics))
    if result["confusions"]:
        console.print(_confusions(result["confusions"]))


def _say_drift(drift: dict[str, Any] | None, say: Callable[[str], None]) -> None:
    if drift is None:
        return
    for sentence in drift["warnings"]:
        say(f"Warning: {sentence}")
    if drift["checks"] and not drift["warnings"]:
        say("Lengths, words, confidences and predicted labels are much as in the run's held-out texts.")


def _say_unscored(result: dict[str, Any], say: Callable[[str], None]) -> None:
    if result["rows_without_label"]:
        say(f"{result['rows_without_label']:,} rows have no label; they are not scored.")
    if unseen := result["unseen_labels"]:
        first = ", ".join(map(repr, list(unseen)[:3]))
        say(
            f"{sum(unseen.values()):,} rows carry {len(unseen):,} labels unseen in training ({first}"
            f"{', ...' if len(unseen) > 3 else ''}); they are not scored."
        )
    if "metrics" not in result:
        say(
            f"No label of column {result['label_column']!r} was seen in training, so nothing is scored; "
            "if that is the wrong column, name another --label. The predicted mix:"
        )


def _levels(levels: list[dict[str, Any]], where: str) -> Table:
    names = ("rows", "accuracy", "F1 macro", "if the label is right")
    table = Table(f"level, on {where}", *map(_right, names))
    for one in levels:
        ceiling = "" if one["ceiling"] is None else f"{one['ceiling']:.4f}"
        figures = (f"{one['rows']:,}", f"{one['accuracy']:.4f}", f"{one['f1_macro']:.4f}", ceiling)
        table.add_row(escape(one["column"]), *figures)
    return table


def _right(name: str) -> Column:
    return Column(name, justify="right")


def _overall(metrics: dict[str, Any]) -> Table:
    table = Table("overall", _right("value"), _right("95 % interval"))
    several = "hamming_loss" in metrics
    names = {
        "accuracy": "exactly right" if several else "accuracy",
        **({"f1_micro": "F1 micro"} if several else {}),
        "f1_macro": "F1 macro",
        "hamming_loss": "Hamming loss",
        "lrap": "ranking precision",
        "average_precision_macro": "average precision macro",
        "log_loss": "log loss",
        "ece": "calibration error",
    }
    for key, name in names.items():
        if metrics.get(key) is None:
            continue
        interval = metrics["intervals"].get(key)
        table.add_row(
            name, f"{metrics[key]:.4f}", f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        )
    return table


def _averages(metrics: dict[str, Any]) -> Table:
    table = Table("average over classes", *map(_right, ("precision", "recall", "F1")))
    kinds = ("macro", "weighted", "micro", "samples")
    for kind in (kind for kind in kinds if f"f1_{kind}" in metrics):
        table.add_row(kind, *(f"{metrics[f'{key}_{kind}']:.4f}" for key in ("precision", "recall", "f1")))
    return table


def _classes(metrics: dict[str, Any]) -> Table:
    table = Table("class", *map(_right, ("precision", "recall", "F1", "support")))
    for row in sorted(metrics["per_class"], key=lambda row: -row["support"]):
        figures = (f"{row[key]:.3f}" for key in ("precision", "recall", "f1"))
        table.add_row(escape(row["label"]), *figures, f"{row['support']:,}")
    return table


def _confusions(confusions: list[dict[str, Any]]) -> Table:
    table = Table("most frequent mistakes: label", "predicted", _right("rows"))
    for row in confusions:
        table.add_row(escape(row["label"]), escape(row["predicted"]), f"{row['rows']:,}")
    return table
