"""Serving at complaint lengths: ours against LitServe and a plain FastAPI loop, in turns on the same machine.

All servers run the same model in float32 and stay up for the whole run; only one is asked at a time. Clients
ask again as soon as they are answered. LitServe's batch size and wait are tuned first, at the middle number
of clients, and its best setting competes. FastAPI runs both as a coroutine and in its thread pool.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

from lib import common, page, serving

OURS, LOOP, POOL, LITSERVE = "ours", "FastAPI, in its event loop", "FastAPI, in its thread pool", "LitServe"


def main() -> None:
    options = _arguments()
    common.quiet_libraries()
    from lib.contestants import texts_like_complaints
    from lib.ours import write_untrained_run

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = write_untrained_run(folder / "served", options.classes, options.model)
        data = common.data_folder("cfpb") if options.model == "minilm" else None
        texts, kind = texts_like_complaints(data, run, options.rows)
        print(f"{len(texts)} {kind} a turn, {options.threads} threads.")
        best, tried = _tune(run, texts, options)
        turns = _take_turns(run, texts, best, options)
    _save(turns, tried, {"texts": kind, "litserve": best}, options)


def _arguments() -> Any:
    parser = common.parser("Serving at complaint lengths, against LitServe and a plain FastAPI loop.")
    parser.add_argument("--model", default="minilm", help="'minilm' or a folder")
    parser.add_argument("--rows", type=int, default=192, help="requests in a turn")
    parser.add_argument("--classes", type=int, default=120)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument(
        "--repeats", type=int, default=3, help="turns of each contestant and number of clients"
    )
    parser.add_argument("--limit-s", type=float, default=2400, help="no new round begins after this time")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8, 16], help="of LitServe")
    parser.add_argument("--batch-timeouts", type=float, nargs="+", default=[0.0, 0.01, 0.05], help="s")
    return parser.parse_args()


def _tune(run: Path, texts: list[str], options: Any) -> tuple[dict[str, float], list[dict[str, float]]]:
    """LitServe's best setting at the middle number of clients, and all that were tried."""
    clients, sample = options.clients[len(options.clients) // 2], texts[: max(8, len(texts) // 2)]
    settings = [(size, wait) for size in options.batch_sizes for wait in options.batch_timeouts]
    tried = []
    for size, wait in dict.fromkeys((size, wait if size > 1 else 0.0) for size, wait in settings):
        port = serving.free_port()
        with serving.running(_litserve(run, port, options, size, wait), port):
            serving.closed_loop(port, sample[:8], clients)
            turn = serving.closed_loop(port, sample, clients)
        tried.append({"max_batch_size": size, "batch_timeout": wait, "requests_per_s": turn.requests_per_s})
        print(f"LitServe, batches of {size}, {wait:g} s: {turn.requests_per_s:.1f} requests/s")
    best = max(tried, key=lambda found: found["requests_per_s"])
    return {key: best[key] for key in ("max_batch_size", "batch_timeout")}, tried


def _litserve(run: Path, port: int, options: Any, size: float, wait: float) -> list[str]:
    more = ("--max-batch-size", str(int(size)), "--batch-timeout", str(wait))
    return serving.their_command("litserve", run, port, options.threads, *more)


def _take_turns(
    run: Path, texts: list[str], best: dict[str, float], options: Any
) -> dict[int, dict[str, list[serving.Turn]]]:
    ports = {name: serving.free_port() for name in (OURS, LITSERVE, LOOP, POOL)}
    commands = {
        OURS: serving.our_command(run, ports[OURS], options.threads),
        LITSERVE: _litserve(run, ports[LITSERVE], options, best["max_batch_size"], best["batch_timeout"]),
        LOOP: serving.their_command("fastapi-loop", run, ports[LOOP], options.threads),
        POOL: serving.their_command("fastapi-threads", run, ports[POOL], options.threads),
    }
    turns: dict[int, dict[str, list[serving.Turn]]] = {
        clients: {name: [] for name in ports} for clients in options.clients
    }
    with contextlib.ExitStack() as servers:
        for name, command in commands.items():
            servers.enter_context(serving.running(command, ports[name]))
            serving.closed_loop(ports[name], texts[: max(4, len(texts) // 4)], 4)  # to warm up
        started = time.perf_counter()
        for round_ in range(options.repeats):
            if round_ and time.perf_counter() - started > options.limit_s:
                break
            for clients in options.clients:
                for name, port in ports.items():
                    turn = serving.closed_loop(port, texts, clients)
                    turns[clients][name].append(turn)
                    print(
                        f"{clients} clients, {name}: {turn.requests_per_s:.1f} requests/s, p50 "
                        f"{turn.quantile_ms(0.5):.0f} ms, p99 {turn.quantile_ms(0.99):.0f} ms"
                    )
    return turns


def _ratios(turns: dict[str, list[serving.Turn]]) -> dict[str, dict[str, Any]]:
    """How many times more requests, and how many times shorter waits, than each other contestant."""
    ours = turns[OURS]

    def shorter(theirs: list[serving.Turn], share: float) -> dict[str, Any]:
        return common.ratio_spread(
            [turn.quantile_ms(share) for turn in theirs], [turn.quantile_ms(share) for turn in ours]
        )

    return {
        name: {
            "requests_per_s": common.ratio_spread(
                [turn.requests_per_s for turn in ours], [turn.requests_per_s for turn in theirs]
            ),
            "p50": shorter(theirs, 0.5),
            "p99": shorter(theirs, 0.99),
        }
        for name, theirs in turns.items()
        if name != OURS
    }


def _save(
    turns: dict[int, dict[str, list[serving.Turn]]],
    tried: list[dict[str, float]],
    what: dict[str, Any],
    options: Any,
) -> None:
    clients = {}
    for number, of in turns.items():
        expected = of[OURS][0].labels
        ratios = _ratios(of)
        clients[str(number)] = {
            "contestants": {name: serving.summary(taken, expected) for name, taken in of.items()},
            "ratios": ratios,
        }
        for name, ratio in ratios.items():
            told = ", ".join(f"{key} {found['median']:.2f}" for key, found in ratio.items())
            print(f"{number} clients, ours against {name}: {told}")
    result = {
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        **what,
        "litserve_tried": tried,
        "clients": clients,
        "server_versions": common.versions(("litserve", "fastapi", "uvicorn")),
    }
    common.save_result("serve", result, options.out, machine=common.hardware())
    page.refresh(options.out)


if __name__ == "__main__":
    main()
