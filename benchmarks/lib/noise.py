"""The section of the page on labels flipped at random."""

from __future__ import annotations

from typing import Any

from .tables import percent, spread, table


def label_noise(result: dict[str, Any]) -> list[str]:
    """How many flipped labels are ranked first, and how many are suspected, by data and method."""
    settings = result["settings"]
    rows = [
        [
            name, method, f"{found['flipped_rows']:,} of {found['rows']:,}",
            *(
                spread(scores[key], 1, scale=100, unit=" %")
                for key in ("recall_looked_at", "precision_at_flipped", "suspected_share",
                            "suspected_precision", "suspected_recall", "suggestion_right")
            ),
            spread(scores["seconds"], 0, unit=" s"),
        ]
        for name, found in result["data"].items()
        for method, scores in found["methods"].items()
    ]  # fmt: skip
    columns = [
        "data", "judged by", "labels flipped", f"found in the first {percent(result['looked_at'], 0)}",
        "precision at the number flipped", "suspected", "precision of suspects", "recall of suspects",
        "suggestion right", "time",
    ]  # fmt: skip
    return [
        f"{percent(settings['flipped'], 0)} of the training labels replaced by others at random, "
        f"{settings['seeds']} draws; MiniLM reads {settings['max_length']} tokens of each text. Labels that "
        "were wrong before count as right, so precision is a lower bound.",
        "",
        *table(columns, rows),
    ]
