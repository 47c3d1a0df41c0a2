"""One data-centre GPU: ours against the recipe on a model of XLM-RoBERTa-large's shape, in turns.

At the length distribution of real complaints, in bfloat16, with random weights (no download): examples a
second, model FLOPs utilisation and peak memory, with all of the card and with 16 GiB of it; what the plan
forecasts for 120,000 texts and 3 epochs beside what the measured speed makes of them; and whether a decoder
of 8 billion parameters in 4 bits trains within 16 GiB. Each contestant is a process of its own that passes
its turn on.

``--dry-run`` takes tiny shapes of the same kinds on the CPU and writes nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lib import common, page
from lib.turns import Job, Outcome, run_in_turns

CAP_GIB = 16.0
CARD_SIZES = (2048, 4096, 8192)
"""Sides of the matrices whose product is timed: a card needs larger ones than a CPU to reach its peak."""

BLOG = {"rows": 120_000, "epochs": 3, "classes": 214, "published_hours": 9.0}
"""The published run: it took so long on a 16 GB card."""

RECIPES = {"recipe, padded to the maximum": "max_length", "recipe, padded to the longest": "longest"}


def main() -> None:
    options = _arguments()
    common.quiet_libraries()
    import torch
    from lib.shapes import write_model, xlm_roberta_large

    if not torch.cuda.is_available() and not options.dry_run:
        print("Skipped: there is no CUDA card here; --dry-run sees whether the script works.")
        return
    if options.dry_run:
        options.rows, options.max_length, options.repeats, options.decoder_rows = 16, 48, 1, 4
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = common.matmul_peak(torch.bfloat16, device, (256,) if options.dry_run else CARD_SIZES)
    with tempfile.TemporaryDirectory() as temporary:
        config = xlm_roberta_large(tiny=options.dry_run)
        model = write_model(config, Path(temporary) / "model")
        result = measure(options, str(model), config, peak)
    result["matmul_peak_flops"] = peak
    _tell(result)
    if not options.dry_run:
        common.save_result("speed-gpu", result, options.out, machine=common.hardware())
        page.refresh(options.out)


def _arguments() -> Any:
    parser = common.parser("One GPU: ours against the recipe on the shape of XLM-RoBERTa-large.")
    parser.add_argument("--rows", type=int, default=512, help="texts in a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--max-length", type=int, default=512, help="tokens kept of a text (and padded to)")
    parser.add_argument("--batch", type=int, default=32, help="examples of an optimiser step, on both sides")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[4096, 8192], help="of our micro-batches; a contestant each"
    )
    parser.add_argument("--decoder-rows", type=int, default=64, help="texts for the 8 B decoder")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, also without a card")
    return parser.parse_args()


def measure(options: Any, model: str, config: Any, peak: float) -> dict[str, Any]:
    """All of the card, 16 GiB of it, the forecast, the decoder."""
    shared = {
        "model": model, "rows": options.rows, "repeats": options.repeats, "batch": options.batch,
        "max_length": options.max_length, "classes": BLOG["classes"], "cap_gib": None,
        "tiny": options.dry_run,
    }  # fmt: skip
    capped = shared | {"cap_gib": CAP_GIB}
    speed = {
        name: compared(run_in_turns(jobs(of, options.tokens), 0.0, on_point=_say), of, config, peak)
        for name, of in (("whole card", shared), (f"{CAP_GIB:g} GiB", capped))
    }
    return {
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "speed": speed,
        "blog": blog(speed[f"{CAP_GIB:g} GiB"], capped),
        "decoder": _decoder(capped, options.decoder_rows),
    }


def jobs(shared: dict[str, Any], tokens: list[int]) -> dict[str, Job]:
    """The recipe with both paddings, and ours with each size of micro-batch."""
    from lib import card

    found = {name: Job(card.train_turns, {"options": shared, "kind": kind}) for name, kind in RECIPES.items()}
    for size in tokens:
        options = {"options": shared, "kind": "ours", "tokens": size}
        found[f"ours, {size:,} tokens a micro-batch"] = Job(card.train_turns, options)
    return found


def compared(
    outcomes: dict[str, Outcome], shared: dict[str, Any], config: Any, peak: float
) -> dict[str, Any]:
    """Speed, utilisation and peak of each, and the ratios of our fastest to the recipes."""
    from lib.flops import Shape, training_flops
    from lib.lengths import cfpb_lengths

    lengths = [min(n, shared["max_length"]) for n in cfpb_lengths(shared["rows"]).tolist()]
    flops = training_flops(Shape.of(config, 16, shared["classes"]), lengths)
    speeds = {
        name: [point["examples"] / point["seconds"] for point in outcome.points]
        for name, outcome in outcomes.items()
        if not outcome.error
    }
    contestants: dict[str, Any] = {}
    for name, outcome in outcomes.items():
        if outcome.error:
            contestants[name] = {"error": outcome.error.strip().splitlines()[-1]}
            continue
        points = outcome.points
        contestants[name] = {
            "examples_per_s": common.spread(speeds[name]),
            "tokens_per_s": common.spread([point["real_tokens"] / point["seconds"] for point in points]),
            "padding_waste": 1 - points[0]["real_tokens"] / points[0]["padded_tokens"],
            "mfu": common.spread([flops / point["seconds"] / peak for point in points]),
            "peak_gib": max(point["peak_gib"] for point in points),
        }
    ours = [name for name in speeds if name.startswith("ours")]
    best = max(ours, key=lambda name: common.spread(speeds[name])["median"]) if ours else None
    ratios = {
        name: common.ratio_spread(speeds[best], speeds[name]) for name in speeds if best and name in RECIPES
    }
    return {"contestants": contestants, "best": best, "ratios": ratios, "model_flops_a_turn": flops}


def blog(found: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """The published run: forecast by our plan, and measured on a slice of it."""
    from lib import card

    job = Job(card.forecast, {"options": shared, "rows": BLOG["rows"], "epochs": BLOG["epochs"]})
    outcome = run_in_turns({"forecast": job}, 0.0)["forecast"]
    examples = BLOG["rows"] * BLOG["epochs"]
    hours = {
        name: examples / of["examples_per_s"]["median"] / 3600
        for name, of in found["contestants"].items()
        if "error" not in of
    }
    plan = outcome.points[0]["plan"] if outcome.points else None
    return {**BLOG, "plan": plan, "plan_error": outcome.error, "hours_at_measured_speed": hours}


def _decoder(shared: dict[str, Any], rows: int) -> dict[str, Any]:
    from lib import card

    job = Job(card.quantized_decoder, {"options": shared, "rows": rows})
    outcome = run_in_turns({"decoder": job}, 0.0)["decoder"]
    return {"error": outcome.error} if outcome.error else outcome.points[0]


def _say(name: str, point: dict[str, Any]) -> None:
    speed = point["examples"] / point["seconds"]
    print(f"{name}: {speed:.1f} examples/s, peak {point['peak_gib']:.2f} GiB")


def _tell(result: dict[str, Any]) -> None:
    for where, found in result["speed"].items():
        for name, of in found["contestants"].items():
            if "error" in of:
                print(f"{where}, {name}: {of['error']}")
            else:
                speed, mfu, peak = of["examples_per_s"]["median"], of["mfu"]["median"], of["peak_gib"]
                print(f"{where}, {name}: {speed:.1f} examples/s, MFU {100 * mfu:.0f} %, {peak:.2f} GiB")
        for name, ratio in found["ratios"].items():
            print(f"{where}, {found['best']} / {name}: {ratio['median']:.2f}")
    print("hours of the published run:", result["blog"]["hours_at_measured_speed"])
    plan, decoder = result["blog"]["plan"], result["decoder"]
    print("forecast:", plan and plan["time_s"], result["blog"]["plan_error"] or "")
    print("decoder:", decoder.get("error") or f"{decoder['steps']} steps, peak {decoder['peak_gib']:.2f} GiB")


if __name__ == "__main__":
    main()
