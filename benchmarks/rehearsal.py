"""A step rehearsed on shapes: PyTorch's fake mode beside ours, in turns. Needs no card, weights or network.

Seconds are the processor's: what else the machine does lengthens them least. Both make the same trace, which
is checked.
"""

from __future__ import annotations

import time
from typing import Any
from unittest.mock import patch

from lib import common, page

MODELS = ("minilm", "xlm-roberta-large", "meta-llama/Llama-3.1-8B")
USUAL, OURS = "PyTorch's fake mode", "plain operators at once"


def main() -> None:
    """Trace a step of each model in turns and write the result."""
    parser = common.parser("A step rehearsed on shapes, in PyTorch's fake mode and in ours.")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=3, help="turns of each")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a text")
    options = parser.parse_args()
    common.quiet_libraries()
    found = {
        "settings": {"repeats": options.repeats, "max_length": options.max_length, "micro_batch": 2},
        "models": {name: _turns(name, options) for name in options.models},
    }
    common.save_result("rehearsal", found, options.out, machine=common.hardware())
    page.refresh(options.out)


def _turns(model: str, options: Any) -> dict[str, Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from snugtune.memory.shapes import Shapes

    modes = {USUAL: FakeTensorMode, OURS: Shapes}
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(options.repeats):
        traces = {
            name: _trace(model, options.max_length, mode, seconds[name]) for name, mode in modes.items()
        }
        if traces[USUAL].storages != traces[OURS].storages:
            raise RuntimeError(f"the two traces of {model} differ")
    return {
        "allocations": len(traces[OURS].storages),
        "cpu_s": {name: common.spread(values) for name, values in seconds.items()},
        "ratio": common.ratio_spread(seconds[USUAL], seconds[OURS]),
    }


def _trace(model: str, length: int, mode: Any, seconds: list[float]) -> Any:
    """The trace of a step in ``mode``, made afresh; its seconds are added to ``seconds``."""
    from snugtune.config import make_config
    from snugtune.memory.setup import Setup
    from snugtune.train import rehearsal

    config = make_config({"train": "", "model": model, "max_length": length})
    with patch.object(rehearsal, "Shapes", mode):
        made = rehearsal.Rehearsal(config, 10, Setup())
        start = time.process_time()
        trace = made.trace(2, length, work=True)
        seconds.append(time.process_time() - start)
    return trace


if __name__ == "__main__":
    main()
