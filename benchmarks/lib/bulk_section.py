"""The page's section on bulk prediction."""

from __future__ import annotations

from typing import Any

from snugtune.units import duration

from .tables import table


def bulk(result: dict[str, Any]) -> list[str]:
    """Each engine's time, rate and memory, and whether every row came out once."""
    settings, engines = result["settings"], result["engines"]
    names = {"local": "`--engine local`", "ray": f"`--engine ray`, {settings['workers']} workers"}
    rows = [
        [
            names[name],
            f"{of['rows']:,}",
            duration(of["seconds"]),
            f"{of['rows_per_s']:,.0f}",
            f"{of['peak_gib']:.2f} GiB",
            "all" if of["every_row_once"] else "NOT ALL",
        ]
        for name, of in engines.items()
    ]
    return [
        f"{settings['shards']:,} Parquet files ({result['megabytes']:,.0f} MB) of texts with "
        f"{settings['words']:g} words in the mean, from one folder into another, with a model of one layer, "
        "64 wide; the whole command, imports and the start of Ray included. Memory is that of all its "
        "processes together.",
        "",
        *table(["engine", "rows", "time", "rows a second", "peak memory", "rows there once"], rows),
    ]
