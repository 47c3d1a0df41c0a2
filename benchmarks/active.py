"""Which texts to label next: accuracy by labels spent, by each strategy of ``snugtune select`` and at random.

The frozen model reads every text once. Labels are revealed in rounds, each as large as all before it; after
each round the learner that ``select`` itself uses is fitted on what was revealed and scored. A fifth of the
training rows is held out of every pool: on them, and not on the test file, ``auto``'s switch was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lib import common, page
from lib.datasets import Texts, banking77, cfpb
from lib.frozen import features

TASKS = ("banking77", "cfpb-product", "cfpb-issue")
A_CLASS = (2, 4, 8, 16, 32)
"""Labels spent at the end of each round, for each class that there is."""

SWITCHES = (2, 4, 8, 16)
"""Labels a class up to which typical texts are asked for, by those that ask by ``badge`` then."""


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
    if results:
        settings = {"seeds": options.seeds, "max_length": options.max_length, "a_class": list(A_CLASS)}
        common.save_result(
            "active", {"settings": settings, "data": results}, options.out, machine=common.hardware()
        )  # fmt: skip
        page.refresh(options.out)


def _arguments() -> Any:
    parser = common.parser("Accuracy by labels spent, of strategies of active learning and at random.")
    parser.add_argument("--data", nargs="+", choices=TASKS, default=list(TASKS[:2]))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=128, help="tokens the frozen model reads of a text")
    return parser.parse_args()


@dataclass(frozen=True)
class _Task:
    """Frozen features and class ids of a pool, of held-out training rows, and of the test file."""

    pool: tuple[Any, Any]
    held_out: tuple[Any, Any]
    test: tuple[Any, Any]
    n_classes: int


def plans() -> dict[str, dict[int, str]]:
    """By name: the strategy of the round that ends at so many labels a class."""
    found = {name: dict.fromkeys(A_CLASS, name) for name in ("random", "typicality", "margin", "badge")}
    for switch in SWITCHES:
        found[f"typicality to {switch} a class, then badge"] = {
            n: "typicality" if n <= switch else "badge" for n in A_CLASS
        }
    for name in ("margin", "badge"):
        found[name][A_CLASS[0]] = "random"  # there is no classifier yet
    return found


def _measure(name: str, folder: Path, options: Any) -> dict[str, Any]:
    texts = banking77(folder) if name == "banking77" else cfpb(folder, name.partition("-")[2].capitalize())
    read = features([*texts.train, *texts.test], options.max_length)
    found: dict[str, list[dict[int, dict[str, float]]]] = {plan: [] for plan in plans()}
    task = None
    for seed in range(options.seeds):
        task = _split(texts, read, seed)
        known: dict[tuple[str, ...], tuple[Any, Any]] = {}
        for plan, rounds in plans().items():
            found[plan].append(_spend(task, rounds, seed, known))
            told = ", ".join(f"{n}: {of['held_out']:.3f}" for n, of in found[plan][-1].items())
            print(f"{name}, seed {seed}, {plan}: {told}")
    assert task is not None
    curves = {plan: _spreads(runs) for plan, runs in found.items()}
    return {
        "classes": task.n_classes,
        "pool_rows": len(task.pool[1]),
        "switch": _best_switch(curves),
        "strategies": curves,
    }


def _split(texts: Texts, read: Any, seed: int) -> _Task:
    from snugtune.data.duplicates import near_duplicate_groups
    from snugtune.data.labels import LabelSet
    from snugtune.evaluate.label_quality import grouped_folds

    labels = LabelSet(tuple(sorted(set(texts.train_labels))))
    y, test_y = labels.encode(texts.train_labels), labels.encode(texts.test_labels)
    groups = near_duplicate_groups(texts.train)
    held_out = grouped_folds(y, groups, seed=seed) == 0
    # As select does: one text of each group of near-duplicates.
    first = np.zeros(len(y), dtype=bool)
    first[np.unique(groups, return_index=True)[1]] = True
    train, test = read[: len(y)], read[len(y) :]
    pool = first & ~held_out
    return _Task((train[pool], y[pool]), (train[held_out], y[held_out]), (test, test_y), len(labels.names))


def _spend(
    task: _Task, rounds: dict[int, str], seed: int, known: dict[tuple[str, ...], tuple[Any, Any]]
) -> dict[int, dict[str, float]]:
    """Scores after each round; what plans have in common at their beginning is ``known`` from the first."""
    x, y = task.pool
    revealed = np.empty(0, dtype=np.int64)
    learner, scores = None, {}
    way: tuple[str, ...] = ()
    for a_class, strategy in rounds.items():
        way = (*way, strategy)
        if way not in known:
            count = min(a_class * task.n_classes, len(y)) - len(revealed)
            revealed = np.concatenate([revealed, _asked(strategy, count, task, revealed, learner, seed)])
            known[way] = (revealed, _learned(x[revealed], y[revealed], seed))
        revealed, learner = known[way]
        scores[a_class * task.n_classes] = {
            "held_out": learner.accuracy(*task.held_out),
            "test": learner.accuracy(*task.test),
            "classes": float(len(np.unique(y[revealed]))),
        }
    return scores


def _asked(strategy: str, count: int, task: _Task, revealed: Any, learner: Any, seed: int) -> Any:
    from snugtune.evaluate.selection import choose

    x = task.pool[0]
    rest = np.setdiff1d(np.arange(len(x)), revealed)
    by_classifier = strategy in ("margin", "badge")
    inputs = learner.learner.inputs(x[rest]) if by_classifier else x[rest]
    probabilities = learner.learner.probabilities(x[rest]) if by_classifier else None
    kind: Any = strategy
    return rest[choose(kind, count, inputs, probabilities, x[revealed], seed=seed).rows]


@dataclass(frozen=True)
class _Learned:
    """A learner of the classes ``seen`` (S,) alone."""

    learner: Any
    seen: Any

    def accuracy(self, x: Any, y: Any) -> float:
        return float((self.seen[self.learner.probabilities(x).argmax(axis=1)] == y).mean())


def _learned(x: Any, y: Any, seed: int) -> _Learned:
    from snugtune.evaluate.selection import learn

    seen, compact = np.unique(y, return_inverse=True)
    return _Learned(learn(x, compact, seed=seed), seen)


def _spreads(runs: list[dict[int, dict[str, float]]]) -> dict[str, Any]:
    return {
        str(spent): {key: common.spread([run[spent][key] for run in runs]) for key in runs[0][spent]}
        for spent in runs[0]
    }


def _best_switch(curves: dict[str, Any]) -> dict[str, float]:
    """Accuracy on held-out rows, averaged over the rounds, by where typical texts give way to ``badge``."""
    return {
        plan: float(np.mean([of["held_out"]["median"] for of in curve.values()]))
        for plan, curve in curves.items()
    }


if __name__ == "__main__":
    main()
