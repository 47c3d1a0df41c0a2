"""One data-centre GPU: ours against the recipe on a model of XLM-RoBERTa-large's shape, in turns.

At the length distribution of real complaints, in bfloat16, with random weights (no download), in sections:

- *whole* and *capped*: examples a second, model FLOPs utilisation and peak memory with all of the card and
  with 16 GiB of it. Beside the recipe stand our engine with micro-batches of given sizes, without packing,
  and as our own plan has it; and a bare loop over our wrapped model, packed and padded, whose speed is what
  the engine is measured against (at least 90 % of it);
- *forecast*: what the plan forecasts for 120,000 texts and 3 epochs within 16 GiB, beside what the measured
  speed makes of them;
- *decoder*: whether a decoder of 8 billion parameters in 4 bits trains within 16 GiB.

Each contestant is a process of its own that passes its turn on. Results are written after each section;
``--resume FILE`` puts others beside those of an earlier run.
``--dry-run`` takes tiny shapes of the same kinds wherever it runs and writes nothing.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
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

SECTIONS = ("whole", "capped", "forecast", "decoder")
WHERE = {"whole": "whole card", "capped": f"{CAP_GIB:g} GiB"}

PLANNED, BARE, BARE_PADDED = "ours, as planned", "bare loop", "bare loop, padded"

SAME = ("rows", "max_length", "batch", "tokens", "decoder_rows")
"""Settings that results must have in common to be put together."""

GOAL = 0.9
"""Of a bare loop's speed."""


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
    deadline = common.Deadline(options.deadline_s)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = common.matmul_peak(torch.bfloat16, device, (256,) if options.dry_run else CARD_SIZES)
    file = None
    if not options.dry_run:
        file = common.ResultFile("speed-gpu", options.out, machine=common.hardware())
    with tempfile.TemporaryDirectory() as temporary:
        config = xlm_roberta_large(tiny=options.dry_run)
        model = write_model(config, Path(temporary) / "model")
        result = measure(
            options, str(model), config, peak, deadline, lambda found: file.write(found) if file else None
        )
    _tell(result)
    if file is not None:
        print(f"Wrote {file.path}.")
        page.refresh(options.out)


def _arguments() -> Any:
    parser = common.parser("One GPU: ours against the recipe on the shape of XLM-RoBERTa-large.")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--deadline-s", type=float, help="begin no turn and no section after so long")
    parser.add_argument("--resume", type=Path, help="a result file whose other sections are kept")
    parser.add_argument("--rows", type=int, default=2048, help="texts in a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--max-length", type=int, default=512, help="tokens kept of a text (and padded to)")
    parser.add_argument("--batch", type=int, default=32, help="examples of an optimiser step, on both sides")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[4096, 8192],
        help="of our micro-batches; a contestant each, and the last those of the bare loops",
    )  # fmt: skip
    parser.add_argument("--decoder-rows", type=int, default=64, help="texts for the 8 B decoder")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, also without a card")
    return parser.parse_args()


