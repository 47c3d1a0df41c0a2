"""``snugtune watch``."""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snugtune.cli import completion
from snugtune.errors import SnugtuneError, UserInputError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from snugtune.train.live import Live, Watcher

INTERVAL_S = 0.5

PATIENCE_S = 120.0
"""For the next process of a supervised run, which may wait for memory before it starts."""

GRACE_S = 2.0
"""Between the last look at the folder being written and the first at the finished one."""

BARS = "▁▂▃▄▅▆▇█"

SHOWN_SENTENCES, SHOWN_LOOKS = 5, 6


def watch(
    run: Annotated[
        Path, typer.Argument(autocompletion=completion.runs, help="The run folder, as given to fit --out.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print the state now as JSON, and end.")] = False,
) -> None:
    """Follow a run that trains in another window, until it is complete."""
    from rich.console import Console

    from snugtune.train.live import Watcher

    watcher = Watcher(run)
    if not (watcher.is_at_work or watcher.is_complete):
        raise UserInputError(
            f"There is no run {run}, and none is being written there; start one with fit --out."
        )
    if json:
        state = {"complete": watcher.is_complete, **watcher.live.as_dict()}
        typer.echo(json_module.dumps(state, ensure_ascii=False))
        return
    console = Console()
    (_draw if console.is_terminal else _tell)(console, watcher)
    if not watcher.is_complete:
        raise SnugtuneError(f"The process that wrote {run} is gone, and the run is not complete.")
    console.print(f"The run is complete; everything lies in {run}.", markup=False, highlight=False)


def _states(watcher: Watcher) -> Iterable[Live]:
    """The state every half second until the run is complete, or nobody works at it any more."""
    alone_since: float | None = None
    while True:
        has_writer, at_work = watcher.has_writer, watcher.is_at_work
        watcher.look()
        yield watcher.live
        if watcher.is_complete and not at_work:
            return
        alone_since = None if has_writer else alone_since or time.monotonic()
        patience = PATIENCE_S if at_work else GRACE_S
        if alone_since is not None and time.monotonic() - alone_since > patience:
            return
        time.sleep(INTERVAL_S)


def _draw(console: Console, watcher: Watcher) -> None:
    from rich.live import Live as Screen

    with Screen(console=console, auto_refresh=False) as screen:
        for live in _states(watcher):
            screen.update(view(live, console.width), refresh=True)


def _tell(console: Console, watcher: Watcher) -> None:
    """Into a pipe or a file: sentences and looks at validation, a line each."""
    sentences = looks = 0
    for live in _states(watcher):
        lines = [*live.sentences[sentences:], *map(_look, live.looks[looks:])]
        sentences, looks = len(live.sentences), len(live.looks)
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def view(live: Live, width: int) -> RenderableType:
    """The whole picture."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [_figures(live)]
    if live.losses:
        parts.append(Text(f"loss      {sparkline(live.losses, max(10, width - 24))} {live.losses[-1]:.4f}"))
    if len(live.looks) > 1:
        scores = [look["eval_score"] for look in live.looks]
        parts.append(Text(f"validated {sparkline(scores, max(10, width - 24))} {scores[-1]:.4f}"))
    parts += [Text(_look(look)) for look in live.looks[-SHOWN_LOOKS:]]
    parts += [Text(sentence, style="dim") for sentence in live.sentences[-SHOWN_SENTENCES:]]
    return Group(*parts)


def _figures(live: Live) -> Table:
    from rich.table import Table

    from snugtune.cli.render import PHASES
    from snugtune.units import duration

    table = Table("phase", "step", "learning rate", "peak memory", "trained for", "left")
    phase = PHASES.get(live.phase or "", live.phase or "starting")
    if live.total and live.phase != "train":
        phase += f", {live.done:,} of {live.total:,}"
    left = live.remaining_s if live.phase == "train" else None
    table.add_row(
        phase,
        "-" if live.steps is None else f"{live.step:,} of {live.steps:,}",
        "-" if live.learning_rate is None else f"{live.learning_rate:.2e}",
        "-" if live.peak_gib is None else f"{live.peak_gib:.2f} GiB",
        "-" if not live.step else duration(live.elapsed_s),
        "-" if left is None else duration(left),
    )
    return table


def _look(look: dict[str, Any]) -> str:
    mark = "  best so far" if look["best"] else ""
    return (
        f"Epoch {look['epoch']:.1f}: validation score {look['eval_score']:.4f}, "
        f"log loss {look['eval_loss']:.4f}{mark}"
    )


def sparkline(values: list[float], width: int) -> str:
    """``values`` as at most ``width`` bars between the lowest and the highest, each the mean of its share."""
    n = min(width, len(values))
    edges = [len(values) * i // n for i in range(n + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)
