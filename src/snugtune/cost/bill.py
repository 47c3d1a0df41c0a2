"""What a run took: time, energy, money and compute units, in all, by phase, by prediction and by year."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from snugtune.cost.budget import Allowance
from snugtune.cost.meter import Energy
from snugtune.cost.quote import Quote, quote_as_dict
from snugtune.cost.rates import Rates

MONTHS = 12

START, EARLIER = "start", "earlier processes"
"""Phases of the bill that no part of the job names: what came before the first, and processes that died."""

LEAST_SHOWN_S = 0.05

MOST_EPOCHS_TOLD = 6


@dataclass(frozen=True)
class Usage:
    """What was measured.

    ``seconds`` by phase and ``total``; ``earlier_s`` of processes that died before this one; ``scored_rows``
    held-out rows were classified in the phase ``evaluate``. ``metrics`` are the lines of ``metrics.jsonl``
    and ``baseline_score`` the baseline's on validation. ``train_s`` is training, by all processes.
    """

    seconds: Mapping[str, float]
    on_card: bool
    scored_rows: int
    energy: Energy | None = None
    earlier_s: float = 0.0
    metrics: Sequence[Mapping[str, Any]] = ()
    baseline_score: float | None = None
    train_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Of the whole job, with processes that died."""
        return self.seconds["total"] + self.earlier_s


@dataclass(frozen=True)
class Terms:
    """What was agreed before: prices, quote, limits as the user gave them, and the traffic to come."""

    rates: Rates
    own_price: float | None = None
    quote: Quote | None = None
    allowance: Allowance | None = None
    max_cost_usd: float | None = None
    max_time_s: float | None = None
    max_units: float | None = None
    predictions_per_month: int | None = None


def bill(
    usage: Usage, terms: Terms, *, budget_ended_run: bool, estimated: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The block ``cost`` of ``run.json``; ``estimated`` are alternatives that were not measured."""
    rates, total_s = terms.rates, usage.total_s
    per_1000 = _per_1000(usage, rates)
    return {
        "usd": rates.usd(total_s),
        "price_per_hour_usd": terms.own_price,
        "price": rates.price_as_dict(),
        "gpu_hours": rates.devices * total_s / 3600 if usage.on_card else 0.0,
        "energy_wh": None if usage.energy is None else usage.energy.wh,
        "energy_of": None if usage.energy is None else usage.energy.of,
        "compute_units": rates.units(total_s),
        "phases": _phases(usage, rates),
        "per_1000_predictions": per_1000,
        "per_year": _per_year(per_1000, terms.predictions_per_month),
        "quote": quote_as_dict(terms.quote, rates),
        "budget": {
            "max_cost_usd": terms.max_cost_usd,
            "max_time_s": terms.max_time_s,
            "max_units": terms.max_units,
            "ended_run": budget_ended_run,
        },
        "alternatives": [*_measured_alternatives(usage, rates), *map(dict, estimated)],
    }


def _phases(usage: Usage, rates: Rates) -> list[dict[str, Any]]:
    """In the order in which they took place; they add up to the whole."""
    named = {name: seconds for name, seconds in usage.seconds.items() if name != "total"}
    start = usage.seconds["total"] - sum(named.values())
    seconds = {EARLIER: usage.earlier_s, START: start, **named}
    return [
        {"name": name, "seconds": taken, "usd": rates.usd(taken)}
        for name, taken in seconds.items()
        if name in named or taken >= LEAST_SHOWN_S
    ]


def _per_1000(usage: Usage, rates: Rates) -> dict[str, float | None] | None:
    """By the throughput of the final scoring, on this machine."""
    if not usage.scored_rows or "evaluate" not in usage.seconds:
        return None
    seconds = 1000 * usage.seconds["evaluate"] / usage.scored_rows
    return {"seconds": seconds, "usd": rates.usd(seconds)}


def _per_year(per_1000: Mapping[str, float | None] | None, per_month: int | None) -> dict[str, Any] | None:
    """As if the machine were paid for only while it predicts."""
    if per_1000 is None or per_month is None:
        return None
    predictions = MONTHS * per_month
    told = {name: None if one is None else one * predictions / 1000 for name, one in per_1000.items()}
    return {"predictions": predictions, **told}


def _measured_alternatives(usage: Usage, rates: Rates) -> list[dict[str, Any]]:
    """What this very run shows of cheaper ways: the baseline, the probe start, fewer epochs."""
    found = []
    if usage.baseline_score is not None and "baseline" in usage.seconds:
        seconds = usage.seconds.get("data", 0.0) + usage.seconds["baseline"]
        basis = "measured: the baseline of this run"
        found.append(_alternative("TF-IDF baseline alone", seconds, rates, basis, usage.baseline_score))
    looks = [line for line in usage.metrics if "eval_score" in line]
    without_training_s = max(0.0, usage.total_s - usage.train_s)
    if looks and looks[0]["step"] == 0 and "probe" in usage.seconds:
        basis = "measured: validation before the first step"
        found.append(
            _alternative("probe without training", without_training_s, rates, basis, looks[0]["eval_score"])
        )
    return found + _fewer_epochs(usage, looks, rates, without_training_s)


def _fewer_epochs(
    usage: Usage, looks: Sequence[Mapping[str, Any]], rates: Rates, without_training_s: float
) -> list[dict[str, Any]]:
    """The best score after each epoch but the last, and the time until then.

    The learning rate was on its way down over all epochs: a run planned for fewer may do somewhat better.
    """
    elapsed = {line["step"]: line["elapsed_s"] for line in usage.metrics if "elapsed_s" in line}
    trained = [look for look in looks if look["step"] in elapsed]
    found, best = [], max((look["eval_score"] for look in looks if look["step"] == 0), default=0.0)
    for look in trained[:-1]:
        best = max(best, look["eval_score"])
        if float(look["epoch"]).is_integer():
            epochs = int(look["epoch"])
            what = f"{epochs} epoch{'' if epochs == 1 else 's'}"
            seconds = without_training_s + elapsed[look["step"]]
            basis = "measured: validation after that epoch of this run"
            found.append(_alternative(what, seconds, rates, basis, best))
    return found[-MOST_EPOCHS_TOLD:]


def _alternative(what: str, seconds: float, rates: Rates, basis: str, score: float | None) -> dict[str, Any]:
    return {"what": what, "time_s": seconds, "usd": rates.usd(seconds), "basis": basis, "score": score}
