"""The sections of the page on computing less: lower layers kept, rows left out."""

from __future__ import annotations

from typing import Any

from snugtune.units import gib

from .tables import spread_cell, table


def checkpoints(result: dict[str, Any]) -> list[str]:
    """What a commit costs, and what that comes to."""
    settings, cost, share = result["settings"], result["commit_s"], result["share"]
    longer, processor = result["seconds_ratio"], result["cpu_ratio"]
    low, middle, high = (1000 * cost[name] for name in ("min", "median", "max"))
    return [
        f"MiniLM with LoRA on Banking77 ({result['trained_parameters']:,} trained parameters): a state has "
        f"{result['state_bytes'] / 2**20:.1f} MiB. It costs {middle:.0f} ms ({low:.0f} to {high:.0f}, "
        f"{cost['n']} commits): the copy that training waits for and the processor's time of the thread that "
        f"writes it. Every {result['interval_s']:g} seconds that is {100 * share['median']:.2f} % of the run "
        f"(at most {100 * share['max']:.2f} %).",
        "",
        f"Committed every {settings['every_s']:g} s instead, in turns with training without states, the same "
        f"steps took {longer['median']:.3f} times as long ({longer['min']:.3f} to {longer['max']:.3f}) and "
        f"{processor['median']:.3f} times the processor's time ({processor['min']:.3f} to "
        f"{processor['max']:.3f}).",
    ]


def prefix_cache(result: dict[str, Any]) -> list[str]:
    """Training speed with the layers below every adapter computed in every epoch, or read back."""
    settings = result["settings"]
    rows = [
        [way, spread_cell(speed, 0), spread_cell(result["tokens_per_cpu_s"][way], 0)]
        for way, speed in result["tokens_per_s"].items()
    ]
    layers = ", ".join(map(str, settings["layers"]))
    return [
        f"MiniLM with LoRA in the layers {layers} of {result['layers']} (counted from 0), "
        f"{result['lower_layers']} below them; {settings['rows']} complaints a turn (mean "
        f"{result['mean_length']:.0f} tokens, cut at {settings['max_length']}), {result['dtype']}, "
        f"{settings['threads']} threads. What is kept takes {1024 * gib(result['bytes_kept']):.1f} MiB; the "
        f"epoch that keeps it ran at {result['first_epoch_tokens_per_cpu_s']:,.0f} tokens per second of the "
        "processor. Clock and processor differ where the machine had other work.",
        "",
        *table(["from the second epoch on", "real tokens/s", "per second of the processor"], rows),
        "",
        f"An epoch is over {spread_cell(result['ratio'], 2)} times sooner and takes "
        f"{spread_cell(result['cpu_ratio'], 2)} times less of the processor.",
    ]


def rehearsal(result: dict[str, Any]) -> list[str]:
    """The processor's seconds for a trace, in PyTorch's fake mode and in ours."""
    settings = result["settings"]
    rows = [
        [name, f"{one['allocations']:,}"]
        + [spread_cell(value, 2) for value in (*one["cpu_s"].values(), one["ratio"])]
        for name, one in result["models"].items()
    ]
    first = next(iter(result["models"].values()))
    return [
        f"Two optimiser steps and a look at validation on shapes alone, {settings['micro_batch']} texts of "
        f"{settings['max_length']} tokens; both traces are the same.",
        "",
        *table(["model", "allocations", *(f"{way}, s" for way in first["cpu_s"]), "times sooner"], rows),
    ]


def linear(result: dict[str, Any]) -> list[str]:
    """The processor's seconds for the baseline's classifier by both problems."""
    rows = [
        [name, spread_cell(spent, 1), f"{result['accuracy'][name]:.4f}"]
        for name, spent in result["cpu_s"].items()
    ]
    return [
        f"`LinearSVC` on {result['rows']:,} rows of CLINC150, {result['features']:,} features, "
        f"{result['settings']['classes']} classes; accuracy on its validation rows. The dual, which the "
        f"baseline solves, is over {spread_cell(result['ratio'], 1)} times sooner.",
        "",
        *table(["problem", "seconds of the processor", "accuracy"], rows),
    ]


def pruning(result: dict[str, Any]) -> list[str]:
    """Accuracy against tokens trained on, by what was left out."""
    settings = result["settings"]
    columns = ["trained on", "rows", "thousand tokens", "until the best epoch", "validation", "test accuracy"]
    rows = [
        [
            name,
            spread_cell(found["rows"], 0),
            spread_cell(found["tokens_trained"], 0, scale=1e-3),
            spread_cell(found["tokens_to_best"], 0, scale=1e-3),
            spread_cell(found["validation_score"], 1, scale=100),
            spread_cell(found["accuracy"], 1, scale=100),
        ]
        for name, found in result["ways"].items()
    ]
    return [
        f"Banking77, {settings['rows']:,} training rows, default settings with {settings['epochs']:g} "
        f"epochs, {settings['seeds']} seeds; the model by itself. The probe is fitted on all rows; what is "
        "dropped is left out of training. Easiest are the rows whose label a probe fitted without them "
        "prefers most.",
        "",
        *table(columns, rows),
    ]
