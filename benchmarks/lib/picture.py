"""The picture on the front page, drawn from the newest time-to-quality result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snugtune.files import replacing

from .common import REPOSITORY

PICTURE = REPOSITORY / "docs" / "images" / "time-to-quality.png"

OURS, OTHERS = "#0b6e4f", ["#b3541e", "#6b7a8f", "#8e6bbf"]


def draw(result: dict[str, Any], path: Path = PICTURE) -> None:
    """Accuracy on the test file over seconds of work, one line a contestant, time on a log scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(8, 4), dpi=150)
    others = iter(OTHERS)
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
    axes.set_xlim(left=10)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%d"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_ylim(0, 1)
    axes.set_xlabel("seconds of work (log scale)")
    axes.set_ylabel("accuracy on the test file")
    where = f"{result['hardware']['cores']} CPU cores, {result['date']}"
    axes.set_title(f"Banking77, MiniLM, {where}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    pyplot.close(figure)
