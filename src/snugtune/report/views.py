"""From what a run recorded to what its page shows: a figure of each block, None where it is missing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import polars as pl
from markupsafe import Markup

from snugtune.config import FitConfig
from snugtune.data.label_sets import split_cell
from snugtune.evaluate.metrics import wilson_interval
from snugtune.report.charts import (
    WIDTH,
    Axis,
    Chart,
    binned,
    near_percent_axis,
    percent_axis,
    rolling_mean,
)
from snugtune.report.confusion import (
    CORNER_CLASSES,
    Confusion,
    corner_classes,
    map_data,
    map_order,
    map_svg,
    pairs,
    shade,
)
from snugtune.report.formats import interval, number, percent
from snugtune.report.headline import has_several_labels

CONFIDENT_ERRORS = 20
FAR_LIMIT = 2.5
"""A memory limit further away than this many peaks is told in words: drawn, it would flatten the curve."""

Record = dict[str, Any]
Rows = Sequence[Record]


def shown_part(record: Record) -> str:
    """Test where there is one, else validation."""
    return "test" if "test" in record["metrics"] else "validation"


# How good


def comparison_rows(record: Record, part: str) -> list[Record]:
    """The averages of model and baseline side by side, with intervals where they were measured."""
    several = has_several_labels(record)
    names = {
        **({"f1_micro": ("Micro F1", "every label given or missed counts the same")} if several else {}),
        "accuracy": ("Exactly right", "share of texts whose labels are all right")
        if several
        else ("Accuracy", "share of texts with the right label"),
        "f1_macro": ("Macro F1", "every class counts the same, however rare"),
        "f1_weighted": ("Weighted F1", "every text counts the same"),
        "hamming_loss": ("Hamming loss", "share of labels wrongly given or missed; lower is better"),
        "lrap": ("Ranking precision", "how far true labels rank above others (LRAP)"),
        "ece": ("Calibration error", "how far confidence is from being right, on average; lower is better"),
        "log_loss": ("Log loss", "nats; lower is better"),
    }
    ours = record["metrics"][part]
    theirs = record.get("baseline", {}).get("metrics", {}).get(part, {})
    return [
        {
            "key": key, "name": name, "says": says, "share": key != "log_loss",
            "ours": ours.get(key), "interval": ours.get("intervals", {}).get(key),
            "theirs": theirs.get(key), "their_interval": theirs.get("intervals", {}).get(key),
        }
        for key, (name, says) in names.items()
        if key in ours
    ]  # fmt: skip


def comparison_chart(rows: list[Record]) -> Markup | None:
    """Accuracy and F1 of model and baseline as dots with their 95 % intervals."""
    shown = [row for row in rows if row["key"] in ("f1_micro", "accuracy", "f1_macro", "f1_weighted")]
    values = [row[who] for row in shown for who in ("ours", "theirs") if row[who] is not None]
    values += [end for row in shown for who in ("interval", "their_interval") for end in row[who] or ()]
    if not values:
        return None
    axis = percent_axis("", values, low=None)
    left, right, step = 92, 368, 62
    marks = []

    def px(value: float) -> float:
        return left + axis.share(value) * (right - left)

    height = step * len(shown) + 30
    for tick in axis.ticks:
        marks.append(f'<path class="grid" d="M{px(tick):.1f} 6V{height - 24}"/>')
        anchor = "end" if tick == axis.ticks[-1] else "middle"
        marks.append(
            f'<text class="tick" text-anchor="{anchor}" x="{px(tick):.1f}" y="{height - 8}">'
            f"{axis.tell(tick)}</text>"
        )
    for i, row in enumerate(shown):
        y = 14 + step * i + step / 2 - 8
        marks.append(f'<text class="row-name" x="0" y="{y + 4:.0f}">{row["name"]}</text>')
        for who, ends, kind, lift in (
            ("ours", "interval", "model", -8),
            ("theirs", "their_interval", "base", 8),
        ):
            if row[who] is None:
                continue
            if row[ends]:
                low, high = row[ends]
                marks.append(f'<path class="reach {kind}" d="M{px(low):.1f} {y + lift:.1f}H{px(high):.1f}"/>')
            told = f"{percent(row[who])}" + (f", 95 % interval {interval(row[ends])}" if row[ends] else "")
            marks.append(
                f'<circle class="dot {kind}" cx="{px(row[who]):.1f}" cy="{y + lift:.1f}" r="5">'
                f"<title>{told}</title></circle>"
            )
    title = (
        "Accuracy and F1 of the model and of the baseline, with 95 % intervals; the figures are in the table"
    )
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">'
        f"{''.join(marks)}</svg>"
    )


# What can be automated


def automation_curve(record: Record, part: str) -> Record | None:
    """The risk-coverage curve with target, chosen point and the baseline's; and the slider's stops."""
    stops = record["metrics"][part].get("risk_coverage")
    if not stops:
        return None
    promise = record.get("automation") or {}
    target = promise.get("precision_target", record.get("decision", {}).get("precision_target"))
    threshold = promise.get("threshold", record.get("decision", {}).get("confidence_threshold"))
    curve = sorted((stop["coverage"], stop["precision"]) for stop in stops)
    low = min([y for _, y in curve] + ([target] if target else []))
    chart = Chart(
        "Share of right predictions against the share of texts that are automated",
        percent_axis("Share of texts automated"),
        percent_axis("", [low], low=max(0.0, math.floor((low - 0.02) * 20) / 20)),
        height=270,
        name="risk",
    )
    if target:
        chart.level(target, "limit", f"asked: {percent(target, 0)} right")
    chart.line(curve, "model")
    baseline = (promise.get("baseline") or {}).get("test") if part == "test" else None
    dots = (
        ("baseline", baseline or {}, "base", 5.0, "baseline at its threshold"),
        ("chosen", promise.get(part) or {}, "chosen", 6.0, "the chosen threshold"),
    )
    drawn = set()
    for name, found, kind, radius, says in dots:
        # No precision: no text is at or above the threshold.
        if found.get("coverage") is not None and found.get("precision") is not None:
            chart.dots([(found["coverage"], found["precision"])], kind, radius, [says])
            drawn.add(name)
    ordered = sorted(stops, key=lambda stop: stop["threshold"])
    at = 0
    if threshold is not None:
        at = min(range(len(ordered)), key=lambda i: abs(ordered[i]["threshold"] - threshold))
    return {
        "svg": chart.svg(),
        "at": at,
        "baseline": "baseline" in drawn,
        "chosen": "chosen" in drawn,
        "stops": [
            [round(float(stop[key]), 5) for key in ("threshold", "coverage", "precision")] for stop in ordered
        ],
    }


# Classes


def class_rows(record: Record, part: str, trained: dict[str, int]) -> list[Record]:
    """A row for each class: its scores, how it is automated, and what it is taken for most often."""
    metrics = record["metrics"][part]
    automated = {row["label"]: row for row in (record.get("automation") or {}).get("by_class") or []}
    labels = [row["label"] for row in metrics["per_class"]]
    taken: dict[int, tuple[int, int]] = {}
    for true, predicted, count in metrics.get("confusion", []):
        if count > taken.get(true, (0, 0))[1]:
            taken[true] = (predicted, count)
    rows = []
    for i, row in enumerate(metrics["per_class"]):
        predicted, count = taken.get(i, (-1, 0))
        rows.append(
            {
                **row,
                "trained": trained.get(row["label"]),
                "automated": automated.get(row["label"]),
                "taken_for": labels[predicted] if count else None,
                "taken_rows": count,
            }
        )
    return sorted(rows, key=lambda row: (-row["support"], row["label"]))


def confusion_view(record: Record, part: str) -> Record | None:
    """The table of the classes confused most, the whole map, and the pairs that matter."""
    metrics = record["metrics"][part]
    if not metrics.get("confusion") or not metrics.get("per_class"):
        return None
    confusion = Confusion.of(metrics)
    order = map_order(confusion)
    place = {label: i for i, label in enumerate(order)}
    corner = sorted(corner_classes(confusion), key=lambda i: place.get(i, len(order)))
    whole = confusion.of_classes(order)
    return {
        "pairs": (metrics.get("confused_pairs") or pairs(confusion))[:50],
        "corner": _corner(confusion, corner),
        # Few classes are all in the table of counts already.
        "map": map_svg(whole) if len(confusion.labels) > CORNER_CLASSES else None,
        "data": map_data(whole),
        "classes": len(confusion.labels),
        "drawn": len(order),
        "mistakes": int(confusion.mistakes().sum()),
    }


def _corner(confusion: Confusion, ids: list[int]) -> list[Record]:
    shares, rows = confusion.shares(), confusion.counts.sum(axis=1)
    table = []
    for i in ids:
        cells = [
            {
                "count": int(confusion.counts[i, j]),
                "kind": f"{'r' if i == j else 'm'}{shade(float(shares[i, j]))}",
            }
            for j in ids
        ]
        inside = sum(cell["count"] for cell in cells)  # type: ignore[misc]
        table.append(
            {
                "label": confusion.labels[i],
                "cells": cells,
                "others": int(rows[i]) - inside,
                "rows": int(rows[i]),
            }
        )
    return table


# How sure


def reliability_charts(record: Record, part: str) -> Record | None:
    """Confidence against the share that is right, before and after calibration."""
    block = record["metrics"][part].get("reliability")
    if not block:
        return None
    charts = {}
    for when in ("before", "after"):
        if not block.get(when):
            continue
        bins = [row for row in block[when].get("bins") or [] if row.get("rows")]
        most = max((row["rows"] for row in bins), default=1)
        chart = Chart(
            f"Reliability {when} calibration: expected calibration error {percent(block[when].get('ece'))}",
            percent_axis("Confidence"),
            percent_axis(""),
            height=300,
        ).line([(0, 0), (1, 1)], "ideal")
        reach = [wilson_interval(round(row["accuracy"] * row["rows"]), row["rows"]) for row in bins]
        chart.error_bars(
            [(row["confidence"], *ends) for row, ends in zip(bins, reach, strict=True)], "thin model"
        )
        for row in bins:
            dot = (row["confidence"], row["accuracy"])
            told = f"{number(row['rows'])} rows at {percent(dot[0])} confidence: {percent(dot[1])} right"
            chart.dots([dot], "model", 2.5 + 5.5 * math.sqrt(row["rows"] / most), [told])
        charts[when] = {"svg": chart.svg(), "ece": block[when].get("ece")}
    return charts


def slice_rows(record: Record, part: str) -> Record | None:
    """Scores by text length and by class size, as they were recorded."""
    block = record["metrics"][part].get("slices")
    return block if block and any(block.values()) else None


# Training


def loss_chart(metrics: Rows, best_step: int | None) -> Markup | None:
    """Training loss, smoothed, and validation loss by optimiser step."""
    raw = [(row["step"], row["loss"]) for row in metrics if _finite(row.get("loss"))]
    held_out = [(row["step"], row["eval_loss"]) for row in metrics if _finite(row.get("eval_loss"))]
    if not raw and not held_out:
        return None
    smooth = binned(rolling_mean(raw, max(1, len(raw) // 25)), _mean)
    faint = binned(raw, _mean)
    told = [y for _, y in (*faint, *held_out)]
    # A few steps of a wild loss must not flatten all the others.
    ceiling = sorted(told)[int(0.995 * (len(told) - 1))]
    top = max([ceiling, *(y for _, y in held_out)])
    chart = Chart(
        "Loss by optimiser step, in training and on validation",
        _steps(raw + held_out),
        Axis.over([0.0, top], "", low=0.0),
        height=240,
    )
    chart.line(faint, "faint model").line(smooth, "model")
    chart.line(held_out, "valid").dots(held_out, "valid", 3.5, [f"step {x}: {y:.4f}" for x, y in held_out])
    if best_step is not None and held_out:
        chart.upright(best_step, "mark", "kept")
    return chart.svg()


def score_chart(metrics: Rows, best_step: int | None, name: str) -> Markup | None:
    """The validation score at each look."""
    looks = [(row["step"], row["eval_score"]) for row in metrics if _finite(row.get("eval_score"))]
    if len(looks) < 2:
        return None
    chart = Chart(
        f"Score on validation ({name}) by optimiser step",
        _steps([*looks, *((row["step"], 0.0) for row in metrics)]),
        near_percent_axis([y for _, y in looks]),
        height=240,
    )
    chart.line(looks, "valid").dots(looks, "valid", 3.5, [f"step {x}: {percent(y)}" for x, y in looks])
    if best_step is not None:
        chart.upright(best_step, "mark", "kept")
    return chart.svg()


def rate_chart(metrics: Rows) -> Markup | None:
    """The learning rate by optimiser step."""
    rates = [(row["step"], row["learning_rate"]) for row in metrics if _finite(row.get("learning_rate"))]
    if not rates:
        return None
    axis = Axis.over([0.0, *(y for _, y in rates)], "", lambda y: f"{y:.1g}" if y else "0", low=0.0)
    chart = Chart("Learning rate by optimiser step", _steps(rates), axis, height=240)
    return chart.line(binned(rates, _mean), "model").svg()


def memory_view(record: Record, memory: Rows) -> Record | None:
    """Memory by optimiser step, with what was predicted, what there is, and where it ran out."""
    series = {
        kind: [(row["step"], row[key]) for row in memory if _finite(row.get(key)) and "step" in row]
        for kind, key in (("alloc", "allocated_gib"), ("reserved", "reserved_gib"), ("model", "resident_gib"))
    }
    drawn = {kind: binned(points, max) for kind, points in series.items() if points}
    if not drawn:
        return None
    told = record.get("memory", {})
    predicted, limit = told.get("predicted_peak_gib"), told.get("limit_gib")
    values = [y for points in drawn.values() for _, y in points] + [p for p in (predicted,) if p]
    near = limit if limit is not None and limit <= FAR_LIMIT * max(values) else None
    chart = Chart(
        "Memory by optimiser step in GiB",
        _steps([point for points in drawn.values() for point in points]),
        Axis.over([*values, *([near] if near else []), 1.08 * max(values)], "", low=0.0),
        height=240,
    )
    for kind, points in drawn.items():
        chart.line(points, kind)
    if predicted:
        chart.level(predicted, "predicted")
    if near:
        chart.level(near, "limit")
    events = [row for row in memory if "event" in row]
    for row in events[:50]:
        if _finite(row.get("step")):
            chart.upright(row["step"], "event")
    return {
        "svg": chart.svg(), "kinds": list(drawn), "events": events[:50],
        "more_events": max(0, len(events) - 50), "limit": limit, "limit_drawn": near is not None,
    }  # fmt: skip


# Cost


def seconds_after_quote(record: Record) -> float | None:
    """What the run took from the quote on: all but what came before it, reading the data."""
    time = record.get("time") or {}
    total, before = time.get("total_s"), time.get("data_s")
    return total - before if total is not None and before is not None else None


# Data


def class_sizes_chart(trained: dict[str, int]) -> Markup | None:
    """Training rows of each class, from the largest to the smallest, on a logarithmic scale."""
    sizes = sorted(trained.values(), reverse=True)
    if len(sizes) < 2:
        return None
    top = math.ceil(math.log10(max(sizes)) + 1e-9)
    scale = Axis(
        0.0, float(max(top, 1)), tuple(float(i) for i in range(max(top, 1) + 1)),
        lambda power: f"{10**power:,.0f}",
    )  # fmt: skip
    ends = Axis.over(
        [0.0, float(len(sizes))], "Classes, from the largest to the smallest", low=0.0, high=float(len(sizes))
    )
    # The axis begins at one row: a class of one is drawn as a sliver, not left out.
    columns = [(i, i + 1.0, max(math.log10(size), 0.02)) for i, size in enumerate(sizes)]
    merged = columns if len(columns) <= 400 else columns[:: math.ceil(len(columns) / 400)]
    chart = Chart("Training rows by class, largest first, logarithmic", ends, scale, height=210)
    return chart.columns(merged, "base").svg()


def learning_curve_chart(record: Record) -> Markup | None:
    """The baseline's accuracy by the number of training rows, and what more rows would likely bring."""
    block = (record.get("audit") or {}).get("learning_curve")
    if not block or len(block.get("points") or []) < 2:
        return None
    seen = [(row["rows"], row["accuracy"]) for row in block["points"]]
    later = block.get("forecast") or []
    lows = [(row["rows"], row["interval"][0]) for row in later if row.get("interval")]
    highs = [(row["rows"], row["interval"][1]) for row in later if row.get("interval")]
    values = [y for _, y in (*seen, *lows, *highs)] + [row["accuracy"] for row in later]
    chart = Chart(
        "Accuracy of the baseline by training rows, with the forecast",
        Axis.over(
            [0.0, *(x for x, _ in seen), *(row["rows"] for row in later)], "Training rows", _short, low=0.0
        ),
        near_percent_axis(values),
        height=230,
    )
    if lows:
        chart.band([seen[-1], *lows], [seen[-1], *highs], "base")
    ahead = [seen[-1], *((row["rows"], row["accuracy"]) for row in later)]
    chart.line(ahead, "forecast").line(seen, "base")
    return chart.dots(seen, "base").svg()


