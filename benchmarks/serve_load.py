"""`snugtune serve` at twice what it can do, among hostile clients, its worker killed now and then.

First its capacity is measured; then correct clients ask twice as often, at random moments, and compare every
answer, while others send slowly, send nonsense, bring no key or go away, while new versions of the run take
over, and, in the second half, while the worker is killed or stopped.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from lib import common, page


def main() -> None:
    options = _arguments()
    common.quiet_libraries()
    from lib import load_trial

    plan = load_trial.Plan.of(options.minutes)
    limits = {
        "timeout": options.timeout_s, "read-timeout": options.read_timeout_s,
        "payload-limit": options.payload_limit,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        trial = load_trial.run_trial(
            Path(temporary), options.model, plan, classes=options.classes, texts=options.texts,
            threads=options.threads, seed=options.seed, limits=limits,
        )  # fmt: skip
    _save(load_trial.told(trial), options)


def _arguments() -> Any:
    parser = common.parser("Serving at twice its capacity, among hostile clients and kills.")
    parser.add_argument("--minutes", type=float, default=30.0, help="in all")
    parser.add_argument("--model", default="minilm", help="'minilm' or a folder")
    parser.add_argument("--classes", type=int, default=120)
    parser.add_argument("--texts", type=int, default=200, help="different texts that are asked")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout-s", type=float, default=10.0, help="the server's --timeout")
    parser.add_argument("--read-timeout-s", type=float, default=5.0, help="the server's --read-timeout")
    parser.add_argument("--payload-limit", type=int, default=500_000, help="the server's --payload-limit")
    return parser.parse_args()


def _save(found: dict[str, Any], options: Any) -> None:
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    path = common.save_result(
        "serve-load", {"settings": settings, **found}, options.out, machine=common.hardware()
    )
    page.refresh(options.out)
    for key in ("statuses", "accepted_s", "refused_s", "growth", "faults"):
        print(f"{key}: {found[key]}")
    if found["faults"]:
        sys.exit(f"{found['faults']} faults; see {path}.")


if __name__ == "__main__":
    main()
