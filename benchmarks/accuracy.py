"""Accuracy on real data: ``snugtune fit`` as a user types it, against TF-IDF and a linear classifier.

Both learn from the training file (ours keeps a tenth of it for validation) and are scored on the same rows
of the test file: those whose label occurs in training.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import common, page
from lib.datasets import CFPB_TEXT, clinc150_csv


@dataclass(frozen=True)
class Task:
    """A training and a test table with their columns."""

    train: Path
    test: Path
    text: str
    label: str


TASKS = ("banking77", "clinc150", "cfpb-product", "cfpb-issue", "cfpb-sub-issue")


def main() -> None:
    options = _arguments()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.data:
            task = task_of(name, Path(temporary))
            if task is not None:
                results[name] = _measure(name, task, options, Path(temporary))
    if not results:
        return
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "keep")}
    # A file for each choice of data, so that those measured with other options stand beside each other.
    record = {"benchmark": "accuracy", "settings": settings, "data": results}
    name = f"accuracy-{'-'.join(results)}"
    common.save_result(name, record, options.out, machine=common.hardware())
    page.refresh(options.out)


def _arguments() -> Any:
    parser = common.parser("Accuracy of snugtune fit on real data, against TF-IDF and LinearSVC.")
    parser.add_argument("--data", nargs="+", choices=TASKS, default=["banking77", "clinc150"])
    parser.add_argument("--limit-s", type=float, default=5400, help="most seconds of one fit")
    parser.add_argument("--keep", type=Path, default=None, help="folder in which the runs are kept")
    parser.add_argument(
        "--fit", nargs=argparse.REMAINDER, default=[], help="what follows goes to snugtune fit as it is"
    )
    return parser.parse_args()


def task_of(name: str, temporary: Path) -> Task | None:
    """The tables of ``name``, or None where its data is missing."""
    folder = common.data_folder(name.partition("-")[0])
    if folder is None:
        return None
    if name == "clinc150":
        return Task(*clinc150_csv(folder, temporary), "text", "intent")
    train, test = folder / "train.csv", folder / "test.csv"
    if name == "banking77":
        return Task(train, test, "text", "category")
    return Task(train, test, CFPB_TEXT, name.partition("-")[2].capitalize())


def _measure(name: str, task: Task, options: Any, temporary: Path) -> dict[str, Any]:
    print(f"{name}: TF-IDF + LinearSVC, then snugtune fit.")
    baseline = baseline_scores(task)
    print(f"{name}: TF-IDF + LinearSVC {_said(baseline)}")
    ours = _fit(name, task, options, temporary)
    print(f"{name}: snugtune fit {_said(ours)}" if "accuracy" in ours else f"{name}: {ours['error']}")
    return {"ours": ours, "baseline": baseline}


def _said(scores: dict[str, Any]) -> str:
    return (
        f"accuracy {scores['accuracy']:.4f}, macro-F1 {scores['f1_macro']:.4f} in {scores['seconds']:.0f} s"
    )


def baseline_scores(task: Task) -> dict[str, Any]:
    """TF-IDF of words and word pairs with LinearSVC, scikit-learn's own from end to end."""
    from lib.datasets import read_table
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    train, labels = read_table(task.train, task.text, task.label)
    test, given = read_table(task.test, task.text, task.label)
    started = time.perf_counter()
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC(random_state=0))
    model.fit(train, labels)
    seconds = time.perf_counter() - started
    known = set(labels)
    rows = [i for i, label in enumerate(given) if label in known]
    y_true, y_pred = [given[i] for i in rows], model.predict([test[i] for i in rows])
    return {
        "accuracy": float(accuracy_score(y_true, y_pred)),
        "f1_macro": float(f1_score(y_true, y_pred, average="macro", zero_division=0)),
        "rows": len(rows),
        "seconds": seconds,
    }


def _fit(name: str, task: Task, options: Any, temporary: Path) -> dict[str, Any]:
    run = (options.keep or temporary) / name
    seconds, error = fit_once(fit_command(task, run, options.fit), options.threads, options.limit_s)
    return {"error": error} if error else read_scores(run, seconds)


def fit_command(task: Task, run: Path, settings: Sequence[str]) -> list[str]:
    """The command of a fit of ``task`` to the folder ``run``."""
    return [
        sys.executable, "-m", "snugtune", "fit", str(task.train), "--test", str(task.test),
        "--text", task.text, "--label", task.label, "--out", str(run), "--overwrite", *settings,
    ]  # fmt: skip


def fit_once(command: list[str], threads: int, limit_s: float) -> tuple[float, str | None]:
    """Seconds of the command, and what went wrong, if anything."""
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            timeout=limit_s, env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return limit_s, f"not finished after {limit_s:.0f} s"
    seconds = time.perf_counter() - started
    return seconds, " ".join(done.stdout.split())[-300:] if done.returncode else None


def read_scores(run: Path, seconds: float) -> dict[str, Any]:
    """What the comparison needs of a run folder."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    test = record["metrics"]["test"]
    wanted = ("accuracy", "f1_macro", "ece", "rows", "rows_unseen_label")
    return {name: test[name] for name in wanted} | {"seconds": seconds, "train_s": record["time"]["train_s"]}


if __name__ == "__main__":
    main()
