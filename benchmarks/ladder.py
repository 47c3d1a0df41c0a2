"""From the recipe to ours, one lever at a time, in turns on the same rows: which of them earns its place?

Every rung keeps the levers below it. The first ones are the Trainer's, set otherwise; the last two are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lib import common, page
from lib.rounds import take_turns

PAYS_FROM = 1.02
"""A lever pays if the median of its ratios to the rung below is at least this."""


@dataclass(frozen=True)
class Rung:
    """A lever's name, and what it sets: the recipe's settings and padding, or ours (``engine``)."""

    name: str
    padding: str = "longest"
    recipe: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] | None = None


def rungs(half: str, attention: str) -> list[Rung]:
    """The ladder; ``half`` is the number format computed in, ``attention`` the name of our kernel."""
    lengths = {"train_sampling_strategy": "group_by_length"}
    dropout = lengths | {"lora_dropout": 0.0, "hidden_dropout": 0.0}
    weights = dropout | {"weights": half}
    kernel = weights | {"attention": attention}
    last = kernel | {"first_token_only": True}
    rows = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
    return [
        Rung("the recipe, padded to the maximum length", "max_length"),
        Rung("padded to the longest of the batch"),
        Rung("texts of like length together", recipe=lengths),
        Rung("no dropout", recipe=dropout),
        Rung(f"frozen weights in {half}", recipe=weights),
        Rung("our attention kernel", recipe=kernel),
        Rung("last layer for the first token only", recipe=last),
        Rung("our engine, micro-batches of 8 texts", engine=rows | {"tokens_per_micro_batch": 2**20}),
        Rung("micro-batches by tokens", engine={}),
    ]


def main() -> None:
    options = _arguments()
    common.quiet_libraries()
    import torch

    torch.set_num_threads(options.threads)
    ladder, contestants, data = _contestants(options)
    turns = take_turns(contestants, "training", options.repeats, options.limit_s)
    result = {
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "dtype": str(data.dtype).removeprefix("torch."),
        "mean_length": float(data.train.tokens.lengths.mean()),
        "pays_from": PAYS_FROM,
        "rungs": summary([rung.name for rung in ladder], turns),
    }
    for rung in result["rungs"]:
        if rung["step"]:
            print(
                f"{rung['name']}: {rung['step']['median']:.2f}x, {'pays' if rung['pays'] else 'does not pay'}"
            )
    common.save_result("ladder", result, options.out, machine=common.hardware())
    page.refresh(options.out)


def _arguments() -> Any:
    parser = common.parser("From the recipe to ours, one lever at a time.")
    parser.add_argument("--rows", type=int, default=96, help="texts in a turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each rung")
    parser.add_argument("--limit-s", type=float, default=1200, help="no new round begins after this time")
    parser.add_argument("--max-length", type=int, default=512, help="tokens kept of a text (and padded to)")
    parser.add_argument("--model", default="minilm", help="'minilm', a folder, or a Hub name")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _contestants(options: Any) -> tuple[list[Rung], dict[str, Any], Any]:
    """Every rung trains the model as published, so that nothing but the lever differs."""
    from lib.datasets import like_complaints
    from lib.speed import Ours, Recipe

    from snugtune.config import FitConfig
    from snugtune.model import attention

    config = FitConfig(
        train="", model=options.model, max_length=options.max_length, pooling="first", seed=options.seed
    )
    data = like_complaints(config, options.rows)
    ladder = rungs(str(data.dtype).removeprefix("torch."), attention.register())
    made: dict[str, Any] = {}
    for rung in ladder:
        if rung.engine is None:
            made[rung.name] = Recipe(data, config, rung.padding, **rung.recipe)
        else:  # each wraps a model of its own
            own = like_complaints(config, options.rows)
            made[rung.name] = Ours(own, config.model_copy(update=rung.engine))
    return ladder, made, data


def summary(names: list[str], turns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Each rung's speed, its ratios to the one below (``step``) and the first (``total``); does it pay?"""
    found: list[dict[str, Any]] = []
    speeds = {name: [turn.tokens_per_s for turn in taken] for name, taken in turns.items()}
    for i, name in enumerate(names):
        step = common.ratio_spread(speeds[name], speeds[names[i - 1]]) if i else None
        total = common.ratio_spread(speeds[name], speeds[names[0]]) if i else None
        found.append(
            {
                "name": name,
                "tokens_per_s": common.spread(speeds[name]),
                "padding_waste": turns[name][0].padding_waste,
                "step": step,
                "total": total,
                "pays": None if step is None else step["median"] >= PAYS_FROM,
            }
        )
    return found


if __name__ == "__main__":
    main()
