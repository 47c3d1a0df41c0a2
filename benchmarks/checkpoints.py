"""What committed training states cost a run: MiniLM on Banking77, our engine, in turns with and without.

In the turns with states one is committed every ``--every-s`` seconds, many times more often than the product
does, so that there is something to measure: what a commit keeps training waiting for (the copy), and the
processor's time of the thread that writes it. What that comes to at the product's own spacing follows.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import common, page


def main() -> None:
    options = _arguments()
    folder = common.data_folder("banking77")
    if folder is None:
        return
    common.quiet_libraries()
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.disk) as disk:
        _measure(folder, Path(disk), options)


def _arguments() -> Any:
    parser = common.parser("Training with and without committed states.")
    parser.add_argument("--rows", type=int, default=1600, help="texts in a turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each")
    parser.add_argument("--every-s", type=float, default=1.0, help="seconds between two commits")
    parser.add_argument("--limit-s", type=float, default=240, help="no new round begins after this time")
    parser.add_argument("--disk", type=Path, default=None, help="folder on the disk that takes the states")
    return parser.parse_args()


@dataclass(frozen=True)
class _Turn:
    """Seconds of the clock, of the processor, and what each commit cost by the product's own reckoning."""

    seconds: float
    cpu_s: float
    costs_s: list[float]


def _measure(folder: Path, disk: Path, options: Any) -> None:
    from dataclasses import replace

    import numpy as np
    from lib.datasets import banking77, subset, token_data
    from lib.ours import TimedSteps, train_ours, wrap_model

    from snugtune.config import FitConfig
    from snugtune.train.checkpoints import LARGEST_SHARE, Checkpoints

    config = FitConfig(train="", num_train_epochs=1)
    data = token_data(banking77(folder), config)
    rows = np.random.default_rng(0).choice(len(data.train.y), options.rows, replace=False)
    data = replace(data, train=subset(data.train, rows), validation=subset(data.validation, [0]))
    model, head_names = wrap_model(data, config)

    class Counted(Checkpoints):
        """Every so many seconds, and what each commit cost."""

        def __init__(self, folder: Path) -> None:
            super().__init__(folder, fingerprint="benchmark", interval_s=options.every_s)
            self.costs_s: list[float] = []

        def _write(self, *args: Any) -> None:
            super()._write(*args)
            # The product would wait this long for the next one, if not thirty seconds.
            self.costs_s.append(self.last_cost_s)
            self._next = self._clock() + options.every_s

    def turn(checkpoints: Any) -> _Turn:
        cpu_s: list[float] = []
        observer = TimedSteps(lambda: cpu_s.append(time.process_time()))
        train_ours(data, model, head_names, config, observer, checkpoints=checkpoints)
        return _Turn(observer.seconds, time.process_time() - cpu_s[0], getattr(checkpoints, "costs_s", []))

    turn(None)  # warms up
    began, turns = time.perf_counter(), ([], [])
    for round_ in range(options.repeats):
        if round_ and time.perf_counter() - began > options.limit_s:
            break
        for number, checkpoints in enumerate((None, Counted(disk / str(round_)))):
            turns[number].append(turn(checkpoints))
            print(f"{turns[number][-1].seconds:.2f} s, {len(turns[number][-1].costs_s)} commits")
    costs = [cost for one in turns[1] for cost in one.costs_s]
    newest = max((disk / "0").iterdir())
    without, with_states = turns
    result = {
        "settings": {"rows": options.rows, "threads": options.threads, "every_s": options.every_s},
        "state_bytes": sum(path.stat().st_size for path in newest.iterdir()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "commits": len(costs),
        "commit_s": common.spread(costs),
        "seconds_ratio": common.ratio_spread([t.seconds for t in with_states], [t.seconds for t in without]),
        "cpu_ratio": common.ratio_spread([t.cpu_s for t in with_states], [t.cpu_s for t in without]),
        "interval_s": 30.0,
        "largest_share": LARGEST_SHARE,
        "share": common.spread([cost / max(30.0, cost / LARGEST_SHARE) for cost in costs]),
    }
    common.save_result("checkpoints", result, options.out, machine=common.hardware())
    page.refresh(options.out)


if __name__ == "__main__":
    main()
