"""Few texts a class on Banking77: ``snugtune fit`` as a user types it, and SetFit on the same rows.

SetFit trains MiniLM on pairs as in its paper (20 of each kind a text, one epoch, batches of 16) to its end,
or to the limit; its accuracy is the one at its end. The test file is touched once by each.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accuracy import Task, fit_command, fit_once, read_scores
from lib import common, page
from lib.datasets import Texts, banking77
from lib.peers import few_shots
from lib.turns import Job, run_in_turns


def main() -> None:
    options = _arguments()
    folder = common.data_folder("banking77")
    if folder is None:
        return
    common.quiet_libraries()
    texts = banking77(folder)
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for shots in options.shots:
            ways: dict[str, list[dict[str, float]]] = {"snugtune fit": []}
            for seed in range(options.seeds):
                task = _tables(texts, shots, seed, Path(scratch))
                ways["snugtune fit"].append(_ours(task, Path(scratch) / "run", options))
                print(f"{shots} a class, seed {seed}, snugtune fit: {ways['snugtune fit'][-1]}")
                if seed < options.setfit_seeds:
                    ways.setdefault("SetFit", []).append(_setfit(folder, shots, seed, options, scratch))
                    print(f"{shots} a class, seed {seed}, SetFit: {ways['SetFit'][-1]}")
            found[str(shots)] = ways
    shots_found = {
        shots: {
            name: {key: common.spread([run[key] for run in runs]) for key in runs[0]}
            for name, runs in ways.items()
        }
        for shots, ways in found.items()
    }
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    record = {"settings": settings, "shots": shots_found}
    common.save_result("few-shot", record, options.out, machine=common.hardware())
    page.refresh(options.out)


def _arguments() -> Any:
    parser = common.parser("Accuracy on Banking77 with few texts a class, beside SetFit.")
    parser.add_argument("--shots", type=int, nargs="+", default=[8, 16, 25], help="texts a class")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the rows")
    parser.add_argument("--setfit-seeds", type=int, default=1, help="of these, on how many SetFit trains")
    parser.add_argument("--limit-s", type=float, default=900, help="most seconds of work of SetFit")
    parser.add_argument("--max-length", type=int, default=128, help="tokens SetFit keeps of a text")
    parser.add_argument(
        "--fit", nargs=argparse.REMAINDER, default=[], help="what follows goes to snugtune fit as it is"
    )
    return parser.parse_args()


def _tables(texts: Texts, shots: int, seed: int, folder: Path) -> Task:
    import polars as pl

    rows = few_shots(texts.train_labels, shots, seed)
    train, test = folder / "train.csv", folder / "test.csv"
    chosen = {"text": [texts.train[i] for i in rows], "label": [texts.train_labels[i] for i in rows]}
    pl.DataFrame(chosen).write_csv(train)
    pl.DataFrame({"text": texts.test, "label": texts.test_labels}).write_csv(test)
    return Task(train, test, "text", "label")


def _ours(task: Task, run: Path, options: Any) -> dict[str, float]:
    before = _children_cpu_s()
    seconds, error = fit_once(fit_command(task, run, options.fit), options.threads, limit_s=3600)
    if error:
        raise SystemExit(error)
    scores = read_scores(run, seconds)
    return {"accuracy": scores["accuracy"], "seconds": seconds, "cpu_s": _children_cpu_s() - before}


def _children_cpu_s() -> float:
    """Seconds of the processor that finished child processes took: what a busy machine does not lengthen."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _setfit(folder: Path, shots: int, seed: int, options: Any, scratch: str) -> dict[str, float]:
    """Accuracy where SetFit ended, and seconds of its work."""
    from lib import peers

    if find_spec("setfit") is None:
        raise SystemExit("SetFit is not installed; run: pip install -c constraints.txt '.[bench]'.")
    shared = {
        "folder": str(folder), "limit_s": options.limit_s, "seed": seed, "scratch": scratch,
        "threads": options.threads, "max_length": options.max_length,
    }  # fmt: skip
    before = _children_cpu_s()
    job = Job(peers.setfit, {"options": shared, "shots": shots, "iterations": 20})
    outcome = run_in_turns({"SetFit": job}, float("inf"), on_point=lambda _name, _point: None)["SetFit"]
    if outcome.error:
        raise SystemExit(outcome.error)
    return {
        "accuracy": outcome.points[-1]["accuracy"],
        "seconds": outcome.work_s,
        "cpu_s": _children_cpu_s() - before,
    }


if __name__ == "__main__":
    main()
