"""Fewer rows for the same model? Banking77 with rows dropped, against fewer epochs of all rows.

The frozen model reads every row and the probe is fitted on every row, for that is cheap; what is dropped is
dropped from training. "Easiest" rows are those whose own label the probe, fitted without them, prefers by the
widest margin. Accuracy is that of the model by itself on the test file, and nothing is chosen by it.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lib import common, page

FOLDS = 5


def main() -> None:
    options = _arguments()
    folder = common.data_folder("banking77")
    if folder is None:
        return
    common.quiet_libraries()
    import torch

    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in _ways(options.share)}
    for seed in range(options.seeds):
        start = _Start(folder, seed, options.rows, options.epochs)
        for name, way in _ways(options.share).items():
            if options.limit_s and time.perf_counter() - began > options.limit_s:
                print("The time is over; the same command goes on with the trainings that are left.")
                return
            found[name].append(_kept(options.keep, f"{name}, seed {seed}", partial(_train, start, way)))
    _save(found, options)


def _arguments() -> Any:
    parser = common.parser("Accuracy on Banking77 with rows dropped, against fewer epochs of all rows.")
    parser.add_argument("--share", type=float, default=0.3, help="share of the training rows dropped")
    parser.add_argument("--rows", type=int, default=3000, help="training rows, drawn anew for each seed")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--keep", type=Path, default=None, help="folder that keeps finished trainings")
    parser.add_argument("--limit-s", type=float, default=None, help="no new training begins after this time")
    return parser.parse_args()


@dataclass(frozen=True)
class _Trainable:
    """Token data, the model with its probe, what training begins from; and of each training row: the margin
    by which a probe fitted without it prefers its label (N,), and the id of its near-duplicates (N,)."""

    data: Any
    config: Any
    begin_from: dict[str, Any]
    margins: Any
    groups: Any


class _Start:
    """Loads and reads the data once, and not at all if every training of the seed is kept already."""

    def __init__(self, folder: Path, seed: int, rows: int, epochs: float) -> None:
        self._folder, self._seed, self._rows, self._epochs = folder, seed, rows, epochs
        self._made: _Trainable | None = None

    def __call__(self) -> _Trainable:
        self._made = self._made or self._make()
        return self._made

    def _make(self) -> _Trainable:
        import torch
        from lib.datasets import banking77, subset, token_data
        from lib.ours import frozen_features, start_from_probe

        from snugtune.config import FitConfig
        from snugtune.data.duplicates import near_duplicate_groups

        torch.manual_seed(self._seed)
        config = FitConfig(train="", seed=self._seed, num_train_epochs=self._epochs)
        data = token_data(banking77(self._folder), config)
        drawn = np.random.default_rng(self._seed).choice(len(data.train.y), self._rows, replace=False)
        data = replace(data, train=subset(data.train, drawn))
        data.backbone.model.to(data.device)
        features = frozen_features(data, config)
        begin_from = start_from_probe(data, config, features)
        texts = data.backbone.tokenizer.batch_decode(data.train.tokens.ids, skip_special_tokens=True)
        return _Trainable(
            data, config, begin_from, _margins(features[0], data.train.y), near_duplicate_groups(texts)
        )


def _margins(features: Any, y: Any) -> Any:
    """p(own label) - max p(another label) of each row, by a probe fitted on the other folds: (N,)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    from snugtune.train.probe import INVERSE_REGULARISATION, MAX_ITERATIONS

    x = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    probe = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=MAX_ITERATIONS)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    p = cross_val_predict(probe, x, y, cv=folds, method="predict_proba")
    own = p[np.arange(len(y)), y].copy()
    p[np.arange(len(y)), y] = -1.0
    return own - p.max(1)


Way = Callable[[_Trainable], tuple[Any, float]]
"""Rows to train on, and the share of the epochs."""


def _ways(share: float) -> dict[str, Way]:
    def rows(start: _Trainable) -> int:
        return len(start.data.train.y)

    def kept(start: _Trainable) -> int:
        return round((1 - share) * rows(start))

    def random(start: _Trainable) -> Any:
        return np.random.default_rng(start.config.seed).choice(rows(start), kept(start), replace=False)

    return {
        "all rows": lambda s: (np.arange(rows(s)), 1.0),
        f"all rows, {share:.0%} fewer epochs": lambda s: (np.arange(rows(s)), 1 - share),
        f"{share:.0%} dropped at random": lambda s: (random(s), 1.0),
        f"easiest {share:.0%} dropped": lambda s: (np.argsort(s.margins)[: kept(s)], 1.0),
        "near-duplicates dropped": lambda s: (np.unique(s.groups), 1.0),
    }


def _train(make_start: Callable[[], _Trainable], way: Way) -> dict[str, float]:
    from lib.datasets import subset
    from lib.ours import train_ours, wrap_model

    from snugtune.train.forward import predict_logits

    start = make_start()
    rows, share = way(start)
    config = start.config.model_copy(update={"num_train_epochs": start.config.num_train_epochs * share})
    backbone = replace(start.data.backbone, model=copy.deepcopy(start.data.backbone.model))
    data = replace(start.data, backbone=backbone, train=subset(start.data.train, np.sort(rows)))
    model, head_names = wrap_model(data, config)
    began = time.perf_counter()
    result = train_ours(data, model, head_names, config, None, start.begin_from)
    seconds = time.perf_counter() - began
    logits = predict_logits(
        model, data.test.tokens, pad_token_id=backbone.tokenizer.pad_token_id,
        device=data.device, dtype=data.dtype,
    )  # fmt: skip
    tokens = float(data.train.tokens.lengths.sum())
    steps = [line for line in result.metrics if "eval_score" in line]
    best = max(steps[1:], key=lambda line: line["eval_score"])
    return {
        "accuracy": float((logits.argmax(1) == data.test.y).mean()),
        "validation_score": result.best_score,
        "rows": len(rows),
        "tokens_trained": tokens * config.num_train_epochs,
        "tokens_to_best": tokens * best["epoch"],
        "train_s": seconds,
    }


def _kept(folder: Path | None, name: str, train: Callable[[], dict[str, float]]) -> dict[str, float]:
    path = None if folder is None else folder / f"{name}.json"
    if path is not None and path.is_file():
        found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return found
    found = train()
    print(f"{name}: accuracy {found['accuracy']:.4f}, {found['tokens_trained']:,.0f} tokens")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found), encoding="utf-8")
    return found


def _save(found: dict[str, list[dict[str, float]]], options: Any) -> None:
    record = {
        "settings": {key: getattr(options, key) for key in ("share", "rows", "seeds", "epochs")},
        "ways": {
            name: {key: common.spread([run[key] for run in runs]) for key in runs[0]}
            for name, runs in found.items()
        },
    }
    common.save_result("pruning", record, options.out, machine=common.hardware())
    page.refresh(options.out)


if __name__ == "__main__":
    main()
