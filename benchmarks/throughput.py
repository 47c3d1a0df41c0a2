"""Speed at the lengths of real complaints: ours against the recipe, in turns on the same rows.

Training, evaluation and prediction, each with the recipe's batches padded to the maximum length and to the
longest of their rows. Beside the ratios: how near ours comes to the hardware's limit, the share of time
outside kernels, and the peak memory of each, in processes of their own.
"""

from __future__ import annotations

from typing import Any

from lib import common, page
from lib.rounds import take_turns

RECIPES = {"recipe, padded to the maximum": "max_length", "recipe, padded to the longest": "longest"}


def main() -> None:
    options = _arguments()
    common.quiet_libraries()
    import torch
    from lib.kernels import forward_shares

    torch.set_num_threads(options.threads)
    data, config = _data(options)
    lengths = data.train.tokens.lengths
    print(
        f"{options.rows} texts a turn, as long as complaints: mean {lengths.mean():.0f} tokens, cut at "
        f"{data.backbone.max_length}; {options.threads} threads, {data.dtype}."
    )
    peaks = {
        str(dtype).removeprefix("torch."): common.matmul_peak(dtype, data.device)
        for dtype in (torch.bfloat16, torch.float32)
    }
    forward = forward_shares(data)
    print(
        f"forward: {100 * forward['share']:.0f} % of a bare loop over the same matrices, "
        f"{100 * forward['share_with_attention']:.0f} % with attention's products"
    )
    turns, outside = _take_turns(data, config, options)
    memory = _peaks(options)
    result = _result(data, config, options, turns, peaks) | {
        "forward": forward, "outside_kernels": outside, "memory": memory
    }  # fmt: skip
    common.save_result("throughput", result, options.out, machine=common.hardware())
    page.refresh(options.out)


def _arguments() -> Any:
    parser = common.parser("Training, evaluation and prediction at complaint lengths, against the recipe.")
    parser.add_argument("--rows", type=int, default=96, help="texts in a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--limit-s", type=float, default=600, help="of a phase: no new round begins after it")
    parser.add_argument("--max-length", type=int, default=512, help="tokens kept of a text (and padded to)")
    parser.add_argument("--model", default="minilm", help="'minilm', a folder, or a Hub name")
    parser.add_argument(
        "--pooling", choices=("auto", "first", "mean"), default="auto",
        help="of ours; the recipe trains the model as published, which is ours with 'first'",
    )  # fmt: skip
    parser.add_argument("--phases", nargs="+", default=["training", "evaluation", "prediction"])
    parser.add_argument("--no-memory", action="store_true", help="leave the peaks out: no further processes")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _data(options: Any) -> tuple[Any, Any]:
    from lib.datasets import like_complaints

    from snugtune.config import FitConfig

    config = FitConfig(
        train="", model=options.model, max_length=options.max_length, pooling=options.pooling,
        seed=options.seed,
    )  # fmt: skip
    return like_complaints(config, options.rows), config


def _contestant(name: str, data: Any, config: Any) -> Any:
    from lib.speed import Ours, Recipe

    if name in RECIPES:
        return Recipe(data, config, RECIPES[name])
    return Ours(data, config, predict_dtype=data.dtype)


def _names(phase: str) -> list[str]:
    return [*RECIPES, "ours", *(["ours, float32"] if phase == "prediction" else [])]


