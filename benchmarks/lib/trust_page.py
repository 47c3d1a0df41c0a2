"""The section of the page on calibration and promised precision."""

from __future__ import annotations

from typing import Any

from .tables import table

QUALITY = ("data", "how it was trained", "validation rows", "test rows", "accuracy", "macro-F1", "ECE before",
           "ECE after", "against TF-IDF + linear")  # fmt: skip
PROMISES = ("data", "promised precision", "coverage on test", "precision there", "baseline's coverage",
            "its precision", "kept in draws", "mean coverage in draws", "baseline's", "verdict")  # fmt: skip


def trust(result: dict[str, Any]) -> list[str]:
    """Calibration of finished runs, and what was promised and kept on the test file and in draws."""
    resplits, runs = result["settings"]["resplits"], result["runs"]
    promises = [_promise(name, run, target) for name, run in runs.items() for target in run["resplits"]]
    return [
        "Finished runs with a test file. Pool, calibration and threshold come from validation rows alone. "
        "ECE has 15 bins, before: the model's own softmax.",
        "",
        *table(QUALITY, [_quality(name, run) for name, run in runs.items()]),
        "",
        "The share that needs no review at the precision promised, and what was right of it. Validation "
        f"rows are then drawn anew {resplits} times, with replacement, of all held-out rows: how often the "
        "promise was kept (promised: in 90 % of the draws; nothing left to the model counts as kept).",
        "",
        *table(PROMISES, promises),
    ]


def _quality(name: str, run: dict[str, Any]) -> list[str]:
    test, ece = run["test"], run["ece"]
    settings = ", ".join(f"{key} {value}" for key, value in run["trained_with"].items()) or "default settings"
    scores = (test["accuracy"], test["f1_macro"], ece["model"], ece["calibrated"])
    rows = (f"{run['rows'][part]:,}" for part in ("validation", "test"))
    compared = run["targets"]["0.95"]["verdict"]["against_baseline"]
    return [name, settings, *rows, *(f"{score:.3f}" for score in scores), compared]


def _promise(name: str, run: dict[str, Any], target: str) -> list[str]:
    found, draws = run["targets"][target], run["resplits"][target]
    model, baseline = found["test"], found["baseline"]["test"]
    return [
        name, f"{100 * float(target):g} %", _percent(model["coverage"]), _percent(model["precision"]),
        _percent(baseline["coverage"]), _percent(baseline["precision"]), _percent(draws["model"]["kept"]),
        _percent(draws["model"]["mean_coverage"]), _percent(draws["baseline"]["mean_coverage"]),
        found["verdict"]["level"].replace("_", " "),
    ]  # fmt: skip


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