def measure(
    options: Any,
    model: str,
    config: Any,
    peak: float,
    deadline: common.Deadline,
    write: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """The sections that are asked for and begun before the deadline; ``write`` is given all after each."""
    shared = {
        "model": model, "rows": options.rows, "repeats": options.repeats, "batch": options.batch,
        "max_length": options.max_length, "classes": BLOG["classes"], "cap_gib": None,
        "tiny": options.dry_run, "deadline_at": deadline.at,
    }  # fmt: skip
    capped = shared | {"cap_gib": CAP_GIB}
    found: dict[str, Any] = {
        "matmul_peak_flops": peak,
        "speed": {},
        **_earlier(options),
        "settings": {name: value for name, value in vars(options).items() if name not in ("out", "resume")},
    }

    def speed(section: str, of: dict[str, Any]) -> None:
        outcomes = run_in_turns(jobs(of, options.tokens), 0.0, on_point=_say)
        found["speed"][WHERE[section]] = compared(outcomes, of, config, peak, pairs(options.tokens))

    work: dict[str, Callable[[], None]] = {
        "whole": lambda: speed("whole", shared),
        "capped": lambda: speed("capped", capped),
        "forecast": lambda: found.update(blog=blog(found["speed"].get(WHERE["capped"]), capped)),
        "decoder": lambda: found.update(decoder=_decoder(capped, options.decoder_rows)),
    }
    for section in SECTIONS:
        if section in options.sections and deadline.allows():
            work[section]()
            write(found)
    return found


def _earlier(options: Any) -> dict[str, Any]:
    """Sections that another run with the same settings has measured."""
    if options.resume is None:
        return {}
    earlier = json.loads(options.resume.read_text(encoding="utf-8"))
    if unlike := [name for name in SAME if earlier["settings"][name] != getattr(options, name)]:
        sys.exit(f"The earlier result has other settings: {', '.join(unlike)}.")
    return {name: earlier[name] for name in ("speed", "blog", "decoder") if name in earlier}


def ours_with(tokens: int) -> str:
    """The name of our engine with micro-batches of so many tokens."""
    return f"ours, {tokens:,} tokens a micro-batch"


def padded(name: str) -> str:
    """The name of ours without packing."""
    return name.replace("ours", "ours, padded", 1)


def jobs(shared: dict[str, Any], tokens: list[int]) -> dict[str, Job]:
    """The recipe with both paddings, ours in several ways, and the bare loops."""
    from lib import card

    def job(kind: str, **more: Any) -> Job:
        return Job(card.train_turns, {"options": shared, "kind": kind, **more})

    found = {name: job(kind) for name, kind in RECIPES.items()}
    found |= {ours_with(size): job("ours", tokens=size) for size in tokens}
    most = tokens[-1]
    return found | {
        padded(ours_with(most)): job("ours", tokens=most, packing="off"),
        PLANNED: job("planned"),
        BARE: job("bare loop", tokens=most),
        BARE_PADDED: job("bare loop", tokens=most, packing="off"),
    }


def pairs(tokens: list[int]) -> dict[str, str]:
    """Ours by the bare loop that has the same micro-batches."""
    ours = ours_with(tokens[-1])
    return {ours: BARE, padded(ours): BARE_PADDED}


def compared(
    outcomes: dict[str, Outcome],
    shared: dict[str, Any],
    config: Any,
    peak: float,
    like: dict[str, str],
) -> dict[str, Any]:
    """Speed, utilisation and peak of each, the ratios of our fastest to the recipes, and ours / bare loop."""
    from lib.flops import Shape, training_flops
    from lib.lengths import cfpb_lengths

    lengths = [min(n, shared["max_length"]) for n in cfpb_lengths(shared["rows"]).tolist()]
    flops = training_flops(Shape.of(config, 16, shared["classes"]), lengths)
    speeds = {
        name: [point["examples"] / point["seconds"] for point in outcome.points]
        for name, outcome in outcomes.items()
        if outcome.points
    }
    contestants = {
        name: _measured(outcome.points, flops, peak) if outcome.points else {"error": _why(outcome)}
        for name, outcome in outcomes.items()
    }
    ours = [name for name in speeds if name.startswith("ours")]
    best = max(ours, key=lambda name: common.spread(speeds[name])["median"]) if ours else None
    ratios = {name: _ratio(speeds[best], speeds[name]) for name in RECIPES if best and name in speeds}
    of_bare = {
        name: _ratio(speeds[name], speeds[bare])
        for name, bare in like.items()
        if name in speeds and bare in speeds
    }
    return {
        "contestants": contestants, "best": best, "ratios": ratios, "of_bare_loop": of_bare,
        "model_flops_a_turn": flops,
    }  # fmt: skip


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Turn by turn, as far as both got before the deadline."""
    return common.ratio_spread(*zip(*zip(ours, theirs, strict=False), strict=True))


def _measured(points: list[dict[str, Any]], flops: float, peak: float) -> dict[str, Any]:
    def rate(name: str) -> dict[str, Any]:
        return common.spread([point[name] / point["seconds"] for point in points])

    first = points[0]
    return {
        "examples_per_s": rate("examples"),
        "tokens_per_s": rate("real_tokens"),
        "padding_waste": 1 - first["real_tokens"] / first["padded_tokens"],
        "mfu": common.spread([flops / point["seconds"] / peak for point in points]),
        "peak_gib": first["peak_gib"],
        **{name: first[name] for name in ("packed", "tokens_per_micro_batch", "levers") if name in first},
    }


def _why(outcome: Outcome) -> str:
    return (outcome.error or "no turn before the deadline").strip().splitlines()[-1]


def blog(found: dict[str, Any] | None, shared: dict[str, Any]) -> dict[str, Any]:
    """The published run: forecast by our plan, and, where that was ``found``, measured on a slice of it."""
    from lib import card

    job = Job(card.forecast, {"options": shared, "rows": BLOG["rows"], "epochs": BLOG["epochs"]})
    outcome = run_in_turns({"forecast": job}, 0.0)["forecast"]
    examples = BLOG["rows"] * BLOG["epochs"]
    hours = {
        name: examples / of["examples_per_s"]["median"] / 3600
        for name, of in (found or {"contestants": {}})["contestants"].items()
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
        for name, share in found["of_bare_loop"].items():
            met = "met" if share["median"] >= GOAL else "missed"
            print(f"{where}, {name}: {100 * share['median']:.0f} % of a bare loop (goal {met})")
    if "blog" in result:
        told = result["blog"]
        print("hours of the published run:", told["hours_at_measured_speed"])
        print("forecast:", told["plan"] and told["plan"]["time_s"], told["plan_error"] or "")
    if "decoder" in result:
        of = result["decoder"]
        print("decoder:", of.get("error") or f"{of['steps']} steps, peak {of['peak_gib']:.2f} GiB")


if __name__ == "__main__":
    main()