def _take_turns(data: Any, config: Any, options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The turns by phase and contestant, and by contestant the share of training time outside kernels."""
    import torch
    from lib.kernels import outside_kernels
    from lib.speed import Ours

    made = {name: _contestant(name, data, config) for name in _names("training")}
    # A model of its own: ours above is wrapped around the loaded one.
    if "prediction" in options.phases and data.dtype != torch.float32:
        made["ours, float32"] = Ours(_data(options)[0], config, predict_dtype=torch.float32)
    turns = {}
    for phase in options.phases:
        chosen = {name: made[name] for name in _names(phase) if name in made}
        turns[phase] = take_turns(chosen, phase, options.repeats, options.limit_s)
    outside = {}
    if "training" in options.phases:
        for name in _names("training"):
            found = outside_kernels(lambda one=made[name]: one.turn("training"), data.device)
            print(f"{name}: {100 * found['share']:.1f} % of training outside kernels")
            outside[name] = found
    return turns, outside


def _peaks(options: Any) -> dict[str, Any]:
    from lib.memory import in_child

    if options.no_memory:
        return {}
    phases = [phase for phase in options.phases if phase != "evaluation"]
    found = {}
    for phase in phases:
        found[phase] = {name: in_child(peak, name, phase, options) for name in _names("training")}
        for name, of in found[phase].items():
            print(f"{phase}, {name}: peak {of['peak_gib']:.2f} GiB, {of['grown_gib']:.2f} beyond the model")
    return found


def peak(name: str, phase: str, options: Any) -> dict[str, float]:
    """Peak memory of one turn of a contestant; for a process of its own."""
    common.quiet_libraries()
    import torch
    from lib.memory import PeakMemory

    from snugtune.memory.host import bound_primitive_caches

    bound_primitive_caches()
    torch.set_num_threads(options.threads)
    data, config = _data(options)
    contestant = _contestant(name, data, config)
    memory = PeakMemory(data.device)
    memory.restart()
    contestant.turn(phase)
    return memory.as_dict()


def _result(data: Any, config: Any, options: Any, turns: Any, peaks: dict[str, float]) -> dict[str, Any]:
    from lib.reference import SETTINGS

    lengths = data.train.tokens.lengths
    dtype = str(data.dtype).removeprefix("torch.")
    phases = {}
    for phase, taken in turns.items():
        ours = [turn.tokens_per_s for turn in taken["ours"]]
        contestants = {
            name: _summary(of, _flops(phase, name, data, config, options), peaks[_dtype(phase, name, dtype)])
            for name, of in taken.items()
        }
        ratios = {
            name: common.ratio_spread(ours, [turn.tokens_per_s for turn in of])
            for name, of in taken.items()
            if not name.startswith("ours")
        }
        for name, ratio in ratios.items():
            print(f"{phase}, ours / {name}: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
        phases[phase] = {"contestants": contestants, "ratios": ratios}
    return {
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "reference_settings": SETTINGS,
        "dtype": dtype,
        "mean_length": float(lengths.mean()),
        "matmul_peak_flops": peaks,
        "phases": phases,
    }


def _dtype(phase: str, name: str, dtype: str) -> str:
    """What a contestant multiplies in: in prediction the recipe's model is as it was loaded, in float32."""
    return "float32" if phase == "prediction" and name != "ours" else dtype


def _flops(phase: str, name: str, data: Any, config: Any, options: Any) -> float:
    """Model FLOPs of a turn; the recipe's model is the published one, without our averaging layer."""
    from lib.flops import Shape, forward_flops, training_flops

    shape = Shape.of(data.backbone.model.config, int(config.r), len(data.labels.names))
    if name in RECIPES:
        from transformers import AutoConfig

        from snugtune.model.backbone import resolve

        shape = Shape.of(AutoConfig.from_pretrained(resolve(options.model)), int(config.r), shape.classes)
    lengths = data.train.tokens.lengths.tolist()
    if phase == "training":
        return training_flops(shape, lengths)
    return forward_flops(shape, lengths, merged=phase == "prediction" and name not in RECIPES)


def _summary(taken: list[Any], flops: float, peak_flops: float) -> dict[str, Any]:
    return {
        "tokens_per_s": common.spread([turn.tokens_per_s for turn in taken]),
        "examples_per_s": common.spread([turn.examples_per_s for turn in taken]),
        "padding_waste": taken[0].padding_waste,
        "model_flops": flops,
        "mfu": common.spread([flops / turn.seconds / peak_flops for turn in taken]),
    }


if __name__ == "__main__":
    main()
