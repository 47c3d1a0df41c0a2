"""The sections of the page on fewer labels: which to give next, and how few will do."""

from __future__ import annotations

from typing import Any

from snugtune.units import duration

from .tables import spread_cell, table

FEW_SHOT_SOURCES = (
    ("SetFit, paraphrase-distilroberta-base-v2, its author's model card: 25 texts a class", 0.8529,
     "https://huggingface.co/nickprock/setfit-banking77"),
    ("frozen all-MiniLM-L6-v2 and logistic regression, MTEB: 8 texts a class, mean of 10 draws", 0.7975,
     "https://huggingface.co/datasets/mteb/results"),
)  # fmt: skip
"""What others published on Banking77's test file."""


def active(result: dict[str, Any]) -> list[str]:
    """Accuracy on the test file by labels spent, for each strategy."""
    settings = result["settings"]
    lines = [
        f"Labels revealed in rounds of as many as all before, MiniLM reads {settings['max_length']} tokens "
        "of each text once; accuracy on the test file of the logistic regression that `snugtune select` "
        f"fits, median (smallest to largest) of {settings['seeds']} draws. `margin` and `badge` begin with a "
        "round at random. Where typical texts give way to `badge` was chosen on training rows that were in "
        "no pool, by the last column: their accuracy, averaged over the rounds.",
        "",
    ]
    for name, found in result["data"].items():
        spent = list(next(iter(found["strategies"].values())))
        rows = [
            [
                strategy,
                *(spread_cell(curve[n]["test"], 3) for n in spent),
                f"{found['switch'][strategy]:.4f}",
            ]
            for strategy, curve in found["strategies"].items()
        ]
        counts = [f"{int(n):,} labels" for n in spent]
        lines += [
            f"{name}: {found['classes']} classes, {found['pool_rows']:,} texts in the pool.",
            "",
            *table(["strategy", *counts, "held-out rows"], rows),
            "",
        ]
    return [*lines, "![Accuracy by labels spent](images/active.png)"]


def few_shot(result: dict[str, Any]) -> list[str]:
    """Accuracy and time with few texts a class: ours, SetFit beside it, and what others published."""
    settings = result["settings"]
    rows = [
        [f"{shots} texts a class", name, spread_cell(of["accuracy"], 3), str(of["accuracy"]["n"]),
         duration(of["seconds"]["median"])]
        for shots, ways in result["shots"].items()
        for name, of in ways.items()
    ]  # fmt: skip
    published = [f"- {said}: {accuracy:.3f} ({source})." for said, accuracy, source in FEW_SHOT_SOURCES]
    return [
        f"Banking77, its test file, MiniLM, the same rows for everyone, {settings['threads']} threads; the "
        "time is that of the whole command for ours, and of SetFit's work without loading and scoring.",
        "",
        *table(["rows", "", "accuracy", "draws", "time"], rows),
        "",
        "Published by others on the same test file, with other rows and, but for the second, another model:",
        "",
        *published,
    ]
