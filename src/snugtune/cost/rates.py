"""What an hour on a machine costs: in money, in Colab's compute units, and in the recipe's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from snugtune.cost.prices import (
    Price,
    as_dict,
    blog_compute_units,
    colab_units_per_hour,
    cost_usd,
    price_of,
)


@dataclass(frozen=True)
class Rates:
    """Prices of one hour; None where not known.

    ``memory_gb`` (10**9 bytes) is what the run takes of a card, which the recipe's formula counts; None on a
    machine without one, where there are no compute units either. Of ``devices`` that train together, price
    and Colab's units are those of all, ``memory_gb`` is each one's.
    """

    price: Price | None = None
    colab_units: float | None = None
    memory_gb: float | None = None
    devices: int = 1

    def usd(self, seconds: float | None) -> float | None:
        """Money for so many seconds."""
        return cost_usd(seconds, None if self.price is None else self.price.usd_per_hour)

    def units(self, seconds: float) -> dict[str, float | None] | None:
        """Compute units for so many seconds: as Colab counts this card, and by the recipe's formula."""
        if self.memory_gb is None:
            return None
        hours = seconds / 3600
        colab = None if self.colab_units is None else self.colab_units * hours
        by_formula = blog_compute_units(hours, self.devices * self.memory_gb)
        return {"colab": colab, "blog_formula": by_formula}

    @property
    def units_per_hour(self) -> float | None:
        """Colab's own rate where it is known, else the recipe's formula."""
        by_formula = None if self.memory_gb is None else self.devices * self.memory_gb
        return by_formula if self.colab_units is None else self.colab_units

    def price_as_dict(self) -> dict[str, Any] | None:
        """The price with where it is from and when it was read; JSON-ready."""
        return as_dict(self.price)


def rates(card: str, *, own_price: float | None, memory_gb: float | None, devices: int = 1) -> Rates:
    """The rates of so many ``devices`` of a known ``card`` (empty: none); the user's ``own_price``, which is
    that of all together, goes before the table's.
    """
    price, units = price_of(card, own_price), colab_units_per_hour(card)
    if price is not None and own_price is None:
        price = replace(price, usd_per_hour=devices * price.usd_per_hour)
    return Rates(price, None if units is None else devices * units, memory_gb, devices)
