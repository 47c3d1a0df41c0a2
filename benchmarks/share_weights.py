"""Many classifiers of one backbone behind one server: each with its own weights, or those in common once.

For every number of classifiers both servers are started, their memory is read once all models answer, and
clients ask one model after the other, in turns. The same in a server of one classifier is what the adapter
beside the model costs by itself.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from lib import common, load_watch, page, serving

OWN, SHARED = "own weights", "--share-weights"
MIB = 2**20


def main() -> None:
    options = _arguments()
    common.quiet_libraries()
    from lib.contestants import texts_like_complaints
    from lib.ours import write_untrained_adapter_run

    with tempfile.TemporaryDirectory() as temporary:
        runs = [
            write_untrained_adapter_run(Path(temporary) / f"run{i}", options.classes, options.model, i)
            for i in range(max(options.classifiers))
        ]
        data = common.data_folder("cfpb") if options.model == "minilm" else None
        texts, kind = texts_like_complaints(data, runs[0], options.rows)
        found = [_measure(runs[:n], texts, options) for n in options.classifiers]
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    common.save_result(
        "share-weights", {"settings": settings, "texts": kind, "classifiers": found}, options.out,
        machine=common.hardware(),
    )  # fmt: skip
    page.refresh(options.out)


def _arguments() -> Any:
    parser = common.parser("Many classifiers of one backbone behind one server.")
    parser.add_argument("--model", default="minilm", help="'minilm' or a folder")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--rows", type=int, default=96, help="requests in a turn")
    parser.add_argument("--classifiers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--dtype", default="auto", help="the server's")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def _measure(runs: Sequence[Path], texts: list[str], options: Any) -> dict[str, Any]:
    """Memory and requests a second of both servers on ``runs``."""
    named = [f"m{i}={run}" for i, run in enumerate(runs)]
    paths = [f"/models/m{i}/predict" for i in range(len(runs))]
    turns: dict[str, list[serving.Turn]] = {OWN: [], SHARED: []}
    words = {OWN: named, SHARED: [*named, SHARED]}
    memory = {name: _memory(words[name], paths, texts, options) for name in turns}
    ports = {name: serving.free_port() for name in turns}
    with contextlib.ExitStack() as servers:
        for name, port in ports.items():
            servers.enter_context(serving.running(_command(words[name], port, options), port))
            serving.closed_loop(port, texts, options.clients, paths)  # to warm up
        for _ in range(options.repeats):
            for name, port in ports.items():
                turns[name].append(serving.closed_loop(port, texts, options.clients, paths))
    rates = {name: [turn.requests_per_s for turn in taken] for name, taken in turns.items()}
    found = {
        "classifiers": len(runs), "mib": memory,
        "requests_per_s": {name: common.spread(rate) for name, rate in rates.items()},
        "shared_by_own": common.ratio_spread(rates[SHARED], rates[OWN]),
        "errors": sum(sum(turn.errors.values()) for taken in turns.values() for turn in taken),
    }  # fmt: skip
    print(found)
    return found


def _memory(words: Sequence[str], paths: Sequence[str], texts: list[str], options: Any) -> float:
    """MiB of a server that is alone: pages of files that it has mapped several times count once (PSS)."""
    port = serving.free_port()
    with serving.running(_command(words, port, options), port) as keeper:
        serving.closed_loop(port, texts, options.clients, paths)
        worker = load_watch.worker_of(psutil.Process(keeper))
        assert worker is not None
        return float(worker.memory_full_info().pss) / MIB


def _command(words: Sequence[str], port: int, options: Any) -> list[str]:
    first, *more = words
    command = serving.our_command(Path(first), port, options.threads, "--dtype", options.dtype, *more)
    return [word if word != str(Path(first)) else first for word in command]


if __name__ == "__main__":
    main()
