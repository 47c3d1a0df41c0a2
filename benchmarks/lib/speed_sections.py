"""The page's sections on speed: throughput, the ladder, prediction, peers, one GPU."""

from __future__ import annotations

from typing import Any

from snugtune.units import duration

from .tables import spread_cell, table


def throughput(result: dict[str, Any]) -> list[str]:
    """Speed, padding and model FLOPs utilisation by phase; nearness to the hardware; memory."""
    settings, peaks = result["settings"], result["matmul_peak_flops"]
    columns = ["contestant", "real tokens/s", "examples/s", "padding waste", "MFU", "ours is faster by"]
    lines = [
        f"{settings['model']}, {settings['rows']} texts a turn with the lengths of complaints (mean "
        f"{result['mean_length']:.0f} tokens, cut at {settings['max_length']}), {settings['threads']} "
        f'threads; ours with pooling "{settings["pooling"]}", the recipe on the model as published.',
    ]
    for phase, found in result["phases"].items():
        rows = [
            [
                name,
                spread_cell(of["tokens_per_s"], 0),
                spread_cell(of["examples_per_s"], 1),
                f"{100 * of['padding_waste']:.1f} %",
                spread_cell(of["mfu"], 1, scale=100, unit=" %"),
                spread_cell(found["ratios"].get(name), 2, unit="x"),
            ]
            for name, of in found["contestants"].items()
        ]
        lines += ["", f"{phase.capitalize()}:", "", *table(columns, rows)]
    told = " and ".join(f"{peak / 1e12:.2f} TFLOP/s in {dtype}" for dtype, peak in peaks.items())
    forward = result["forward"]
    lines += [
        "",
        f"Matrix products peak at {told}; model FLOPs utilisation (MFU) is a share of the peak in the format "
        f"a contestant multiplies in. Our forward pass in {result['dtype']} runs at "
        f"{100 * forward['share']:.0f} % of a bare loop over the same weight matrices, at "
        f"{100 * forward['share_with_attention']:.0f} % of one with attention's two products besides.",
    ]
    if result["outside_kernels"]:
        told = ", ".join(
            f"{100 * of['share']:.0f} % ({name})" for name, of in result["outside_kernels"].items()
        )
        lines += ["", f"Share of training time outside kernels, at most: {told}."]
    return lines + _memory(result["memory"])


def _memory(phases: dict[str, Any]) -> list[str]:
    if not phases:
        return []
    names = list(next(iter(phases.values())))
    columns = ["contestant", *(f"{phase}: peak (beyond the loaded model)" for phase in phases)]
    rows = [
        [name, *(f"{of[name]['peak_gib']:.2f} GiB ({of[name]['grown_gib']:.2f})" for of in phases.values())]
        for name in names
    ]
    return ["", "Peak memory, each in a process of its own:", "", *table(columns, rows)]


def ladder(result: dict[str, Any]) -> list[str]:
    """Each lever's own gain, and all of them together."""
    settings = result["settings"]
    rows = [
        [
            rung["name"],
            spread_cell(rung["tokens_per_s"], 0),
            f"{100 * rung['padding_waste']:.1f} %",
            spread_cell(rung["step"], 2, unit="x"),
            spread_cell(rung["total"], 2, unit="x"),
            {None: "", True: "yes", False: "no"}[rung["pays"]],
        ]
        for rung in result["rungs"]
    ]
    columns = [
        "lever",
        "real tokens/s",
        "padding waste",
        "against the rung above",
        "against the recipe",
        "pays",
    ]
    return [
        f"Training, {settings['model']} as published, {settings['rows']} texts a turn with the lengths of "
        f"complaints (cut at {settings['max_length']}), {settings['threads']} threads, {result['dtype']}. "
        f"Each row keeps the levers of those above it; a lever pays from {result['pays_from']:.2f}x. "
        "Half-precision weights and micro-batches by tokens are there for the memory they save, whether they "
        "pay here or not.",
        "",
        "![Real tokens per second, one lever after the other](images/ladder.png)",
        "",
        *table(columns, rows),
    ]


def prediction(result: dict[str, Any]) -> list[str]:
    """Speed in prediction against the pipeline at each of its batch sizes."""
    ratios, memory = result["ratios"], result["memory"]
    rows = [
        [
            name,
            spread_cell(of["examples_per_s"], 1),
            spread_cell(of["tokens_per_s"], 0),
            f"{100 * of['same_label_as_ours']:.1f} %",
            f"{memory[name]['peak_gib']:.2f} GiB" if name in memory else "",
            *(spread_cell(against.get(name), 2, unit="x") for against in ratios.values()),
        ]
        for name, of in result["contestants"].items()
    ]
    columns = ["contestant", "examples/s", "tokens/s", "same label as ours", "peak memory"]
    columns += [f"{name}: faster by" for name in ratios]
    settings = result["settings"]
    return [
        f"Prediction from texts, MiniLM with an untrained head of {settings['classes']} classes (many rows "
        f"are near ties), {settings['rows']} {result['texts']} a turn, {settings['threads']} threads. The "
        "pipeline's default batch size is 1; it runs the same model, with our averaging layer.",
        "",
        *table(columns, rows),
    ]


