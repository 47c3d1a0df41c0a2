"""Cells and tables of the page of measured figures, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def spread_cell(values: dict[str, Any] | None, digits: int, scale: float = 1, unit: str = "") -> str:
    """``median (smallest to largest)`` of a spread, each times ``scale``; empty for None."""
    if values is None:
        return ""
    median, low, high = (f"{scale * values[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return f"{median}{unit} ({low} to {high})"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]
