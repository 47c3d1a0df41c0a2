"""Near-duplicates of the same label left out of training: rows saved, and what a probe loses or gains.

The learner is the logistic regression on frozen features from which a fit starts, with one penalty for both;
training time is in proportion to the rows. The test file is only scored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lib import common, page
from lib.datasets import banking77, cfpb
from lib.frozen import features

TASKS = ("banking77", "cfpb-product")
INVERSE_REGULARISATION = 0.025
"""On standardised features, as scikit-learn's C."""


def main() -> None:
    options = _arguments()
    common.quiet_libraries()
    import torch

    torch.set_num_threads(options.threads)
    results = {}
    for name in options.data:
        folder = common.data_folder(name.partition("-")[0])
        if folder is not None:
            results[name] = _measure(name, folder, options)
            print(f"{name}: {results[name]}")
    if results:
        record = {
            "settings": {"max_length": options.max_length, "C": INVERSE_REGULARISATION},
            "data": results,
        }
        common.save_result("near-duplicates", record, options.out, machine=common.hardware())
        page.refresh(options.out)


def _arguments() -> Any:
    parser = common.parser("What leaving out near-duplicates of the same label costs or brings.")
    parser.add_argument("--data", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--max-length", type=int, default=128, help="tokens the frozen model reads of a text")
    return parser.parse_args()


def _measure(name: str, folder: Path, options: Any) -> dict[str, Any]:
    from snugtune.data.duplicates import near_duplicate_groups
    from snugtune.data.labels import LabelSet

    texts = banking77(folder) if name == "banking77" else cfpb(folder, name.partition("-")[2].capitalize())
    labels = LabelSet(tuple(sorted(set(texts.train_labels))))
    y, test_y = labels.encode(texts.train_labels), labels.encode(texts.test_labels)
    read = features([*texts.train, *texts.test], options.max_length)
    train, test = read[: len(y)], read[len(y) :]
    same = np.column_stack([near_duplicate_groups(texts.train), y])
    kept = np.sort(np.unique(same, axis=0, return_index=True)[1])
    ways = {"all rows": np.arange(len(y)), "near-duplicates of the same label left out": kept}
    return {
        "test_rows": len(test_y),
        "ways": {
            way: {"rows": len(rows), **_scores(train[rows], y[rows], test, test_y)}
            for way, rows in ways.items()
        },
    }


def _scores(x: Any, y: Any, test: Any, test_y: Any) -> dict[str, float]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    mean, std = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    model = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=200).fit((x - mean) / std, y)
    said = model.predict((test - mean) / std)
    seen = test_y >= 0
    macro = f1_score(test_y[seen], said[seen], average="macro", zero_division=0)
    return {"accuracy": float((said == test_y)[seen].mean()), "f1_macro": float(macro)}


if __name__ == "__main__":
    main()
