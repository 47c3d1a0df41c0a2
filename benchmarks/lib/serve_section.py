"""The section of the page on serving over HTTP."""

from __future__ import annotations

from typing import Any

from .tables import spread_cell, table

COLUMNS = (
    "clients", "server", "requests/s", "p50, ms", "p99, ms", "errors", "ours answers more by",
    "p50 shorter by", "p99 shorter by",
)  # fmt: skip


def serve(result: dict[str, Any]) -> list[str]:
    """Requests a second and waiting times of every server, by number of clients."""
    settings, best = result["settings"], result["litserve"]
    rows = [
        [number, name, *_told(found), *_ratios(of["ratios"].get(name))]
        for number, of in result["clients"].items()
        for name, found in of["contestants"].items()
    ]
    versions = ", ".join(f"{name} {number}" for name, number in result["server_versions"].items())
    return [
        f"{settings['rows']} {result['texts']} a turn, each a request; so many clients ask again "
        f"as soon as they are answered. {settings['model']} in float32, {settings['threads']} threads. "
        f"LitServe with the best of the settings tried: batches of {best['max_batch_size']:g}, "
        f"{best['batch_timeout']:g} s. {versions}.",
        "",
        *table(COLUMNS, rows),
    ]


def _told(found: dict[str, Any]) -> list[str]:
    times = (spread_cell(found[key], 0) for key in ("p50_ms", "p99_ms"))
    return [spread_cell(found["requests_per_s"], 1), *times, str(found["errors"])]


def _ratios(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    return [spread_cell(found[key], 2, unit="x") for key in ("requests_per_s", "p50", "p99")]
