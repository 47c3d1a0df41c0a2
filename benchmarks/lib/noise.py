"""The section of the page on labels flipped at random."""

from __future__ import annotations

from typing import Any

from .tables import spread_cell, table

COLUMNS = {
    "recall_looked_at": "found in the first {looked_at:.0%} of the list",
    "precision_at_flipped": "precision at the number flipped",
    "suspected_share": "suspected",
    "suspected_precision": "precision of suspects",
    "suspected_recall": "recall of suspects",
    "suggestion_right": "suggestion right",
}


def label_noise(result: dict[str, Any]) -> list[str]:
    """How many flipped labels are ranked first, and how many are suspected, by data and method."""
    settings = result["settings"]
    named = [title.format(looked_at=result["looked_at"]) for title in COLUMNS.values()]
    columns = ["data", "judged by", "labels flipped", *named, "seconds"]
    rows = [
        [
            name,
            method,
            f"{found['flipped_rows']:,} of {found['rows']:,}",
            *(spread_cell(scores[key], 1, scale=100) for key in COLUMNS),
            spread_cell(scores["seconds"], 0),
        ]
        for name, found in result["data"].items()
        for method, scores in found["methods"].items()
    ]
    return [
        f"{settings['flipped']:.0%} of the training labels replaced by others at random, {settings['seeds']} "
        "draws; shares in per cent, median (smallest to largest). MiniLM reads "
        f"{settings['max_length']} tokens of each text. Labels that were wrong before count as right, so "
        "precision is a lower bound.",
        "",
        *table(columns, rows),
    ]
