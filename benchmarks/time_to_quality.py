"""Seconds of work until a given accuracy on Banking77: ours against the recipe, taking turns on this machine.

Both start from token ids and train on the same rows. Ours counts its frozen pass, its probe and its
training; the recipe its training. Looking at the test file only measures: it is not counted for either
and nothing is chosen by it. If the recipe has not arrived when the limit is over, the ratio is a lower bound.
"""

from __future__ import annotations

from typing import Any

from lib import common, page
from lib.timeline import TimeLine, speedup, time_line
from lib.turns import Job, Outcome, run_in_turns


def main() -> None:
    options = _arguments()
    folder = common.data_folder("banking77")
    if folder is None:
        return
    common.quiet_libraries()
    shared = {
        "folder": str(folder), "target": options.target, "limit_s": options.limit_s, "seed": options.seed,
        "threads": options.threads, "look_every": options.look_every, "max_length": options.max_length,
    }  # fmt: skip
    print(
        f"Banking77 to {options.target} on the test file, {options.threads} threads, "
        f"at most {options.limit_s:.0f} s of work each."
    )
    peak_before = _peak(options.threads)
    outcomes = run_in_turns(_jobs(shared, options), options.slice_s, on_point=_say)
    lines = {name: time_line(o.points, o.work_s) for name, o in outcomes.items() if not _failed(name, o)}
    if "ours" not in lines:
        raise SystemExit(1)
    _save(lines, options, [peak_before, _peak(options.threads)])


def _arguments() -> Any:
    parser = common.parser("Seconds of work until a given accuracy on Banking77, against the recipe.")
    parser.add_argument("--target", type=float, default=0.92, help="accuracy on the test file")
    parser.add_argument("--limit-s", type=float, default=1800, help="most seconds of work of a contestant")
    parser.add_argument("--slice-s", type=float, default=20, help="seconds of work in a turn")
    parser.add_argument("--look-every", type=int, default=50, help="steps between looks at the test file")
    parser.add_argument("--max-length", type=int, default=128, help="tokens kept of a text (and padded to)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--padding", choices=("longest", "max_length"), default="longest")
    parser.add_argument(
        "--learning-rate",
        type=float,
        nargs="+",
        default=[1e-4],
        help="of the recipe; one contestant for each",
    )
    return parser.parse_args()


def _jobs(shared: dict[str, Any], options: Any) -> dict[str, Job]:
    from lib import race

    jobs = {"ours": Job(race.ours, {"options": shared})}
    for rate in options.learning_rate:
        chosen = {"options": shared, "learning_rate": rate, "padding": options.padding}
        jobs[f"recipe, learning rate {rate:g}"] = Job(race.reference, chosen)
    return jobs


def _say(name: str, point: dict[str, Any]) -> None:
    print(f"{name}: {point['work_s']:7.1f} s, step {point['step']:5d}, accuracy {point['accuracy']:.4f}")


def _failed(name: str, outcome: Outcome) -> bool:
    if outcome.error:
        print(f"{name} failed: {outcome.error}")
    return outcome.error is not None


def _peak(threads: int) -> float:
    """Matrix-multiply FLOP/s now: if it differs before and after, the machine was busy."""
    import torch

    from snugtune.model.precision import pick_device

    torch.set_num_threads(threads)
    return common.matmul_peak(torch.float32, pick_device(), sizes=(1024, 2048))


def _save(lines: dict[str, TimeLine], options: Any, peaks: list[float]) -> None:
    from lib.reference import SETTINGS

    target = options.target
    ratios = {name: speedup(lines["ours"], line, target) for name, line in lines.items() if name != "ours"}
    for name, ratio in ratios.items():
        least = "at least " if ratio["lower_bound"] else ""
        said = (
            "ours did not arrive" if ratio["ratio"] is None else f"{least}{ratio['ratio']:.1f} times sooner"
        )
        print(f"ours against {name}: {said}")
    result = {
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "reference_settings": {k: v for k, v in SETTINGS.items() if k != "learning_rate"},
        "matmul_fp32_flops_before_after": peaks,
        "contestants": {name: line.as_dict(target) for name, line in lines.items()},
        "ratios": ratios,
    }
    common.save_result("time-to-quality", result, options.out, machine=common.hardware())
    page.refresh(options.out)


if __name__ == "__main__":
    main()
