"""Adapters in the top layers only: each layer below computed in every epoch, or once, and read back after.

Complaints at their real lengths, MiniLM, LoRA on the last two published layers (an averaging layer follows
them). One epoch a turn, the same rows in the same order, in turns; the engine is the product's. Beside the
clock's seconds stand the processor's: what else the machine does lengthens the first and hardly the second.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import common, page

WAYS = ("every layer in every epoch", "lower layers kept")


def main() -> None:
    options = _arguments()
    folder = common.data_folder("cfpb")
    if folder is None:
        return
    common.quiet_libraries()
    import torch

    torch.set_num_threads(options.threads)
    data, config = _data(folder, options)
    with tempfile.TemporaryDirectory(dir=options.disk) as disk:
        _measure(data, config, Path(disk), options)


def _arguments() -> Any:
    parser = common.parser("Epochs with the layers below every adapter computed, or read back.")
    parser.add_argument("--rows", type=int, default=96, help="complaints in a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each")
    parser.add_argument("--limit-s", type=float, default=600, help="no new round begins after this time")
    parser.add_argument("--max-length", type=int, default=512, help="tokens kept of a text")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 5], help="layers with an adapter")
    parser.add_argument("--disk", type=Path, default=None, help="folder on the disk that keeps the outputs")
    return parser.parse_args()


def _data(folder: Any, options: Any) -> tuple[Any, Any]:
    """A fixed draw of complaints, with the classes of the whole table in the head."""
    from dataclasses import replace

    import numpy as np
    from lib.datasets import cfpb, subset, token_data

    from snugtune.config import FitConfig

    config = FitConfig(train="", max_length=options.max_length, layers_to_transform=tuple(options.layers))
    data = token_data(cfpb(folder), config)
    drawn = np.random.default_rng(0).choice(len(data.train.y), options.rows, replace=False)
    return replace(data, train=subset(data.train, drawn), validation=subset(data.validation, [0])), config


def _measure(data: Any, config: Any, disk: Path, options: Any) -> None:
    import numpy as np
    from lib.ours import TimedSteps, train_ours, wrap_model

    from snugtune.model.checkpointing import encoder_layers
    from snugtune.train.prefix import Prefix, lower_layers

    model, head_names = wrap_model(data, config)
    lengths = np.concatenate([data.train.tokens.lengths, data.validation.tokens.lengths])
    prefix = Prefix(model, lengths, disk)

    def epoch(way: str) -> _Turn:
        cpu_s: list[float] = []
        observer = TimedSteps(lambda: cpu_s.append(time.process_time()))
        one = config.model_copy(update={"num_train_epochs": 1})
        train_ours(data, model, head_names, one, observer, prefix=prefix if way == WAYS[1] else None)
        return _Turn(observer.seconds, time.process_time() - cpu_s[0])

    epoch(WAYS[0])  # warms up
    first = epoch(WAYS[1])
    began, turns = time.perf_counter(), {way: [] for way in WAYS}
    for round_ in range(options.repeats):
        if round_ and time.perf_counter() - began > options.limit_s:
            break
        for way in WAYS:
            turns[way].append(epoch(way))
            print(f"{way}: {turns[way][-1].seconds:.2f} s, {turns[way][-1].cpu_s:.2f} s of the processor")
    prefix.close()
    _save(turns, first, data, (len(encoder_layers(model)), len(lower_layers(model))), options)


@dataclass(frozen=True)
class _Turn:
    """One epoch: seconds of the clock, and of the processor with all threads (and one look at a text)."""

    seconds: float
    cpu_s: float


def _save(
    turns: dict[str, list[_Turn]], first: _Turn, data: Any, layers: tuple[int, int], options: Any
) -> None:
    tokens = int(data.train.tokens.lengths.sum())
    whole, kept = (turns[way] for way in WAYS)
    ratio = common.ratio_spread([turn.seconds for turn in whole], [turn.seconds for turn in kept])
    cpu_ratio = common.ratio_spread([turn.cpu_s for turn in whole], [turn.cpu_s for turn in kept])
    print(f"and takes {cpu_ratio['median']:.2f} times less of the processor")
    print(f"an epoch is {ratio['median']:.2f} times sooner over ({ratio['min']:.2f} to {ratio['max']:.2f})")
    hidden = int(data.backbone.model.config.hidden_size)
    result = {
        "settings": {"rows": options.rows, "max_length": options.max_length, "threads": options.threads,
                     "layers": options.layers},
        "dtype": str(data.dtype).removeprefix("torch."),
        "mean_length": tokens / len(data.train.y),
        "layers": layers[0],
        "lower_layers": layers[1],
        "bytes_kept": tokens * hidden * data.dtype.itemsize,
        "tokens_per_s": {
            way: common.spread([tokens / turn.seconds for turn in taken]) for way, taken in turns.items()
        },
        "tokens_per_cpu_s": {
            way: common.spread([tokens / turn.cpu_s for turn in taken]) for way, taken in turns.items()
        },
        "first_epoch_tokens_per_cpu_s": tokens / first.cpu_s,
        "ratio": ratio,
        "cpu_ratio": cpu_ratio,
    }  # fmt: skip
    common.save_result("prefix-cache", result, options.out, machine=common.hardware())
    page.refresh(options.out)


if __name__ == "__main__":
    main()
