"""The sections of the page on fewer labels: which to give next, and how few will do."""

from __future__ import annotations

from typing import Any

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
         spread_cell(of.get("cpu_s"), 0)]
        for shots, ways in result["shots"].items()
        for name, of in ways.items()
    ]  # fmt: skip
    published = [f"- {said}: {accuracy:.3f} ({source})." for said, accuracy, source in FEW_SHOT_SOURCES]
    return [
        f"Banking77, its test file, MiniLM, the same rows for everyone, {settings['threads']} threads; CPU "
        "seconds, where they were noted, are those of the whole process, scoring of the test file included.",
        "",
        *table(["rows", "", "accuracy", "draws", "CPU seconds"], rows),
        "",
        "Published by others on the same test file, with other rows and, but for the second, another model:",
        "",
        *published,
    ]


def near_duplicates(result: dict[str, Any]) -> list[str]:
    """Rows and scores of a probe with and without near-duplicates of the same label."""
    rows = [
        [name, way, f"{of['rows']:,}", f"{of['accuracy']:.3f}", f"{of['f1_macro']:.3f}"]
        for name, found in result["data"].items()
        for way, of in found["ways"].items()
    ]
    return [
        "A logistic regression on MiniLM's frozen features, scored on the test file; the time of a training "
        "is in proportion to the rows.",
        "",
        *table(["data", "learned from", "rows", "accuracy", "macro-F1"], rows),
    ]
