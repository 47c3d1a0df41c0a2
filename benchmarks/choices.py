"""What a choice of ``snugtune fit`` brings on real data: fits that differ in one setting alone.

``auto`` chooses by validation rows; here its alternatives are scored on the test file as
well, which shows whether validation chose what was best there. Every fit is the whole command.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from accuracy import TASKS, fit_command, fit_once, task_of
from lib import common, page

ALL = {
    "long-texts": ("truncate", "head_tail", "windows", "auto"),
    "imbalance": ("none", "weights", "logit_adjustment", "sampling", "auto"),
}
"""The settings compared, and their values."""


def main() -> None:
    options = _arguments()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        task = task_of(options.data, Path(temporary))
        if task is None:
            return
        found: dict[str, dict[str, Any]] = {}
        for value in options.values or ALL[options.setting]:
            if time.perf_counter() - began > options.limit_s:
                print(f"{options.setting} {value}: left out, the time is over.")
                continue
            run = Path(temporary) / value
            settings = [*options.fit, f"--{options.setting}", value]
            seconds, error = fit_once(fit_command(task, run, settings), options.threads, options.fit_limit_s)
            found[value] = (
                {"error": error} if error else read_choice(run, options.setting) | {"seconds": seconds}
            )
            print(f"{options.setting} {value}: {_said(found[value])}")
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    record = {"benchmark": "choices", "settings": settings, "values": found}
    name = f"choices-{options.setting}-{options.data}"
    common.save_result(name, record, options.out, machine=common.hardware())
    page.refresh(options.out)


def _arguments() -> Any:
    parser = common.parser("Fits of the same data that differ in one setting, on the test file.")
    parser.add_argument("--setting", choices=tuple(ALL), required=True)
    parser.add_argument("--values", nargs="+", default=None, help="of the setting; all of them if left out")
    parser.add_argument("--data", choices=TASKS, default="cfpb-issue")
    parser.add_argument("--limit-s", type=float, default=3600, help="no new fit begins after this time")
    parser.add_argument("--fit-limit-s", type=float, default=3600, help="most seconds of one fit")
    parser.add_argument(
        "--fit", nargs=argparse.REMAINDER, default=[], help="what follows goes to snugtune fit as it is"
    )
    return parser.parse_args()


def read_choice(run: Path, setting: str) -> dict[str, Any]:
    """Scores of a run folder on the test file, and what it says it chose."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    test = record["metrics"]["test"]
    told = record.get(setting.replace("-", "_"), {})
    scores = {name: test[name] for name in ("accuracy", "f1_macro", "log_loss", "ece", "rows")}
    return scores | {"train_s": record["time"]["train_s"], "told": told}


def _said(found: dict[str, Any]) -> str:
    if "error" in found:
        return str(found["error"])
    return f"accuracy {found['accuracy']:.4f}, macro-F1 {found['f1_macro']:.4f} in {found['seconds']:.0f} s"


if __name__ == "__main__":
    main()
