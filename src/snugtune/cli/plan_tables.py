"""Tables and sentences of ``snugtune plan``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from snugtune.cli.terminal import escape, plain
from snugtune.memory.limits import Verdict
from snugtune.memory.plan import ESTIMATED, Alternative, Plan
from snugtune.model.parameters import ParameterReport
from snugtune.units import duration

UNCALIBRATED = "uncalibrated"
"""What an estimated peak is called, until a step on the card has confirmed it."""


def show_parameters(model: str, labels: int, report: ParameterReport) -> None:
    """Parameters by part, and which of them are trained."""
    table = Table("part", _right("parameters"), _right("trained"))
    for name, part in report.parts.items():
        table.add_row(name, f"{part.all:,}", f"{part.trainable:,}")
    table.add_section()
    table.add_row("total", f"{report.all:,}", f"{report.trainable:,}")
    Console().print(table)
    _say(
        f"{model} with {labels:,} labels has {report.all:,} parameters, and a fit trains "
        f"{report.trainable:,} of them ({report.percent:.4f} %)."
    )


def show_plans(plans: Sequence[Plan]) -> None:
    """The table of devices, the plans' reasons and alternatives, and what the first peak is made of."""
    names = ("GiB", "of", "batch", "training", "USD")
    table = Table("device", "fits", *map(_right, names), "peak is")
    for one in plans:
        table.add_row(
            escape(_name(one)), "yes" if one.fits else "no",
            f"{one.predicted_peak_gib:.2f}", f"{one.capacity_gib:.2f}",
            str(one.micro_batch or "-"), _time(one.time_s), _usd(one.cost_usd),
            UNCALIBRATED if one.basis == ESTIMATED else one.basis,
        )  # fmt: skip
    Console().print(table)
    for alike, one in _alike(plans):
        _say(f"{alike} with {'; '.join(one.levers) or 'no lever'}: {one.why}")
        for other in one.alternatives:
            # Time and cost are each device's own.
            _say(f"  or {_alternative(other, times=alike == _name(one))}")
    for one in plans:
        if one.limits is not None:
            _show_limits(one.name, one.limits)
    _show_prices(plans)
    if plans:
        _show_peak(plans[0])
    for sentence in dict.fromkeys(one.basis_why for one in plans):
        _say(sentence)
    for one in plans:
        if one.devices > 1 and one.exchange_s is not None:
            _say(
                f"{_name(one)}: {duration(one.exchange_s)} of the time they wait for each other's numbers, "
                "estimated from --link."
            )
    told = [f"{_name(one)} {duration(one.fit_time_s)}" for one in plans if one.fit_time_s is not None]
    if told:
        _say(f"A whole fit, with all that is beside training: {', '.join(told)}.")
        _say("Times are estimated from the cards' rates, to compare them by; costs follow from them.")


def show_recipe(found: dict[str, Any]) -> None:
    """The recipe beside our plan, and LoRA beside full fine-tuning."""
    recipe, ours, full = found["recipe"], found["ours"], found["full_fine_tuning"]
    length = recipe["max_length"]
    table = Table(f"on a V100 with 16 GB, {recipe['rows']:,} texts", "the recipe", "our plan")
    read = f"{recipe['predicted_peak_gib']:.2f} GiB (its author read around {recipe['reported_gb']:.0f} GB)"
    table.add_row("predicted peak", read, f"{ours['predicted_peak_gib']:.2f} GiB")
    table.add_row(
        "micro-batch", f"{recipe['micro_batch']} x {length}", f"{ours['micro_batch']} x {ours['length']}"
    )
    table.add_row(
        f"time, {recipe['epochs']} epochs, estimated", _time(recipe["time_s"]), _time(ours["time_s"])
    )
    by_formula = found["ours_by_formula"]
    table.add_row(
        "compute units, 1 GB x 1 h, estimated", f"{recipe['estimated_compute_units']:.1f}",
        f"{by_formula['compute_units']:.1f}",
    )  # fmt: skip
    table.add_row(
        "USD by its author's formula, estimated",
        _usd(recipe["estimated_cost_usd"]),
        _usd(by_formula["cost_usd"]),
    )
    table.add_row(f"USD at {_hourly(ours['price'])}", _usd(recipe["rented_usd"]), _usd(ours["cost_usd"]))
    table.add_row("levers", "", "; ".join(ours["levers"]))
    Console().print(table)
    _say(
        f"Its author published {recipe['compute_units']:.0f} ({recipe['reported_hours']:.0f} h x "
        f"{recipe['reported_gb']:.0f} GB) compute units and {recipe['cost_usd']:.2f} USD."
    )
    for sentence in found["assumptions"]:
        _say(sentence)
    for micro_batch in (1, recipe["micro_batch"]):
        row = full[f"micro_batch_{micro_batch}"]
        _say(
            f"Full fine-tuning at {micro_batch} x {length}: {row['full_gib']:.2f} GiB against "
            f"{row['lora_gib']:.2f} GiB with LoRA, {row['ratio']:.1f} times as much."
        )
    _say(f"The claim is {full['claim']}. {full['why']}")
    _say("Peaks and times are estimated: no card has confirmed them yet.")


