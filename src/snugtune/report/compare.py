"""Finished runs side by side: what differs in them, and whether their scores differ by more than noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import fisher_exact

from snugtune.data.label_sets import split_cell
from snugtune.data.labels import LabelSet
from snugtune.data.readers.parquet import check_parquet
from snugtune.errors import UserInputError
from snugtune.evaluate.metrics import wilson_interval
from snugtune.evaluate.multilabel.verdict import compare_sets
from snugtune.evaluate.verdict import SIGNIFICANCE, compare
from snugtune.report.damage import told_of_record

SHARED_SHARE = 0.5
"""Of the smaller test: with fewer rows in common, all rows unpaired say more than those few paired."""

NOT_SETTINGS = {"price_per_hour_usd", "predictions_per_month", "track"}
"""Settings that make no difference to a run."""

FILES = ("train", "test", "sheet", "test_sheet")
"""Settings by which runs read the same rows under the same numbers."""

SCORES = ("accuracy", "f1_macro", "f1_weighted", "log_loss", "ece")


@dataclass(frozen=True)
class FinishedRun:
    """A run's folder, what it is called here, its ``run.json``, and its predictions if they are there."""

    folder: Path
    name: str
    record: dict[str, Any]
    predictions: pl.DataFrame | None

    def scored(self, part: str) -> pl.DataFrame | None:
        """Rows of ``part`` whose label training knew; None without a table of predictions."""
        if self.predictions is None:
            return None
        rows = self.predictions.filter((pl.col("part") == part) & pl.col("label").is_not_null())
        return rows if "predicted_label" in rows.columns else None


def compare_runs(folders: Sequence[str | Path]) -> dict[str, Any]:
    """The runs in ``folders``, each after the first against the first; JSON-ready.

    Scores are those on the test part where all have one, else on validation. Where two runs were tested on
    the same texts, the difference of accuracy is tested by McNemar's exact test, row by row; else by Fisher's
    exact test of the two shares. With several comparisons, p-values are put right by Holm's method.

    Raises:
        UserInputError: fewer than two runs, one twice, or a folder that holds no finished run.
    """
    runs = _read_runs([Path(folder) for folder in folders])
    with told_of_record(", ".join(run.name for run in runs)):
        return _compared(runs)


