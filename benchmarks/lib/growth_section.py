"""The page's section on how work grows with the rows."""

from __future__ import annotations

from typing import Any

from .tables import table


def growth(result: dict[str, Any]) -> list[str]:
    """Seconds of each step and memory beyond the model, by the number of rows."""
    sizes, settings = result["sizes"], result["settings"]
    works = [name for name in next(iter(sizes.values())) if name != "megabytes"]
    columns = ["step", *(f"{int(rows):,} rows" for rows in sizes), "slope"]
    seconds = [
        [step, *(f"{of[work]['seconds'][step]:.1f} s" for of in sizes.values()), _slope(result, step)]
        for work in works
        for step in next(iter(sizes.values()))[work]["seconds"]
    ]
    memory = [
        [work, *(f"{of[work]['memory']['grown_gib']:.2f} GiB" for of in sizes.values())] for work in works
    ]
    megabytes = ", ".join(f"{of['megabytes']:.0f}" for of in sizes.values())
    return [
        f"A generated table (mean {settings['words']:g} words a text, {megabytes} MB) and a model of one "
        f"layer, {settings['threads']} threads. Slopes are fitted on logarithmic axes from "
        f"{settings['slope_from']:,} rows up: 1 is linear, up to {result['linear_up_to']:g} is called so. "
        "Prediction and evaluation read the table twice, batch by batch; prediction writes it.",
        "",
        "![Seconds and memory over rows](images/growth.png)",
        "",
        *table(columns, seconds),
        "",
        f"Most memory beyond the loaded model (the goal is under {result['limit_gib']:g} GiB):",
        "",
        *table(columns[:-1], memory),
    ]


def _slope(result: dict[str, Any], step: str) -> str:
    value = result["slopes"][step]
    return "" if value is None else f"{value:.2f}"
