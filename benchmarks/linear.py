"""The baseline's linear classifier on CLINC150, whose rows outnumber its words: primal and dual problem.

In turns, on the same features; scikit-learn would choose the primal here. Seconds are the processor's.
"""

from __future__ import annotations

import time
from typing import Any

from lib import common, page

PRIMAL, DUAL = "primal", "dual"


def main() -> None:
    """Fit both in turns and write the result."""
    parser = common.parser("The baseline's linear classifier by its primal and its dual problem.")
    parser.add_argument("--repeats", type=int, default=1, help="turns of each; the primal takes minutes")
    options = parser.parse_args()
    folder = common.data_folder("clinc150")
    if folder is None:
        return
    common.quiet_libraries()
    import numpy as np
    from lib.datasets import clinc150_rows

    from snugtune.evaluate.baseline import TfidfBaseline

    train, val = (clinc150_rows(folder, part) for part in ("train", "val"))
    names = sorted({label for _, label in train})
    y, y_val = (np.array([names.index(label) for _, label in part]) for part in (train, val))
    texts = [text for text, _ in (*train, *val)]
    X = TfidfBaseline().fit_features(texts, len(names))
    found = _measure(X[: len(y)], y, X[len(y) :], y_val, options.repeats)
    found["settings"] = {"repeats": options.repeats, "classes": len(names)}
    common.save_result("linear", found, options.out, machine=common.hardware())
    page.refresh(options.out)


def _measure(X: Any, y: Any, X_val: Any, y_val: Any, repeats: int) -> dict[str, Any]:
    from sklearn.svm import LinearSVC

    seconds: dict[str, list[float]] = {PRIMAL: [], DUAL: []}
    accuracy = {}
    for _ in range(repeats):
        for name in (DUAL, PRIMAL):
            model = LinearSVC(C=1.0, dual=name == DUAL, random_state=0)
            start = time.process_time()
            model.fit(X, y)
            seconds[name].append(time.process_time() - start)
            accuracy[name] = float((model.predict(X_val) == y_val).mean())
    return {
        "rows": X.shape[0],
        "features": X.shape[1],
        "cpu_s": {name: common.spread(values) for name, values in seconds.items()},
        "accuracy": accuracy,
        "ratio": common.ratio_spread(seconds[PRIMAL], seconds[DUAL]),
    }


if __name__ == "__main__":
    main()
