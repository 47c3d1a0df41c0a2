"""Labels flipped at random on real data: how many of them the audit ranks first, and how many it suspects.

A twentieth of the training labels is replaced by another label drawn at random; the audit's own functions
judge them. Labels that were wrong before count as right, so precision is a lower bound.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from lib import common, page
from lib.datasets import banking77, cfpb
from lib.frozen import features

TASKS = ("banking77", "cfpb-product", "cfpb-issue")
LOOKED_AT = 0.08
"""Share of the ranked list in which flipped labels are counted."""


def main() -> None:
    options = _arguments()
    common.quiet_libraries()
    results: dict[str, Any] = {}
    for name in options.data:
        folder = common.data_folder(name.partition("-")[0])
        if folder is not None:
            results[name] = _measure(name, folder, options)
    if not results:
        return
    settings = {"flipped": options.flipped, "seeds": options.seeds, "max_length": options.max_length}
    record = {"settings": settings, "looked_at": LOOKED_AT, "data": results}
    # A file for each choice of data, so that each can be measured by itself.
    name = f"label-noise-{'-'.join(results)}"
    common.save_result(name, {"benchmark": "label-noise", **record}, options.out, machine=common.hardware())
    page.refresh(options.out)


def _arguments() -> Any:
    parser = common.parser("How well the audit finds labels flipped at random.")
    parser.add_argument("--data", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--flipped", type=float, default=0.05, help="share of the labels")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the flipped rows")
    parser.add_argument("--max-length", type=int, default=128, help="tokens the frozen model reads of a text")
    return parser.parse_args()


def _measure(name: str, folder: Path, options: Any) -> dict[str, Any]:
    from snugtune.data.duplicates import near_duplicate_groups
    from snugtune.data.labels import LabelSet

    texts = banking77(folder) if name == "banking77" else cfpb(folder, name.partition("-")[2].capitalize())
    labels = LabelSet(tuple(sorted(set(texts.train_labels))))
    y, groups = labels.encode(texts.train_labels), near_duplicate_groups(texts.train)
    seen_by_model = features(texts.train, options.max_length)
    found: dict[str, list[dict[str, float]]] = {"words": [], "words and frozen model": []}
    for seed in range(options.seeds):
        given, flipped = flip(y, len(labels.names), options.flipped, seed)
        for method, seen in zip(found, (None, seen_by_model), strict=True):
            found[method].append(judge(texts.train, y, given, flipped, groups, seen))
            print(f"{name}, seed {seed}, {method}: {found[method][-1]}")
    return {
        "rows": len(y),
        "classes": len(labels.names),
        "flipped_rows": round(options.flipped * len(y)),
        "methods": {
            method: {key: common.spread([run[key] for run in runs]) for key in runs[0]}
            for method, runs in found.items()
        },
    }


def flip(y: Any, n_classes: int, share: float, seed: int) -> tuple[Any, Any]:
    """Labels (N,) of which a ``share`` was replaced by another at random, and which (N,) those are."""
    rng = np.random.default_rng(seed)
    flipped = np.zeros(len(y), dtype=bool)
    flipped[rng.choice(len(y), round(share * len(y)), replace=False)] = True
    return np.where(flipped, (y + rng.integers(1, n_classes, len(y))) % n_classes, y), flipped


def judge(texts: list[str], y: Any, given: Any, flipped: Any, groups: Any, features: Any) -> dict[str, float]:
    """Recall in the first part of the list, precision at the number of flipped rows, and of the suspects."""
    from snugtune.evaluate.baseline import TfidfBaseline
    from snugtune.evaluate.label_quality import judge_labels

    started = time.perf_counter()
    n_classes = int(max(y.max(), given.max())) + 1
    words = TfidfBaseline().fit_features(texts, n_classes)
    quality = judge_labels(given, groups, n_classes, words=words, features=features)
    seconds = time.perf_counter() - started
    ranked, n = quality.ranked(), int(flipped.sum())
    return {
        "recall_looked_at": float(flipped[ranked[: round(LOOKED_AT * len(y))]].sum() / n),
        "precision_at_flipped": float(flipped[ranked[:n]].mean()),
        "suspected_share": float(quality.suspected.mean()),
        "suspected_precision": float(flipped[quality.suspected].mean()),
        "suspected_recall": float(quality.suspected[flipped].mean()),
        "suggestion_right": float((quality.suggested == y)[flipped & quality.suspected].mean()),
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
