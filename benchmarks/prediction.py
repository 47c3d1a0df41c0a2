"""Prediction speed on real complaints: ours against Transformers' ``pipeline``, in turns on the same rows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lib import common, page

Predict = Callable[[list[str]], list[str]]


def main() -> None:
    options = _arguments()
    folder = common.data_folder("cfpb")
    if folder is None:
        return
    common.quiet_libraries()
    import torch
    from lib.datasets import cfpb
    from lib.ours import write_untrained_run

    torch.set_num_threads(options.threads)
    texts = cfpb(folder).test[: options.rows]
    print(f"{len(texts)} complaints a turn, {options.threads} threads.")
    with tempfile.TemporaryDirectory() as temporary:
        run = write_untrained_run(Path(temporary), options.classes)
        contestants = _contestants(run, options.batch_sizes)
        seconds, agreement = _take_turns(contestants, texts, options)
    _save(seconds, agreement, len(texts), options)


def _arguments() -> Any:
    parser = common.parser("Prediction speed at complaint lengths, against Transformers' pipeline.")
    parser.add_argument("--rows", type=int, default=96, help="complaints in a turn")
    parser.add_argument("--classes", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--limit-s", type=float, default=600, help="no new round begins after this time")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64],
        help="of the pipeline; 1 is its default",
    )  # fmt: skip
    return parser.parse_args()


def _contestants(run: Path, batch_sizes: list[int]) -> dict[str, Predict]:
    import torch
    from transformers import pipeline

    from snugtune.predict.predictor import Predictor

    default, half = Predictor.load(run), Predictor.load(run, dtype="bfloat16")
    classify = pipeline(
        "text-classification", model=str(run / "model"), device=0 if torch.cuda.is_available() else -1
    )
    options = {"truncation": True, "max_length": default.max_length}

    def ours(predictor: Predictor, texts: list[str]) -> list[str]:
        return predictor.columns(texts)["predicted_label"].to_list()

    def theirs(size: int, texts: list[str]) -> list[str]:
        return [row["label"] for row in classify(texts, batch_size=size, **options)]

    found = {"ours": partial(ours, default), "ours, bfloat16": partial(ours, half)}
    return found | {f"pipeline, batch size {size}": partial(theirs, size) for size in batch_sizes}


def _take_turns(
    contestants: dict[str, Predict], texts: list[str], options: Any
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each turn, and the share of rows given the label that ours gives."""
    for predict in contestants.values():
        predict(texts[:2])  # to warm up
    expected = contestants["ours"](texts)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    agreement: dict[str, float] = {}
    started = time.perf_counter()
    for round_ in range(options.repeats):
        if round_ and time.perf_counter() - started > options.limit_s:
            break
        for name, predict in contestants.items():
            began = time.perf_counter()
            labels = predict(texts)
            seconds[name].append(time.perf_counter() - began)
            agreement[name] = sum(a == b for a, b in zip(labels, expected, strict=True)) / len(labels)
            print(f"{name}: {len(labels) / seconds[name][-1]:.1f} examples/s")
    return seconds, agreement


def _save(seconds: dict[str, list[float]], agreement: dict[str, float], rows: int, options: Any) -> None:
    contestants = {
        name: {
            "examples_per_s": common.spread([rows / s for s in taken]),
            "same_label_as_ours": agreement[name],
        }
        for name, taken in seconds.items()
    }
    ratios = {
        name: {
            other: common.ratio_spread(taken, seconds[name])
            for other, taken in seconds.items()
            if other.startswith("pipeline")
        }
        for name in ("ours", "ours, bfloat16")
    }
    result = {
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "contestants": contestants,
        "ratios": ratios,
    }
    common.save_result("prediction", result, options.out, machine=common.hardware())
    page.refresh(options.out)


if __name__ == "__main__":
    main()
