"""Prices of rented GPUs, with date and source, from ``prices.json``; a user's own price goes before them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any

BLOG_UNITS_PER_GB_HOUR = 1.0
"""The formula of the well-known recipe's author: one compute unit is one GB of GPU memory for one hour."""

RECENT_YEARS = 2
"""Prices older than this, counted back from the newest in the table, stand behind all others."""

OWN = "your own price"
"""Stands for the provider of a price that the user gave."""


@dataclass(frozen=True)
class Price:
    """What one hour of ``device`` costs at ``provider``; Colab's price follows from its compute units."""

    device: str
    provider: str
    usd_per_hour: float
    date: str
    source: str
    confirmed: bool = True


def prices(device: str) -> list[Price]:
    """Known prices of a device: recent ones, cheapest first, then old ones, which count as not confirmed."""
    table = _table()
    found = [Price(**row) for row in table["prices"] if row["device"] == device]
    colab = table["colab"]
    units = colab_units_per_hour(device)
    if units is not None:
        per_hour = units * colab["usd_per_unit"]
        found.append(Price(device, "Colab", per_hour, colab["units_date"], colab["units_source"]))
    told = [replace(price, confirmed=price.confirmed and _is_recent(price)) for price in found]
    return sorted(told, key=lambda price: (not _is_recent(price), price.usd_per_hour))


def _is_recent(price: Price) -> bool:
    newest = date.fromisoformat(max(row["date"] for row in _table()["prices"]))
    return (newest - date.fromisoformat(price.date)).days <= RECENT_YEARS * 365.25


def price_of(device: str, own: float | None = None) -> Price | None:
    """The user's ``own`` price, else the cheapest recent one, else the cheapest of all, else None."""
    if own is not None:
        return Price(device, OWN, own, "", "")
    return next(iter(prices(device)), None)


def as_dict(price: Price | None) -> dict[str, Any] | None:
    """A price with where it is from and when it was read; JSON-ready."""
    names = ("usd_per_hour", "provider", "source", "date", "confirmed")
    return None if price is None else {name: getattr(price, name) for name in names}


def usd_per_hour(device: str, own: float | None = None) -> float | None:
    """What an hour costs by ``price_of``."""
    price = price_of(device, own)
    return None if price is None else price.usd_per_hour


def cost_usd(seconds: float | None, per_hour: float | None) -> float | None:
    """Price of so many seconds, where both are known."""
    return None if seconds is None or per_hour is None else seconds / 3600 * per_hour


def colab_units_per_hour(device: str) -> float | None:
    """Compute units that Colab counts for an hour of ``device``, where known."""
    units: float | None = _table()["colab"]["units_per_hour"].get(device)
    return units


def blog_compute_units(hours: float, memory_gb: float) -> float:
    """Compute units by the recipe's formula: 9 hours x 15 GB = 135."""
    return BLOG_UNITS_PER_GB_HOUR * hours * memory_gb


def compute_units_usd(units: float) -> float:
    """Price of compute units at 9.99 USD per 100."""
    return float(units * _table()["colab"]["usd_per_unit"])


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((files("snugtune.cost") / "prices.json").read_text(encoding="utf-8"))
    return table
