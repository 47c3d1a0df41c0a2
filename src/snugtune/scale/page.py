"""``search.html``: what a search found, as one self-contained page in the style of a run's report.

Made from ``search.json`` alone. It loads nothing, and whatever the data holds is escaped (see
``report/page.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from snugtune.report import formats
from snugtune.report.charts import Axis, Chart, near_percent_axis
from snugtune.report.page import (
    SCORE_NAMES,
    content_security_policy,
    data_block,
    environment,
    part_of_page,
)
from snugtune.scale.space import changed_settings, told

Record = dict[str, Any]

PICTURE_HEIGHT = 280


def search_html(record: Record) -> str:
    """The whole page."""
    style, script = part_of_page("page.css"), part_of_page("page.js")
    trials = {one["number"]: one for one in record["trials"]}
    best = trials.get(record["best"])
    context = {
        "search": record, "best": best, "default": _default(record), "several": len(record["methods"]) > 1,
        "score_name": SCORE_NAMES.get(record["metric"], record["metric"]),
        "rows": [_row(one, record) for one in record["trials"]],
        "front": [trials[number] for number in record["pareto"]],
        "picture": pareto_chart(record), "importance": _importance(record),
        "settings": _settings(best, record) if best else "",
        "ranges": _ranges(record), "style": Markup(style), "script": Markup(script),
        "policy": content_security_policy(style, script), "data": data_block({}),
    }  # fmt: skip
    page = environment().get_template("search.html").render(context)
    return page.encode("utf-8", "replace").decode("utf-8")


def pareto_chart(record: Record) -> Markup | None:
    """Score against cost: the trials, the line of those that none is both cheaper and better than, the
    baseline and the probe. None without a complete trial.
    """
    ended = [one for one in record["trials"] if one["state"] in ("complete", "pruned") and one["looks"]]
    complete = [one for one in ended if one["state"] == "complete"]
    if not complete:
        return None
    in_money = record["price_per_hour_usd"] is not None
    probe, baseline = record["probe"], record["baseline"]
    cost = (lambda one: one["usd"]) if in_money else _in_unit_of_time(ended)
    unit = "USD" if in_money else _unit_of_time(ended)
    shown = [one["score"] if one["state"] == "complete" else _last(one) for one in ended]
    beside = [one["score"] for one in (probe, baseline) if one and _is_near(one["score"], shown)]
    x = Axis.over([cost(one) for one in ended], f"Cost of the trial, {unit}", _short, low=0.0)
    y = near_percent_axis([*shown, *beside])
    title = f"{len(ended)} trials: validation score from {min(shown):.3f} to {max(shown):.3f} against cost"
    chart = Chart(title, x, y, height=PICTURE_HEIGHT)
    for one, says in ((baseline, "TF-IDF baseline"), (probe, "probe of the frozen model")):
        if one and one["score"] in beside:
            chart.level(one["score"], "mark", says)
    front = [one for one in complete if one["number"] in record["pareto"]]
    front.sort(key=lambda one: one["seconds"])
    chart.line(_stairs([(cost(one), one["score"]) for one in front], x.high), "model")
    pruned = [one for one in ended if one["state"] == "pruned"]
    chart.dots([(cost(one), _last(one)) for one in pruned], "base", 3, [_says(one) for one in pruned])
    chart.dots([(cost(one), one["score"]) for one in complete], "model", 4, [_says(one) for one in complete])
    best = [one for one in complete if one["number"] == record["best"]]
    chart.dots([(cost(one), one["score"]) for one in best], "chosen", 5.5, [_says(one) for one in best])
    return chart.svg()


def _is_near(score: float, shown: Sequence[float]) -> bool:
    """Whether a line of its own would not press the trials together."""
    low, high = min(shown), max(shown)
    return score >= low - max(high - low, 0.05)


def _stairs(points: Sequence[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    """What can be had for so much: level until the next point, then up."""
    found = [points[0]]
    for (_, before), (x, y) in pairwise(points):
        found += [(x, before), (x, y)]
    return [*found, (end, points[-1][1])]


def _unit_of_time(trials: Sequence[Record]) -> str:
    longest = max(one["seconds"] for one in trials)
    return "seconds" if longest < 180 else "minutes" if longest < 3 * 3600 else "hours"


def _in_unit_of_time(trials: Sequence[Record]) -> Any:
    by = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}[_unit_of_time(trials)]
    return lambda one: one["seconds"] / by


def _short(value: float) -> str:
    return f"{value:,.3g}"


def _last(one: Record) -> float:
    return float(one["looks"][-1]["score"])


def _says(one: Record) -> str:
    return f"Trial {one['number']}: {100 * (one['score'] or 0):.1f} %, {formats.time(one['seconds'])}"


def _default(record: Record) -> Record | None:
    """The trial of the default settings, of the method that was named first."""
    ended = (one for one in record["trials"] if one["default"] and one["state"] == "complete")
    return next((one for one in ended if one["method"] == record["methods"][0]), None)


def _row(one: Record, record: Record) -> Record:
    return {
        **one,
        "changed": _settings(one, record),
        "is_best": one["number"] == record["best"],
        "on_front": one["number"] in record["pareto"],
        "last": one["looks"][-1]["score"] if one["looks"] else None,
    }


def _settings(one: Record, record: Record) -> Markup:
    """The settings of a trial that are not the default."""
    changed = changed_settings(one["settings"], record["space"].get(one["method"], {}))
    return Markup(", ").join(
        Markup('<span class="whole">{} {}</span>').format(name, told(value)) for name, value in changed
    )


def _importance(record: Record) -> list[Record]:
    total = max(record["importance"].values(), default=0.0)
    return [
        {"name": name, "share": share, "bar": share / total if total else 0.0}
        for name, share in record["importance"].items()
    ]


def _ranges(record: Record) -> list[Record]:
    return [
        {"method": method, "name": name, "told": _range(one), "default": told(one["default"])}
        for method, dimensions in record["space"].items()
        for name, one in dimensions.items()
    ]


def _range(one: Mapping[str, Any]) -> str:
    if "choices" in one:
        return ", ".join(map(told, _in_order(one["choices"])))
    return f"{one['low']:.3g} to {one['high']:.3g}{', by its logarithm' if one['log'] else ''}"


def _in_order(choices: Sequence[Any]) -> list[Any]:
    """Numbers by size, other values as they are: the default first."""
    are_numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in choices)
    return sorted(choices) if are_numbers else list(choices)