def _name(one: Plan) -> str:
    """Of several devices, with their number; memory and batch are each one's."""
    if one.devices == 1:
        return one.name
    return f"{one.devices} x {one.name}" + (", sharded" if one.setup.shards > 1 else "")


def _alike(plans: Sequence[Plan]) -> list[tuple[str, Plan]]:
    """Plans that say the same, told once under all their names."""
    groups: dict[tuple[Any, ...], list[Plan]] = {}
    for one in plans:
        others = tuple((o.levers, o.fits, o.micro_batch) for o in one.alternatives)
        groups.setdefault((one.levers, one.why, others), []).append(one)
    return [(", ".join(map(_name, group)), group[0]) for group in groups.values()]


def _alternative(other: Alternative, *, times: bool) -> str:
    levers = "; ".join(other.levers) or "no lever"
    price = f" ({other.price})" if other.price else ""
    verdict = f"micro-batch {other.micro_batch}" if other.fits else "does not fit"
    told = times and other.fits
    time = f", {duration(other.time_s)}" if told and other.time_s is not None else ""
    cost = f", {other.cost_usd:.2f} USD" if told and other.cost_usd is not None else ""
    return f"{levers}{price}: {other.predicted_peak_gib:.2f} GiB, {verdict}{time}{cost}."


def _show_limits(name: str, verdict: Verdict) -> None:
    _say(f"{name}: {verdict.why}")
    for way in verdict.ways:
        price = f" ({way.price})" if way.price else ""
        cost = "" if way.cost_usd is None else f", {way.cost_usd:.2f} USD"
        _say(f"  would keep to it: {way.change}{price}: {duration(way.time_s)}{cost}.")
    if verdict.kept is False and not verdict.ways:
        _say("  Nothing that is known would keep to it.")


def _show_prices(plans: Sequence[Plan]) -> None:
    prices = {_name(one): one.price for one in plans if one.price is not None and one.cost_usd is not None}
    told = [f"{name} {_hourly(vars(price))}" for name, price in prices.items()]
    if told:
        _say(f"Prices an hour: {'; '.join(told)}.")
    others = {one.name: one.other_prices for one in plans if one.other_prices and one.cost_usd is not None}
    for name, known in others.items():
        _say(f"  others of one {name}: {'; '.join(_hourly(vars(price)) for price in known)}.")


def _hourly(price: dict[str, Any] | None) -> str:
    """A price an hour with where it is from and when it was read."""
    if price is None:
        return "an unknown price"
    date = f", {price['date']}" if price["date"] else ""
    doubt = "" if price["confirmed"] else ", not confirmed"
    return f"{price['usd_per_hour']:.2f} USD ({price['provider']}{date}{doubt})"


def _show_peak(one: Plan) -> None:
    table = Table(f"the peak on {escape(one.name)} consists of", _right("GiB"), "")
    largest = max(one.composition.values(), default=1.0) or 1.0
    for name, size in sorted(one.composition.items(), key=lambda item: -item[1]):
        if abs(size) >= 0.005 * largest:
            table.add_row(name, f"{size:.3f}", "█" * max(1, round(30 * size / largest)))
    Console().print(table)
    _say(f"It falls on {one.peak_place}.")


def _right(name: str) -> Column:
    return Column(name, justify="right")


def _say(sentence: str) -> None:
    Console().print(plain(sentence), markup=False, highlight=False, soft_wrap=True)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _usd(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
