"""What the run would have taken on cheaper cards and with smaller models, by the plan's own estimates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.config import FitConfig
from snugtune.cost.prices import Price, cost_usd, price_of
from snugtune.memory.devices import Device, known_devices
from snugtune.memory.plan import Plan, Planner
from snugtune.train.planning import make_planner, smaller_models

MOST_CARDS = 3


@dataclass(frozen=True)
class Measured:
    """What this run took: seconds of training, of everything else, and money (None: no price)."""

    train_s: float
    rest_s: float
    usd: float | None


def estimated_alternatives(
    config: FitConfig,
    num_labels: int,
    lengths: NDArray[np.int64],
    plan: Plan,
    device: Device,
    measured: Measured,
) -> list[dict[str, Any]]:
    """Cheaper cards for the same model, and smaller models on this machine; what it takes, in all.

    What the plan of this run missed is taken to be missed by another plan for the same kind of device, so
    times are put right by it; a CPU says nothing about cards, whose times are then the plan's bare estimates.
    ``device`` is this machine's as it was before the run, whose cache now fills it.
    Everything but training is taken to last as long as in this run.
    """
    missed = measured.train_s / plan.time_s if plan.time_s else 1.0
    planner = make_planner(config, num_labels, lengths)
    found = _cards(planner, device, measured, missed if plan.setup.device == "cuda" else None)
    for name in smaller_models(config.model):
        smaller = make_planner(config.model_copy(update={"model": name}), num_labels, lengths)
        found += _smaller(name, smaller, device, config.price_per_hour_usd, measured, missed)
    return found


def _cards(
    planner: Planner, device: Device, measured: Measured, missed: float | None
) -> list[dict[str, Any]]:
    """The cheapest cards that the model fits, but those that cost as much as this run or more."""
    basis = _basis("the plan's for the card" if missed is None else "this run's, by the plans of both cards")
    found = []
    for card in dict.fromkeys(known_devices().values()):
        price = price_of(card.name)
        if price is None or card.card == device.card:
            continue
        other = planner.plan(card, may_change_result=False)
        if not other.fits or other.time_s is None:
            continue
        time_s = measured.rest_s + other.time_s * (1.0 if missed is None else missed)
        usd = cost_usd(time_s, price.usd_per_hour) or 0.0
        if measured.usd is None or usd < measured.usd:
            found.append((usd, time_s, _told(card, price)))
    return [_alternative(told, time_s, usd, basis) for usd, time_s, told in sorted(found)[:MOST_CARDS]]


def _smaller(
    name: str, planner: Planner, device: Device, own_price: float | None, measured: Measured, missed: float
) -> list[dict[str, Any]]:
    """A smaller model on this machine, if it fits."""
    plan = planner.plan(device, price_per_hour_usd=own_price, may_change_result=False)
    if not plan.fits or plan.time_s is None:
        return []
    time_s = measured.rest_s + plan.time_s * missed
    usd = cost_usd(time_s, plan.price.usd_per_hour if plan.price else None)
    return [_alternative(name, time_s, usd, _basis("this run's, by the plans of both models"))]


def _basis(training: str) -> str:
    return f"estimated: training is {training}; the rest as in this run"


def _told(card: Device, price: Price) -> str:
    return f"{card.name} at {price.usd_per_hour:.2f} USD an hour ({price.provider})"


def _alternative(what: str, time_s: float, usd: float | None, basis: str) -> dict[str, Any]:
    return {"what": what, "time_s": time_s, "usd": usd, "basis": basis, "score": None}
