"""A search in the terminal: how it goes on, and what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from snugtune.cli.render import RichObserver, cost_sentences, read_run
from snugtune.cli.terminal import plain
from snugtune.progress import StepInfo, ValidationInfo
from snugtune.units import duration

SEARCHING = "search"
MOST_SHOWN = 20


class SearchDisplay(RichObserver):
    """One bar for all trials; the trial in hand is told of beside it."""

    def __init__(self, *, price_per_hour_usd: float | None = None) -> None:
        super().__init__(price_per_hour_usd=price_per_hour_usd)
        self._is_searching = False

    def phase(self, name: str, total: int | None = None) -> None:
        """The bar of the trials stays until they are done."""
        self._is_searching = name == SEARCHING
        super().phase(name, total)
        if self._is_searching and self.task is not None:
            self.progress.update(self.task, description="Trials")

    def on_step(self, info: StepInfo) -> None:
        """How far the trial in hand is."""
        if not self._is_searching:
            super().on_step(info)
        elif self.task is not None:
            self.progress.update(self.task, note=f"step {info.step} of {info.steps}  {self._note(info)}")

    def on_validation(self, info: ValidationInfo) -> None:
        """Told with the trial, when it has ended."""


def show_search(record: dict[str, Any], folder: Path) -> None:
    """The best trials as a table, the settings of those on the line, then where everything lies."""
    console = Console()

    def say(sentence: str) -> None:
        console.print(plain(sentence), markup=False, highlight=False, soft_wrap=True)

    in_money = record["price_per_hour_usd"] is not None
    figures = ["score", "log loss", "epochs", "time", *(["USD"] if in_money else [])]
    table = Table("trial", "method", *(Column(name, justify="right") for name in figures), "")
    ranked = _best_first(record)
    for one in ranked[:MOST_SHOWN]:
        table.add_row(*_row(one, record, in_money=in_money))
    console.print(table)
    say("Trials marked * are cheaper than every better one:")
    for one in ranked:
        if one["number"] == record["best"] or one["number"] in record["pareto"]:
            say(f"  {one['number']}: {_settings(one, record)}")
    run = read_run(folder / "best")
    for sentence in _sentences(record, run, folder):
        say(sentence)


def _best_first(record: dict[str, Any]) -> list[dict[str, Any]]:
    order = {"complete": 0, "pruned": 1}
    return sorted(
        record["trials"],
        key=lambda one: (
            one["number"] != record["best"],
            order.get(one["state"], 2),
            -(one["score"] or 0.0),
            one["number"],
        ),
    )


def _row(one: dict[str, Any], record: dict[str, Any], *, in_money: bool) -> list[str]:
    score = (
        one["score"] if one["state"] == "complete" else one["looks"][-1]["score"] if one["looks"] else None
    )
    mark = " *" if one["number"] in record["pareto"] else ""
    state = {"complete": "", "pruned": "ended early"}.get(one["state"], one["state"])
    return [
        f"{one['number']}{mark}", str(one["method"]),
        "-" if score is None else f"{score:.4f}",
        "-" if one["log_loss"] is None else f"{one['log_loss']:.4f}",
        "-" if one["epochs"] is None else f"{one['epochs']:g}",
        "-" if one["seconds"] is None else duration(one["seconds"]),
        *(["-" if one["usd"] is None else f"{one['usd']:.2f}"] if in_money else []),
        "best" if one["number"] == record["best"] else state,
    ]  # fmt: skip


def _settings(one: dict[str, Any], record: dict[str, Any]) -> str:
    from snugtune.scale.space import changed_settings, told

    changed = changed_settings(one["settings"], record["space"][one["method"]])
    return ", ".join(f"{name} {told(value)}" for name, value in changed) or "the default settings"


def _sentences(record: dict[str, Any], run: dict[str, Any], folder: Path) -> list[str]:
    cost = record["cost"]
    took = duration(cost["seconds"])
    if cost["usd"] is not None:
        took += f", {cost['usd']:.2f} USD"
    if cost["allowed"] is not None:
        took += f", of {cost['allowed']}"
    part = "test" if "test" in run["metrics"] else "validation"
    ours, theirs = (one["metrics"][part].get(record["metric"]) for one in (run, run["baseline"]))
    found = [] if ours is None else [
        f"On {part}, as it is saved, trial {record['finished']} has {record['metric']} {ours:.4f}; the "
        f"TF-IDF baseline {theirs:.4f}."
    ]  # fmt: skip
    found.append(
        f"The search took {took}. {cost_sentences(run)[0]}".replace("It took", "The winner's own share:")
    )
    if record["noise"]:
        rows = record["rows"]["validation"]
        found.append(
            f"A score on {rows:,} validation texts is off by more than {record['noise']:.3f} by chance "
            "alone in one case of three: smaller differences between trials say little."
        )
    return [
        *found,
        f"The winner's run is {folder / 'best'}; all trials, for a browser: {folder / 'search.html'}.",
    ]