def peers(result: dict[str, Any]) -> list[str]:
    """Accuracy over seconds of work beside other ways to a classifier."""
    settings, target = result["settings"], result["settings"]["target"]
    rows = []
    for name, line in result["contestants"].items():
        last = line["points"][-1]
        reached = line["seconds_to_target"]
        ratio = result["ratios"].get(name)
        rows.append(
            [
                name,
                f"{last['accuracy']:.3f}",
                duration(line["work_s"]),
                f"{line['best_accuracy']:.3f}",
                duration(reached) if reached is not None else f"not within {duration(line['work_s'])}",
                sooner(ratio),
            ]
        )
    columns = ["contestant", "accuracy at its end", "work", "best accuracy seen", f"seconds to {target:g}"]
    named = ", ".join(
        f"{name} {number}" for name, number in result["peer_versions"].items() if name != "python"
    )
    return [
        f"Banking77, MiniLM, from texts, seconds of work without looks at the test file; at most "
        f"{duration(settings['limit_s'])} each, seed {settings['seed']}, {settings['threads']} threads. "
        f"{named}.",
        "",
        "![Accuracy over seconds of work, ours and peers](images/peers.png)",
        "",
        *table([*columns, "ours is sooner by"], rows),
    ]


def speed_gpu(result: dict[str, Any]) -> list[str]:
    """One GPU: speed, utilisation and memory on all of the card and on a share of it."""
    settings, lines = result["settings"], []
    columns = [
        "contestant", "examples/s", "real tokens/s", "MFU", "peak memory", "packed", "of a bare loop",
        "our fastest is faster by",
    ]  # fmt: skip
    for where, found in result["speed"].items():
        rows = [_on_card(name, of, found) for name, of in found["contestants"].items()]
        lines += ["", f"Memory: {where}.", "", *table(columns, rows)]
    if "blog" in result:
        lines += ["", _published_run(result["blog"])]
    if "decoder" in result:
        lines += ["", _decoder(result["decoder"])]
    return [
        f"The shape of XLM-RoBERTa-large with random weights, bfloat16, {settings['rows']} texts a turn with "
        f"the lengths of complaints (cut at {settings['max_length']}), {settings['batch']} examples a step; "
        f"matrix products peak at {result['matmul_peak_flops'] / 1e12:.0f} TFLOP/s.",
        *lines,
    ]


def _published_run(told: dict[str, Any]) -> str:
    plan, measured = told["plan"], told["hours_at_measured_speed"]
    forecast = "none" if not plan or plan["time_s"] is None else f"{plan['time_s'] / 3600:.2f} h"
    hours = ", ".join(f"{name} {value:.2f} h" for name, value in measured.items())
    return (
        f"{told['rows']:,} texts and {told['epochs']} epochs within the smaller share (published: "
        f"{told['published_hours']:g} h on a 16 GB card): forecast {forecast}"
        + (f"; at the measured speed {hours}." if hours else ".")
    )


def _decoder(of: dict[str, Any]) -> str:
    if "error" in of:
        return "A decoder of 8 billion parameters in 4 bits failed."
    return (
        f"A decoder with {of['parameters'] / 1e9:.1f} billion parameters in 4 bits trained {of['steps']} "
        f"steps at {of['tokens_per_s']:.0f} tokens/s within {of['peak_gib']:.2f} GiB; its losses are "
        f"{'' if of['finite'] else 'not '}finite."
    )


def _on_card(name: str, of: dict[str, Any], found: dict[str, Any]) -> list[str]:
    if "error" in of:
        return [name, of["error"], "", "", "", "", "", ""]
    return [
        name,
        spread_cell(of["examples_per_s"], 1),
        spread_cell(of["tokens_per_s"], 0),
        spread_cell(of["mfu"], 1, scale=100, unit=" %"),
        f"{of['peak_gib']:.2f} GiB",
        {None: "", True: "yes", False: "no"}[of.get("packed")],
        spread_cell(found["of_bare_loop"].get(name), 0, scale=100, unit=" %"),
        spread_cell(found["ratios"].get(name), 2, unit="x"),
    ]


def sooner(ratio: dict[str, Any] | None) -> str:
    """``25.7x``, or at least that."""
    if ratio is None or ratio["ratio"] is None:
        return ""
    return f"at least {ratio['ratio']:.1f}x" if ratio["lower_bound"] else f"{ratio['ratio']:.1f}x"
