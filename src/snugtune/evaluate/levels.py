"""Labels that lie in a hierarchy: what a predicted label says of the levels above it, and how well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from snugtune.evaluate.metrics import wilson_interval

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Level:
    """A column above the labels, and the value of it that each of the K labels implies."""

    column: str
    implied: tuple[str, ...]


def levels_of(y: Ids, cells: Mapping[str, Sequence[str]], K: int) -> list[Level]:
    """The levels, from training rows: class ids ``y (N,)`` and by column N ``cells``, some of them blank.

    A label implies the value that most of its rows have; of equals, the first by name. One whose rows are all
    blank implies none, which is told by an empty text.
    """
    levels = []
    for column, values in cells.items():
        found: list[Counter[str]] = [Counter() for _ in range(K)]
        for label, value in zip(y.tolist(), values, strict=True):
            if value and label >= 0:
                found[label][value] += 1
        implied = (min(one.items(), key=lambda item: (-item[1], item[0]))[0] if one else "" for one in found)
        levels.append(Level(column, tuple(implied)))
    return levels


def level_scores(level: Level, y_true: Ids, y_pred: Ids, cells: Sequence[str]) -> dict[str, Any] | None:
    """How often the level of a predicted label is the row's own: ids ``(N,)`` and N ``cells``.

    Rows whose cell is blank, or a value that no label implies, are not scored; rows whose label is unseen
    (-1) are. ``ceiling`` is the accuracy of the rows' own labels: a label that occurs below several values
    implies but one of them. None where no row can be scored.
    """
    implied, truth = np.array(level.implied, dtype=object), np.array(cells, dtype=object)
    scored = np.isin(truth.astype(str), sorted({value for value in level.implied if value}))
    if not scored.any():
        return None
    truth, told = truth[scored], implied[y_pred[scored]]
    right = truth == told
    labelled = y_true[scored] >= 0
    own = implied[y_true[scored][labelled]] == truth[labelled]
    return {
        "column": level.column,
        "rows": len(truth),
        "values": len(set(truth)),
        "accuracy": float(right.mean()),
        "interval": wilson_interval(int(right.sum()), len(right)),
        "f1_macro": float(f1_score(truth.astype(str), told.astype(str), average="macro", zero_division=0.0)),
        "ceiling": float(own.mean()) if len(own) else None,
    }


def all_level_scores(
    levels: Sequence[Level], y_true: Ids, y_pred: Ids, cells: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """`level_scores` of each level whose column is in ``cells``."""
    found = (
        level_scores(level, y_true, y_pred, cells[level.column]) for level in levels if level.column in cells
    )
    return [scores for scores in found if scores is not None]
