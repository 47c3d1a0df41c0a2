"""Training speed at the lengths of real complaints: ours against the recipe, turn by turn on the same rows.

The recipe runs twice: with every batch padded to the maximum length, and to the longest of its rows.
"""

from __future__ import annotations

import time
from typing import Any

from lib import common, page


def main() -> None:
    options = _arguments()
    folder = common.data_folder("cfpb")
    if folder is None:
        return
    common.quiet_libraries()
    import torch

    torch.set_num_threads(options.threads)
    data, config = _data(folder, options)
    print(
        f"{options.rows} complaints a turn, cut at {data.backbone.max_length} tokens, "
        f"mean {data.train.tokens.lengths.mean():.0f}, {options.threads} threads, {data.dtype}."
    )
    from lib.speed import forward_share

    peak = common.matmul_peak(data.dtype, data.device)
    forward = forward_share(data)
    print(f"forward: {100 * forward['share']:.0f} % of a bare loop over the same matrices")
    turns = _take_turns(data, config, options)
    _save(turns, data, config, options, peak, forward)


def _arguments() -> Any:
    parser = common.parser("Training speed at complaint lengths, against the recipe.")
    parser.add_argument("--rows", type=int, default=96, help="complaints in a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--limit-s", type=float, default=900, help="no new round begins after this time")
    parser.add_argument("--max-length", type=int, default=512, help="tokens kept of a text (and padded to)")
    parser.add_argument("--model", default="minilm", help="'minilm', a folder, or a Hub name")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _data(folder: Any, options: Any) -> tuple[Any, Any]:
    """A fixed draw of complaints, with the classes of the whole table in the head."""
    from dataclasses import replace

    import numpy as np
    from lib.datasets import cfpb, subset, token_data

    from snugtune.config import FitConfig

    config = FitConfig(train="", model=options.model, max_length=options.max_length, seed=options.seed)
    data = token_data(cfpb(folder), config)
    drawn = np.random.default_rng(options.seed).choice(len(data.train.y), options.rows, replace=False)
    return replace(data, train=subset(data.train, drawn), validation=subset(data.validation, [0])), config


def _take_turns(data: Any, config: Any, options: Any) -> dict[str, list[Any]]:
    from lib.speed import Ours, Recipe

    contestants = {
        "recipe, padded to the maximum": Recipe(data, "max_length"),
        "recipe, padded to the longest": Recipe(data, "longest"),
        "ours": Ours(data, config),
    }
    turns: dict[str, list[Any]] = {name: [] for name in contestants}
    started = time.perf_counter()
    for round_ in range(options.repeats + 1):  # the first warms up
        if round_ > 1 and time.perf_counter() - started > options.limit_s:
            break
        for name, contestant in contestants.items():
            turn = contestant.turn()
            if round_:
                turns[name].append(turn)
                print(f"{name}: {turn.tokens_per_s:.0f} real tokens/s in {turn.seconds:.1f} s")
    return turns


def _save(
    turns: dict[str, list[Any]], data: Any, config: Any, options: Any, peak: float, forward: dict[str, float]
) -> None:
    from lib.flops import Shape, training_flops
    from lib.reference import SETTINGS

    lengths = data.train.tokens.lengths.tolist()
    shape = Shape.of(data.backbone.model.config, int(config.r), len(data.labels.names))
    flops = training_flops(shape, lengths)
    ours = [turn.tokens_per_s for turn in turns["ours"]]
    contestants = {name: _summary(taken, flops, peak) for name, taken in turns.items()}
    ratios = {
        name: common.ratio_spread(ours, [turn.tokens_per_s for turn in taken])
        for name, taken in turns.items()
        if name != "ours"
    }
    for name, ratio in ratios.items():
        print(f"ours / {name}: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    result = {
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "reference_settings": SETTINGS,
        "dtype": str(data.dtype).removeprefix("torch."),
        "mean_length": sum(lengths) / len(lengths),
        "matmul_peak_flops": peak,
        "model_flops_a_turn": flops,
        "forward": forward,
        "contestants": contestants,
        "ratios": ratios,
    }
    common.save_result("training-throughput", result, options.out, machine=common.hardware())
    page.refresh(options.out)


def _summary(taken: list[Any], flops: float, peak: float) -> dict[str, Any]:
    return {
        "tokens_per_s": common.spread([turn.tokens_per_s for turn in taken]),
        "examples_per_s": common.spread([turn.examples_per_s for turn in taken]),
        "padding_waste": taken[0].padding_waste,
        "mfu": common.spread([flops / turn.seconds / peak for turn in taken]),
    }


if __name__ == "__main__":
    main()
