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


def load(result: dict[str, Any]) -> list[str]:
    """What became of correct and hostile requests at twice the capacity, and whether anything grew."""
    settings, statuses = result["settings"], result["statuses"]
    growth = {name: found for name, found in result["growth"].items() if found}
    rows = [
        [name.replace("_", ", "), f"{found['per_hour']:.1f} ({found['low']:.1f} to {found['high']:.1f})",
         f"{found['first']:.0f}", f"{found['last']:.0f}"]
        for name, found in growth.items()
    ]  # fmt: skip
    killed = [
        [one["how"], f"{one['at_s']:.0f}", f"{one['to_answer_s']:.1f}", f"{one['to_200_s']:.1f}"]
        for one in result["kills"]
    ]
    told = ", ".join(f"{count:,} x {status}" for status, count in statuses.items())
    hostile = sum(one["count"] for one in result["hostile"])
    return [
        f"{settings['minutes']:g} minutes, {settings['model']}, {settings['threads']} threads: capacity "
        f"{result['capacity_rps']:.1f} requests/s, then {result['offered_rps']:.1f} offered. Correct clients "
        "got "
        f"{told}; {result['answers_compared']:,} answers compared within {result['tolerance']:g}. "
        f"{hostile:,} hostile requests met with what they should, {result['reloads']} new versions "
        "took over. "
        f"Faults of any kind: {result['faults']}.",
        "",
        *_waits(result),
        "",
        *table(("process, what", "growth an hour (95 %)", "first", "last"), rows),
        "",
        *table(("worker", "at, s", "answered after, s", "with 200 after, s"), killed),
    ]


def _waits(result: dict[str, Any]) -> list[str]:
    names = {"accepted_s": "answered", "refused_s": "refused with 429"}
    return [
        f"Without kills, {name}: p50 {found['p50']:.2f} s, p99 {found['p99']:.2f} s."
        for key, name in names.items()
        if (found := result[key])
    ]


def share_weights(result: dict[str, Any]) -> list[str]:
    """Memory and speed of many classifiers, each with its own weights or with those in common kept once."""
    settings = result["settings"]
    rows = [
        [str(found["classifiers"]), *(f"{mib:,.0f}" for mib in found["mib"].values()),
         *(spread_cell(rate, 1) for rate in found["requests_per_s"].values()),
         spread_cell(found["shared_by_own"], 2, unit="x")]
        for found in result["classifiers"]
    ]  # fmt: skip
    return [
        f"{settings['model']} with LoRA of the default settings, {settings['rows']} {result['texts']} a "
        f"turn from {settings['clients']} clients, one model after the other; MiB (PSS) of a worker by "
        "itself.",
        "",
        *table(
            (
                "classifiers", "own weights, MiB", "shared, MiB", "own weights, requests/s",
                "shared, requests/s", "shared answers",
            ),
            rows,
        ),
    ]  # fmt: skip
