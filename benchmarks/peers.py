"""Peers on Banking77, accuracy over seconds of work: ours, SetFit, and a frozen sentence encoder, in turns.

All of them start from texts and MiniLM. SetFit trains on a few rows of each class, as it is meant to, and on
every row; it ends when it is done or the limit is over. Looks at the test file are not counted for anyone.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from typing import Any

from lib import common, page
from lib.timeline import TimeLine, speedup, time_line
from lib.turns import Job, run_in_turns

PAIRS_A_ROW = {"few": 20, "all": 1}
"""Positive and negative pairs made of each row: SetFit's published 20; one where there are ten thousand."""


def main() -> None:
    options = _arguments()
    folder = common.data_folder("banking77")
    if folder is None:
        return
    if find_spec("setfit") is None:
        print("Skipped: SetFit is not installed; run: pip install -c constraints.txt '.[bench]'.")
        return
    common.quiet_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        shared = {
            "folder": str(folder), "limit_s": options.limit_s, "seed": options.seed, "scratch": scratch,
            "threads": options.threads, "look_every": 50, "max_length": options.max_length,
            "target": 1.01,  # none stops early: the whole way is drawn
            "from_texts": True,
        }  # fmt: skip
        outcomes = run_in_turns(_jobs(shared, options), options.slice_s, on_point=_say)
    lines = {}
    for name, outcome in outcomes.items():
        if outcome.error:
            print(f"{name} failed: {outcome.error}")
        else:
            lines[name] = time_line(outcome.points, outcome.work_s)
    if "ours" not in lines:
        raise SystemExit(1)
    _save(lines, options)


def _arguments() -> Any:
    parser = common.parser("Accuracy over seconds on Banking77, beside SetFit and a frozen sentence encoder.")
    parser.add_argument(
        "--target", type=float, default=0.92, help="accuracy on the test file to be compared at"
    )
    parser.add_argument("--limit-s", type=float, default=400, help="most seconds of work of a contestant")
    parser.add_argument("--slice-s", type=float, default=20, help="seconds of work in a turn")
    parser.add_argument("--max-length", type=int, default=128, help="tokens kept of a text")
    parser.add_argument(
        "--shots", type=int, nargs="+", default=[8, 0], help="SetFit's rows a class; 0 is all"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _jobs(shared: dict[str, Any], options: Any) -> dict[str, Job]:
    from lib import peers, race

    jobs = {
        "ours": Job(race.ours, {"options": shared}),
        "frozen encoder, logistic regression": Job(peers.frozen, {"options": shared}),
    }
    for shots in options.shots:
        name = f"SetFit, {shots} rows a class" if shots else "SetFit, every row"
        iterations = PAIRS_A_ROW["few" if shots else "all"]
        jobs[name] = Job(peers.setfit, {"options": shared, "shots": shots, "iterations": iterations})
    return jobs


def _say(name: str, point: dict[str, Any]) -> None:
    print(f"{name}: {point['work_s']:7.1f} s, step {point['step']:5d}, accuracy {point['accuracy']:.4f}")


def _save(lines: dict[str, TimeLine], options: Any) -> None:
    result = {
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "contestants": {name: line.as_dict(options.target) for name, line in lines.items()},
        "ratios": {
            name: speedup(lines["ours"], line, options.target)
            for name, line in lines.items()
            if name != "ours"
        },
        "peer_versions": common.versions(("setfit", "sentence-transformers")),
    }
    common.save_result("peers", result, options.out, machine=common.hardware())
    page.refresh(options.out)


if __name__ == "__main__":
    main()
