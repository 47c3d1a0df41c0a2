"""int8 on a CPU against bfloat16 and float32: speed on complaints, in turns; answers on held-out rows."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from lib import common

DTYPES = ("float32", "bfloat16", "int8")


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
        run = options.run or write_untrained_run(Path(temporary), options.classes)
        predictors = _predictors(run)
        seconds = _take_turns(predictors, texts, options)
        answers = _answers(run, predictors, options.held_out) if options.run else None
    _save(seconds, answers, len(texts), options)


def _arguments() -> Any:
    parser = common.parser("Speed and answers of int8, bfloat16 and float32 on a CPU.")
    parser.add_argument(
        "--run", type=Path, help="a finished run, on whose held-out rows answers are compared"
    )
    parser.add_argument("--held-out", type=int, default=1000, help="of them, at most")
    parser.add_argument("--rows", type=int, default=96, help="complaints in a turn")
    parser.add_argument("--classes", type=int, default=120, help="of the untrained model, without --run")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contestant")
    return parser.parse_args()


def _predictors(run: Path) -> dict[str, Any]:
    from snugtune.predict.predictor import Predictor
    from snugtune.progress import Observer

    class Printer(Observer):
        def say(self, sentence: str) -> None:
            print(sentence)

    return {dtype: Predictor.load(run, dtype=dtype, observer=Printer()) for dtype in DTYPES}


def _take_turns(predictors: dict[str, Any], texts: list[str], options: Any) -> dict[str, list[float]]:
    for predictor in predictors.values():
        predictor.probabilities(texts[:2])  # to warm up
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    for _ in range(options.repeats):
        for name, predictor in predictors.items():
            began = time.perf_counter()
            predictor.probabilities(texts)
            seconds[name].append(time.perf_counter() - began)
            print(f"{name}: {len(texts) / seconds[name][-1]:.1f} examples/s")
    return seconds


def _answers(run: Path, predictors: dict[str, Any], rows: int) -> dict[str, Any]:
    """Of the logits alone: how often the label is float32's, accuracy, how far probabilities are apart."""
    from snugtune.predict.agreement import agreement
    from snugtune.predict.held_out import read_held_out
    from snugtune.predict.int8 import logits_of, true_classes
    from snugtune.predict.predictor import read_record

    record = read_record(run)
    held_out = read_held_out(run, record, rows=rows)
    logits = {
        name: logits_of(predictor.model, held_out.texts, predictor.tokenizer, predictor.max_length)
        for name, predictor in predictors.items()
    }
    y = true_classes(held_out, record)
    found = {name: agreement(values, logits["float32"], y) for name, values in logits.items()}
    for name, one in found.items():
        print(f"{name}: {one.sentence()}")
    return {name: one.as_dict() for name, one in found.items()}


def _save(seconds: dict[str, list[float]], answers: dict[str, Any] | None, rows: int, options: Any) -> None:
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "run")}
    result = {
        "settings": settings,
        "examples_per_s": {name: common.spread([rows / s for s in taken]) for name, taken in seconds.items()},
        "int8_times_as_fast_as": {
            name: common.ratio_spread(seconds[name], seconds["int8"]) for name in ("float32", "bfloat16")
        },
        "answers": answers,
    }
    common.save_result("int8", result, options.out, machine=common.hardware())


if __name__ == "__main__":
    main()