def _compared(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    part = "test" if all("test" in run.record["metrics"] for run in runs) else "validation"
    found = [_difference(runs[0], run, part) for run in runs[1:]]
    p_values = holm([one["accuracy"]["p_value"] for one in found])
    for one, p_value in zip(found, p_values, strict=True):
        one["accuracy"]["p_value_adjusted"] = p_value
        one["verdict"] = _verdict(one["accuracy"]["difference"], p_value)
        one["sentence"] = _sentence(one)
    return {
        "part": part,
        "runs": [_row(run, part) for run in runs],
        "settings": _differing([run.record.get("config", {}) for run in runs], without=NOT_SETTINGS),
        "versions": _differing([run.record.get("versions", {}) for run in runs]),
        "data": _differing([run.record.get("data", {}).get("rows", {}) for run in runs]),
        "differences": found,
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979, 65-70)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[int(i)] = largest
    return adjusted


def _read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    if len(folders) < 2:
        raise UserInputError("Give at least two run folders to compare.")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserInputError("A run folder is given twice; name different runs.")
    short = [folder.resolve().name for folder in folders]
    named = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    return [_read_run(folder, name) for folder, name in zip(folders, named, strict=True)]


def _read_run(folder: Path, name: str) -> FinishedRun:
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if not {"metrics", "config"} <= set(record):
            raise ValueError
    except (OSError, ValueError, TypeError, RecursionError):
        raise UserInputError(
            f"{folder} holds no finished run (no readable run.json); give the folder that fit wrote."
        ) from None
    table = folder / "predictions.parquet"
    try:
        if table.exists():
            check_parquet(table)
        predictions = pl.read_parquet(table) if table.exists() else None
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        raise UserInputError(f"{table} cannot be read; it is damaged or not a Parquet file.") from None
    return FinishedRun(folder, name, record, predictions)


def _row(run: FinishedRun, part: str) -> dict[str, Any]:
    """What is shown of one run."""
    record, metrics = run.record, run.record["metrics"][part]
    return {
        "name": run.name,
        "folder": str(run.folder),
        "rows": metrics["rows"],
        **{score: metrics.get(score) for score in SCORES},
        "intervals": metrics.get("intervals", {}),
        "baseline_accuracy": record.get("baseline", {}).get("metrics", {}).get(part, {}).get("accuracy"),
        "trainable_parameters": record.get("parameters", {}).get("trainable"),
        "best_step": record.get("training", {}).get("best_step"),
        "peak_gib": record.get("memory", {}).get("measured_peak_gib"),
        "total_s": record.get("time", {}).get("total_s"),
        "usd": record.get("cost", {}).get("usd"),
    }


def _differing(
    given: Sequence[dict[str, Any]], without: set[str] | frozenset[str] = frozenset()
) -> dict[str, list[Any]]:
    """The entries that are not the same in all, with each one's value (None where it has none)."""
    names = dict.fromkeys(name for one in given for name in one if name not in without)
    values = {name: [one.get(name) for one in given] for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def _difference(first: FinishedRun, other: FinishedRun, part: str) -> dict[str, Any]:
    """Scores of ``other`` less those of ``first``."""
    told = {"run": other.name, "against": first.name}
    shared = _shared(first, other, part)
    smaller = min(run.record["metrics"][part]["rows"] for run in (first, other))
    if shared is None or len(shared) < max(1, SHARED_SHARE * smaller):
        return {**told, **_unpaired(first.record["metrics"][part], other.record["metrics"][part])}
    return {**told, **_paired(shared, first.record.get("label_separator"))}


def _shared(first: FinishedRun, other: FinishedRun, part: str) -> pl.DataFrame | None:
    """Rows that both runs were scored on: ``label``, ``predicted_label`` and ``predicted_label_right``.

    They are known by their text, or by their number where both read the same files and a table of an older
    version does not tell the text. None if the two tables do not tell.
    """
    a, b = first.scored(part), other.scored(part)
    if a is None or b is None:
        return None
    if "text_id" in a.columns and "text_id" in b.columns:
        key = "text_id"
    elif all(first.record["config"].get(name) == other.record["config"].get(name) for name in FILES):
        key = "row"
    else:
        return None
    a, b = (
        # A text that occurs twice is matched one by one.
        table.select(key, "label", "predicted_label").with_columns(
            nth=pl.int_range(pl.len()).over(key, "label")
        )
        for table in (a, b)
    )
    return a.join(b, on=[key, "label", "nth"], how="inner")


def _paired(shared: pl.DataFrame, separator: str | None) -> dict[str, Any]:
    """Differences on the rows that both were scored on; ``separator`` parts labels, if a text has several."""
    y, a, b = _ids(shared["label"], shared["predicted_label"], shared["predicted_label_right"])
    found = compare(y, b, a)
    return {
        "paired": True,
        "rows": len(y),
        "right_only_in_first": found.only_baseline_right,
        "right_only_in_other": found.only_model_right,
        "accuracy": {
            "difference": found.accuracy, "interval": list(found.accuracy_interval),
            "p_value": found.p_value, "test": "mcnemar_exact",
        },
        "f1_macro": {"difference": found.f1_macro, "interval": list(found.f1_macro_interval)}
        if separator is None else _macro_f1_of_sets(shared, separator),
    }  # fmt: skip


def _macro_f1_of_sets(shared: pl.DataFrame, separator: str) -> dict[str, Any]:
    columns = [
        [split_cell(cell, separator) for cell in shared[name]]
        for name in ("label", "predicted_label", "predicted_label_right")
    ]
    labels = LabelSet(tuple({name: None for sets in columns for names in sets for name in names}))
    y, a, b = (labels.encode_sets(sets) for sets in columns)
    found = compare_sets(y, b > 0, a > 0)
    return {"difference": found.f1_macro, "interval": list(found.f1_macro_interval)}


def _unpaired(first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """From the metrics of both, as of rows that have nothing to do with each other."""
    rows = first["rows"], other["rows"]
    right = round(first["accuracy"] * rows[0]), round(other["accuracy"] * rows[1])
    p_value = float(fisher_exact([[r, n - r] for r, n in zip(right, rows, strict=True)]).pvalue)
    wilson = [wilson_interval(r, n) for r, n in zip(right, rows, strict=True)]
    f1 = [one.get("intervals", {}).get("f1_macro") for one in (first, other)]
    return {
        "paired": False,
        "rows": list(rows),
        "accuracy": {
            "difference": other["accuracy"] - first["accuracy"],
            "interval": _of_difference(first["accuracy"], wilson[0], other["accuracy"], wilson[1]),
            "p_value": p_value, "test": "fisher_exact",
        },
        "f1_macro": {
            "difference": other["f1_macro"] - first["f1_macro"],
            "interval": _of_difference(first["f1_macro"], f1[0], other["f1_macro"], f1[1])
            if f1[0] and f1[1] else None,
        },
    }  # fmt: skip


def _of_difference(
    first: float, first_interval: Sequence[float], other: float, other_interval: Sequence[float]
) -> list[float]:
    """The interval of ``other - first``, independent of each other, from both intervals.

    Distances of the bounds from the estimates, added in squares: Newcombe's method 10 (Statistics in Medicine
    17, 1998, 873-890) with Wilson's intervals of shares; for other estimates Zou & Donner (ibid. 27, 2008,
    1693-1702).
    """
    difference = other - first
    down = float(np.hypot(other - other_interval[0], first_interval[1] - first))
    up = float(np.hypot(other_interval[1] - other, first - first_interval[0]))
    return [difference - down, difference + up]


def _ids(*columns: pl.Series) -> list[NDArray[np.int64]]:
    """Labels as numbers, the same one for the same label in every column."""
    names = pl.concat([column.cast(pl.String).rename("label") for column in columns]).unique().sort()
    number = pl.Enum(names.drop_nulls())
    return [
        column.cast(pl.String).cast(number).to_physical().to_numpy().astype(np.int64) for column in columns
    ]


def _verdict(difference: float, p_value: float) -> str:
    if p_value >= SIGNIFICANCE:
        return "same"
    return "better" if difference > 0 else "worse"


def _sentence(one: dict[str, Any]) -> str:
    accuracy = one["accuracy"]
    low, high = (100 * bound for bound in accuracy["interval"])
    if one["paired"]:
        how = (
            f"on {one['rows']:,} shared rows, {one['right_only_in_other']:,} right in {one['run']} alone and "
            f"{one['right_only_in_first']:,} in {one['against']} alone"
        )
    else:
        how = f"on different rows ({one['rows'][0]:,} and {one['rows'][1]:,})"
    told = {
        "better": "better, by more than noise",
        "worse": "worse, by more than noise",
        "same": "no difference that noise could not make",
    }
    return (
        f"{one['run']} against {one['against']}: {told[one['verdict']]}. Accuracy "
        f"{100 * accuracy['difference']:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}), "
        f"p = {accuracy['p_value_adjusted']:.2g} {how}."
    )
