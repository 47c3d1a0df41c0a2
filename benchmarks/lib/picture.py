"""The pictures of the front page and the benchmark page, drawn from the newest results of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from snugtune.files import replacing

from .common import REPOSITORY

IMAGES = REPOSITORY / "docs" / "images"

OURS, OTHERS = "#0b6e4f", ["#b3541e", "#6b7a8f", "#8e6bbf", "#c29b2f"]


def draw_all(results: Sequence[dict[str, Any]], folder: Path = IMAGES) -> list[Path]:
    """The pictures there are results for; returns their paths."""
    drawn = []
    for result in results:
        if result.get("benchmark") in PICTURES and not result["hardware"]["gpu"]:
            drawn.append(folder / f"{result['benchmark']}.png")
            PICTURES[result["benchmark"]](result, drawn[-1])
    return drawn


def accuracy_over_time(result: dict[str, Any], path: Path) -> None:
    """Accuracy on the test file over seconds of work, one line a contestant, time on a log scale."""
    figure, axes = _figure(8, 4)
    others = iter(OTHERS)
    first = min(point["work_s"] for line in result["contestants"].values() for point in line["points"])
    for name, line in result["contestants"].items():
        seconds = [point["work_s"] for point in line["points"]]
        accuracy = [point["accuracy"] for point in line["points"]]
        ours = name == "ours"
        axes.plot(
            seconds, accuracy, "o-", markersize=3 if len(seconds) > 1 else 6, linewidth=2,
            color=OURS if ours else next(others), label="snugtune" if ours else name,
        )  # fmt: skip
    target = result["settings"]["target"]
    axes.axhline(target, color="black", linewidth=0.8, linestyle=":")
    axes.annotate(f"target {target:g}", (1.0, target), xycoords=("axes fraction", "data"), xytext=(-4, 3),
                  textcoords="offset points", ha="right", fontsize=8)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(left=min(10, first / 1.3))
    _plain_numbers(axes.xaxis)
    axes.set_ylim(0, 1)
    axes.set_xlabel("seconds of work (log scale)")
    axes.set_ylabel("accuracy on the test file")
    axes.set_title(f"Banking77, MiniLM, {_where(result)}", fontsize=10)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    _save(figure, path)


def ladder(result: dict[str, Any], path: Path) -> None:
    """A bar of real tokens a second for each rung, from the recipe down to ours, with each lever's gain."""
    rungs = result["rungs"]
    figure, axes = _figure(8, 0.7 + 0.42 * len(rungs))
    speeds = [rung["tokens_per_s"]["median"] for rung in rungs]
    last = len(rungs) - 1
    colors = [OTHERS[1] if i == 0 else OURS if i == last else "#5aa587" for i in range(len(rungs))]
    axes.barh(range(len(rungs)), speeds, color=colors)
    for i, rung in enumerate(rungs):
        step = f"  {speeds[i]:,.0f}"
        if rung["step"]:
            step += f"  ({rung['step']['median']:.2f}x{'' if rung['pays'] else ', for memory'})"
        axes.annotate(step, (speeds[i], i), va="center", fontsize=8)
    axes.set_yticks(range(len(rungs)), [rung["name"] for rung in rungs], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 * max(speeds))
    axes.set_xlabel("real tokens per second in training")
    axes.set_title(f"One lever at a time, {_where(result)}", fontsize=10)
    _save(figure, path)


def growth(result: dict[str, Any], path: Path) -> None:
    """Seconds of preparation, prediction and evaluation over rows, and their memory beyond the model."""
    figure, (left, right) = _figure(9, 3.8, columns=2)
    sizes = result["sizes"]
    rows = [int(n) for n in sizes]
    for name, color in zip(("preparation", "prediction", "evaluation"), (OURS, *OTHERS), strict=False):
        seconds = [sum(of[name]["seconds"].values()) for of in sizes.values()]
        left.plot(rows, seconds, "o-", color=color, label=name, markersize=4)
        right.plot(
            rows, [of[name]["memory"]["grown_gib"] for of in sizes.values()], "o-", color=color, markersize=4
        )
    left.set_yscale("log")
    _plain_numbers(left.yaxis)
    left.set_ylabel("seconds")
    left.legend(frameon=False, fontsize=9)
    right.axhline(result["limit_gib"], color="black", linewidth=0.8, linestyle=":")
    right.annotate(
        "goal", (rows[0], result["limit_gib"]), xytext=(0, 3), textcoords="offset points", fontsize=8
    )
    right.set_ylim(0, 1.15 * result["limit_gib"])
    right.set_ylabel("GiB beyond the model")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("rows")
    figure.suptitle(f"From a thousand rows to a million, {_where(result)}", fontsize=10)
    _save(figure, path)


def active(result: dict[str, Any], path: Path) -> None:
    """Accuracy on the test file over labels spent, a panel for each data set, a line for each strategy."""
    data = result["data"]
    figure, panels = _figure(4.5 * len(data), 3.8, columns=len(data))
    named = {"random": OTHERS[1], "margin": OTHERS[3], "badge": OTHERS[0], "typicality": OTHERS[2]}
    mixed = [plan for plan in next(iter(data.values()))["switch"] if plan not in named]
    # The switch that held-out rows of all data sets together like best.
    best = max(mixed, key=lambda plan: sum(found["switch"][plan] for found in data.values()))
    for axes, (name, found) in zip(panels if len(data) > 1 else [panels], data.items(), strict=True):
        for plan in (*named, best):
            curve = found["strategies"][plan]
            spent = [int(n) for n in curve]
            axes.plot(
                spent, [of["test"]["median"] for of in curve.values()], "o-", markersize=4, linewidth=2,
                color=named.get(plan, OURS), label=plan,
            )  # fmt: skip
            lows, highs = ([of["test"][end] for of in curve.values()] for end in ("min", "max"))
            axes.fill_between(spent, lows, highs, color=named.get(plan, OURS), alpha=0.12, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(spent, [f"{n:,}" for n in spent])
        axes.minorticks_off()
        axes.set_xlabel("labels spent (log scale)")
        axes.set_ylabel("accuracy on the test file")
        axes.set_title(f"{name}, {found['classes']} classes", fontsize=10)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    _save(figure, path)


PICTURES: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "time-to-quality": accuracy_over_time,
    "peers": accuracy_over_time,
    "ladder": ladder,
    "growth": growth,
    "active": active,
}


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(width, height), dpi=150)
    for one in axes if columns > 1 else [axes]:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plain_numbers(axis: Any) -> None:
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
    axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _where(result: dict[str, Any]) -> str:
    return f"{result['hardware']['cores']} CPU cores, {result['date']}"


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    pyplot.close(figure)