def trained_rows(predictions: pl.DataFrame | None, separator: str | None = None) -> dict[str, int]:
    """Training rows of each label; ``separator`` parts those of a cell, where a text may carry several."""
    if predictions is None or "part" not in predictions.columns or predictions["label"].dtype != pl.String:
        return {}
    given = predictions.filter(pl.col("part") == "train")["label"].drop_nulls()
    if separator is not None:
        return dict(Counter(name for cell in given for name in split_cell(cell, separator)))
    return dict(given.value_counts().rows())


def confident_errors(predictions: pl.DataFrame | None, part: str) -> list[Record]:
    """The held-out rows that the model was surest of and wrong about, surest first."""
    needed = {"row", "part", "label", "predicted_label", "confidence"}
    if predictions is None or not needed <= set(predictions.columns):
        return []
    wrong = predictions.filter(
        (pl.col("part") == part)
        & pl.col("label").is_not_null()
        & pl.col("predicted_label").is_not_null()
        & (pl.col("label") != pl.col("predicted_label"))
    )
    return wrong.sort("confidence", "row", descending=[True, False]).head(CONFIDENT_ERRORS).to_dicts()


def first_row(record: Record) -> int:
    """What makes a row of the shown part one as a spreadsheet counts; 0 where that is not known."""
    own_test_file = (record.get("config") or {}).get("test") is not None
    found = 0 if own_test_file else record.get("data", {}).get("first_row")
    return found or 0


def texts_of(predictions: pl.DataFrame | None, part: str, rows: Sequence[int]) -> dict[int, str]:
    """The stored beginnings of the texts of some rows of a part."""
    if predictions is None or "text" not in predictions.columns or not rows:
        return {}
    found = predictions.filter(
        (pl.col("part") == part) & pl.col("row").is_in(list(rows)) & pl.col("text").is_not_null()
    )
    return dict(found.select("row", "text").rows())


# Settings


def settings_view(config: Record) -> Record:
    """Every setting, those first that differ from the default."""
    defaults = {name: field.default for name, field in FitConfig.model_fields.items()}

    def is_default(name: str) -> bool:
        standard = defaults.get(name)
        return bool(config[name] == (list(standard) if isinstance(standard, tuple) else standard))

    changed = [name for name in config if not is_default(name)]
    return {"changed": changed, "rest": [name for name in config if name not in changed]}


def _steps(points: Sequence[tuple[float, float]]) -> Axis:
    last = max(x for x, _ in points)
    return Axis.over([0.0, float(last)], "Optimiser step", _short, low=0.0, high=float(max(last, 1)))


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:,.0f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
