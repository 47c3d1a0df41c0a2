"""Prediction speed at complaint lengths: ours against Transformers' ``pipeline``, in turns on the same rows.

The pipeline runs at its default batch size, at others, and in half precision at the best of them. Labels are
compared row by row; peak memory is measured in processes of their own. Where the complaints are absent, texts
of their lengths without meaning take their place.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lib import common, page

DEFAULT = "pipeline, batch size 1"
OURS = ("ours", "ours, bfloat16")


def main() -> None:
    options = _arguments()
    common.quiet_libraries()
    import torch
    from lib.contestants import texts_like_complaints
    from lib.ours import write_untrained_run

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = write_untrained_run(folder, options.classes)
        texts, kind = texts_like_complaints(common.data_folder("cfpb"), run, options.rows)
        print(f"{len(texts)} {kind} a turn, {options.threads} threads.")
        turns, tokens = _take_turns(run, texts, options)
        memory = {} if options.no_memory else _peaks(run, texts, turns, options)
    _save(turns, memory, {"texts": kind, "tokens": tokens}, options)


def _arguments() -> Any:
    parser = common.parser("Prediction speed at complaint lengths, against Transformers' pipeline.")
    parser.add_argument("--rows", type=int, default=96, help="texts in a turn")
    parser.add_argument("--classes", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--limit-s", type=float, default=600, help="no new round begins after this time")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64],
        help="of the pipeline; 1 is its default",
    )  # fmt: skip
    parser.add_argument("--no-memory", action="store_true", help="leave the peaks out: no further processes")
    return parser.parse_args()


def _take_turns(run: Path, texts: list[str], options: Any) -> tuple[dict[str, list[Any]], int]:
    """Turns of every contestant, and the tokens of the texts, cut as they are cut for all."""
    from lib.contestants import Labels, Pipeline, best_batch_size
    from lib.rounds import take_turns

    ours = {"ours": Labels(run, texts), "ours, bfloat16": Labels(run, texts, "bfloat16")}
    theirs = {
        f"pipeline, batch size {size}": Pipeline(run, texts, size)
        for size in sorted({1, *options.batch_sizes})
    }
    turns = take_turns(ours | theirs, "prediction", options.repeats, options.limit_s)
    best = best_batch_size(turns)
    half = {f"pipeline, batch size {best}, bfloat16": Pipeline(run, texts, best, "bfloat16")}
    # Against ours once more, in rounds of its own: which size is best is only known now.
    again = take_turns(
        {"ours, bfloat16": ours["ours, bfloat16"]} | half, "prediction", options.repeats, options.limit_s
    )
    turns |= {name: again[name] for name in half} | {"ours, bfloat16, beside": again["ours, bfloat16"]}
    return turns, ours["ours"].tokens


def _peaks(run: Path, texts: list[str], turns: dict[str, list[Any]], options: Any) -> dict[str, Any]:
    from lib.contestants import best_batch_size, peak
    from lib.memory import in_child

    sizes = sorted({1, best_batch_size(turns)})
    wanted = [(name, None) for name in OURS] + [(f"pipeline, batch size {size}", size) for size in sizes]
    found = {}
    for name, size in wanted:
        dtype = "bfloat16" if "bfloat16" in name else "float32"
        found[name] = in_child(peak, run, texts, size, dtype, options.threads)
        print(
            f"{name}: peak {found[name]['peak_gib']:.2f} GiB, {found[name]['grown_gib']:.2f} beyond the model"
        )
    return found


def _save(turns: dict[str, list[Any]], memory: dict[str, Any], what: dict[str, Any], options: Any) -> None:
    from lib.contestants import ratios, same_labels

    expected = turns["ours"][0].labels
    shown = {name: taken for name, taken in turns.items() if not name.endswith("beside")}
    contestants = {
        name: {
            "examples_per_s": common.spread([turn.examples_per_s for turn in taken]),
            "tokens_per_s": common.spread([turn.tokens_per_s for turn in taken]),
            "same_label_as_ours": same_labels(taken[-1].labels, expected),
        }
        for name, taken in shown.items()
    }
    result = {
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        **what,
        "contestants": contestants,
        "ratios": ratios(turns),
        "memory": memory,
    }
    for name, against in result["ratios"].items():
        for other, ratio in against.items():
            print(f"{name} / {other}: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    common.save_result("prediction", result, options.out, machine=common.hardware())
    page.refresh(options.out)


if __name__ == "__main__":
    main()
