"""What predicted peaks consist of, as stacked bars against what the devices have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snugtune.errors import UserInputError
from snugtune.files import replacing
from snugtune.memory import plan as plans_
from snugtune.memory.plan import Plan

SUFFIXES = (".svg", ".png", ".pdf")

GROUPS = {
    "weights": ("weights", "best weights so far"),
    "gradients and optimiser state": ("gradients", "optimiser state", "update temporaries"),
    "activations: linear layers": ("activations: linear",),
    "activations: element-wise": (
        "activations: element-wise", "activations: non-linearity", "activations: dropout",
        "activations: embedding",
    ),
    "activations: attention": ("activations: attention",),
    "activations: casts and norms": ("activations: casts", "activations: normalisation"),
    "backward, evaluation, inputs": ("backward temporaries", "workspaces", "evaluation", "inputs"),
    "context, libraries, allocator": (
        plans_.CONTEXT, plans_.PROCESS, plans_.ROUNDING, plans_.CORRECTION,
    ),
}  # fmt: skip
"""Parts of a peak that are drawn together, bottom to top; activations in one family of colours."""

COLOURS = ("#33415c", "#8e6bbf", "#0b6e4f", "#3a9a76", "#79c2a4", "#b9e0cf", "#d9a441", "#b8bec8")
RED = "#b3261e"

IN_SIGHT = 1.4
"""Capacities up to so many times the highest bar are drawn; others are told in numbers alone."""


@dataclass(frozen=True)
class Bar:
    """One configuration: its name, its parts in GiB, whether it is the plan, and whether it fits."""

    name: str
    parts: dict[str, float]
    chosen: bool
    fits: bool
    capacity_gib: float


def bars(plans: Sequence[Plan]) -> list[Bar]:
    """A bar for each device, or, for a single one, one for each configuration that was looked at."""
    found = [
        Bar(_plan_name(one), grouped(one.composition), True, one.fits, one.capacity_gib) for one in plans
    ]
    if len(plans) == 1:
        (one,) = plans
        found += [
            Bar(
                _alternative_name(o.levers, o.micro_batch),
                grouped(o.composition),
                False,
                o.fits,
                one.capacity_gib,
            )
            for o in one.alternatives
            if o.composition
        ]
    return found


def grouped(composition: dict[str, float]) -> dict[str, float]:
    """A composition in the groups that are drawn; a part of no group joins the last but one."""
    home = {part: group for group, parts in GROUPS.items() for part in parts}
    sums = dict.fromkeys(GROUPS, 0.0)
    for part, size in composition.items():
        sums[home.get(part, "backward, evaluation, inputs")] += size
    return sums


def draw_peaks(plans: Sequence[Plan], path: Path, *, title: str) -> None:
    """Write the picture to ``path``; the suffix chooses the format.

    Raises:
        UserInputError: another suffix, matplotlib is not installed, or the file cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserInputError(f"--picture must end in {', '.join(SUFFIXES)}, not {path.name!r}.")
    try:
        import matplotlib
    except ImportError:
        raise UserInputError("--picture needs matplotlib: pip install 'snugtune[plots]'.") from None
    # No date and no random ids: the same plan gives the same file.
    matplotlib.use("Agg")
    settings = {"svg.hashsalt": "snugtune", "svg.fonttype": "none", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings), replacing(path) as temporary:
        figure = _figure(bars(plans), title)
        suffix = path.suffix.lower().removeprefix(".")
        metadata = {"Date": None} if suffix == "svg" else None
        figure.savefig(temporary, format=suffix, metadata=metadata, bbox_inches="tight")


def _figure(found: list[Bar], title: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.5 + 0.42 * len(found)), dpi=150, layout="constrained")
    axes = figure.subplots()
    heights = list(range(len(found)))[::-1]
    left = [0.0] * len(found)
    for group, colour in zip(GROUPS, COLOURS, strict=True):
        sizes = [max(bar.parts[group], 0.0) for bar in found]
        axes.barh(heights, sizes, left=left, height=0.62, color=colour, label=group)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    in_sight = IN_SIGHT * max(left, default=1.0)
    for bar, height, total in zip(found, heights, left, strict=True):
        _mark(axes, bar, height, total, in_sight)
    axes.set_yticks(heights, [bar.name for bar in found], fontsize=8)
    axes.set_xlim(0, 1.1 * in_sight)
    is_marked = any(bar.capacity_gib <= in_sight for bar in found)
    marked = "; the red line is what the device has" if is_marked else ""
    axes.set_xlabel(f"GiB at the predicted peak{marked}", fontsize=8)
    axes.set_title(title, fontsize=10, loc="left")
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(frameon=False, fontsize=7.5, ncols=4, loc="outside lower left")
    return figure


def _mark(axes: Any, bar: Bar, height: int, total: float, in_sight: float) -> None:
    """The total beside a bar, and the device's capacity across it where that is in sight."""
    beyond = bar.capacity_gib > in_sight
    told = f"{total:.2f} of {bar.capacity_gib:.2f} GiB" + ("" if bar.fits else ": does not fit")
    axes.annotate(
        told, (total if beyond else max(total, bar.capacity_gib), height), xytext=(5, 0),
        textcoords="offset points", va="center", fontsize=8, fontweight="bold" if bar.chosen else "normal",
        color="black" if bar.fits else RED,
    )  # fmt: skip
    if not beyond:
        axes.plot([bar.capacity_gib] * 2, [height - 0.4, height + 0.4], color=RED, linewidth=1.6)


def _plan_name(one: Plan) -> str:
    return f"{one.name}: {one.micro_batch or 1} x {one.length}"


def _alternative_name(levers: tuple[str, ...], micro_batch: int) -> str:
    named = "; ".join(levers) or "no lever"
    return f"{micro_batch or 1} at a time, {named if len(named) < 60 else '... ' + levers[-1]}"
