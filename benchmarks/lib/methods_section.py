"""The section of the page on PEFT's methods: score, what is trained, memory, time, size."""

from __future__ import annotations

from typing import Any

from snugtune.units import duration

from .tables import table

COLUMNS = (
    "method", "learning rate", "validation rows", "test: accuracy", "macro-F1", "trained parameters",
    "peak memory: predicted", "measured", "training", "saved",
)  # fmt: skip


def methods(result: dict[str, Any]) -> list[str]:
    """A row for each method; without a whole fit, what its best rate reached on validation rows."""
    settings = result["settings"]
    rows = [
        [name, f"{found['rate']:g}", f"{_best(found)['score']:.3f}", *_fit(found)]
        for name, found in result["methods"].items()
    ]
    whole = f" Then one whole fit of {settings['epochs']:g} epochs each." if settings["test"] else ""
    return [
        f"MiniLM on {settings['data']}. Each method's learning rate was chosen on validation rows, after "
        f"{settings['rate_epochs']:g} {'epoch' if settings['rate_epochs'] == 1 else 'epochs'} of "
        f"{settings['rows']:,} training rows.{whole} The baseline is "
        "not mixed in.",
        "",
        *table(COLUMNS, rows),
    ]


def _best(found: dict[str, Any]) -> dict[str, Any]:
    """What the chosen rate reached on validation rows."""
    tried: dict[str, Any] = found["tried"][f"{found['rate']:g}"]
    return tried


def _fit(found: dict[str, Any]) -> list[str]:
    if "error" in found:
        return [found["error"], *[""] * 6]
    if "accuracy" not in found:
        return ["", "", f"{_best(found)['trainable']:,}", "", "", "", ""]
    return [
        f"{found['accuracy']:.3f}", f"{found['f1_macro']:.3f}", f"{found['trainable']:,}",
        f"{found['predicted_peak_gib']:.2f} GiB", f"{found['measured_peak_gib']:.2f} GiB",
        duration(found["train_s"]), f"{found['saved_bytes'] / 2**20:.2f} MiB",
    ]  # fmt: skip
