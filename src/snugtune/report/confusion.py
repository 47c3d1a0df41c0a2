"""The confusion matrix of hundreds of classes, still legible: those mistaken for each other stand together.

The map is a handful of SVG paths, one for each shade, of unit squares: small, sharp at any size, printable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

MAP_CLASSES = 400
"""Classes drawn on the map at most: those with the most mistakes."""

CORNER_CLASSES = 12
"""Classes of the table of counts: as many as a screen shows with numbers in the cells."""

SHADES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Shares of a class's rows at which the next darker shade begins."""


@dataclass(frozen=True)
class Confusion:
    """Counts (K, K), rows are the true classes, with the class names."""

    labels: list[str]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, metrics: dict[str, Any]) -> Confusion:
        """From ``per_class`` and ``confusion`` of a part's metrics in ``run.json``."""
        per_class = metrics["per_class"]
        counts = np.zeros((len(per_class), len(per_class)), np.int64)
        for true, predicted, count in metrics["confusion"]:
            counts[true, predicted] = count
        # The diagonal is not stored: it is what the mistakes leave of each class's rows.
        support = np.array([row["support"] for row in per_class], np.int64)
        np.fill_diagonal(counts, support - counts.sum(axis=1))
        return cls([row["label"] for row in per_class], counts)

    def mistakes(self) -> NDArray[np.int64]:
        """The counts without the diagonal."""
        return self.counts - np.diag(np.diag(self.counts))

    def of_classes(self, ids: Sequence[int]) -> Confusion:
        """The part of the matrix between some classes, in their order."""
        return Confusion([self.labels[i] for i in ids], self.counts[np.ix_(ids, ids)])

    def shares(self) -> NDArray[np.float64]:
        """Counts as shares of their row (K, K); 0 in rows of classes that do not occur."""
        rows = self.counts.sum(axis=1, keepdims=True)
        return np.asarray(self.counts / np.maximum(rows, 1), np.float64)


def map_order(confusion: Confusion, most: int = MAP_CLASSES) -> list[int]:
    """Class ids in the order of the map: average linkage with optimal leaf order on mutual mistakes.

    Classes with no mistake come last, by size. (Bar-Joseph et al. 2001, Fast optimal leaf ordering.)
    """
    mutual = confusion.mistakes()
    mutual = mutual + mutual.T
    total = mutual.sum(axis=1)
    size = confusion.counts.sum(axis=1)
    kept = np.lexsort((-size, -total))[:most]
    mistaken = [int(i) for i in kept if total[i] > 0]
    clean = sorted((int(i) for i in kept if total[i] == 0), key=lambda i: -size[i])
    return _together(mutual, size, mistaken) + clean


def corner_classes(confusion: Confusion, most: int = CORNER_CLASSES) -> list[int]:
    """The classes between which most of the mistakes lie: those of the largest pairs, pair after pair."""
    mutual = np.triu(confusion.mistakes() + confusion.mistakes().T)
    chosen: list[int] = []
    for flat in np.argsort(-mutual, axis=None, kind="stable")[: most * most]:
        a, b = divmod(int(flat), len(mutual))
        more = [i for i in (a, b) if i not in chosen]
        if mutual[a, b] == 0 or len(chosen) + len(more) > most:
            break
        chosen += more
    return chosen


def pairs(confusion: Confusion, most: int = 50) -> list[dict[str, Any]]:
    """The pairs of classes taken for each other most often, as in ``confused_pairs``, without examples."""
    mistakes = confusion.mistakes()
    mutual = np.triu(mistakes + mistakes.T)
    found = []
    for flat in np.argsort(-mutual, axis=None, kind="stable")[:most]:
        a, b = divmod(int(flat), len(mutual))
        if mutual[a, b] == 0:
            break
        labels = [confusion.labels[a], confusion.labels[b]]
        rows, a_as_b, b_as_a = int(mutual[a, b]), int(mistakes[a, b]), int(mistakes[b, a])
        found.append({"labels": labels, "rows": rows, "a_as_b": a_as_b, "b_as_a": b_as_a, "examples": []})
    return found


def shade(share: float) -> int:
    """The shade of a cell, 1 (lightest) to ``len(SHADES) + 1``; 0 for an empty one."""
    return 0 if share <= 0 else 1 + int(np.searchsorted(SHADES, share, side="right"))


def map_svg(confusion: Confusion) -> Markup:
    """The whole matrix as one picture without names: what is right in one colour, mistakes in another."""
    K = len(confusion.labels)
    shares = confusion.shares()
    paths: dict[str, list[str]] = {}
    for row, column in zip(*np.nonzero(confusion.counts), strict=True):
        kind = ("r" if row == column else "m") + str(shade(float(shares[row, column])))
        paths.setdefault(kind, []).append(f"M{column} {row}h1v1h-1z")
    cells = "".join(f'<path class="{kind}" d="{"".join(paths[kind])}"/>' for kind in sorted(paths))
    every = 10 if K <= 120 else 50
    lines = "".join(f"M{i} 0V{K}M0 {i}H{K}" for i in range(every, K, every))
    return Markup(
        f'<svg class="map{" many" if K > 100 else ""}" id="map" viewBox="0 0 {K} {K}" role="img" '
        f'tabindex="0" shape-rendering="crispEdges" '
        f'aria-label="Confusion map of {K} classes; the table beside it names the most frequent mistakes">'
        f'<rect class="ground" width="{K}" height="{K}"/><path class="lines" d="{lines}"/>{cells}'
        f'<rect class="cross" id="map-row" x="0" y="0" width="{K}" height="1"/>'
        f'<rect class="cross" id="map-column" x="0" y="0" width="1" height="{K}"/></svg>'
    )


def map_data(confusion: Confusion, cut: int = 80) -> dict[str, Any]:
    """What the page's script reads off the map: names, and cells as ``[row, column, count]``."""
    cells = np.argwhere(confusion.counts > 0)
    return {
        "labels": [label if len(label) <= cut else label[: cut - 1] + "…" for label in confusion.labels],
        "rows": confusion.counts.sum(axis=1).tolist(),
        "cells": [[int(i), int(j), int(confusion.counts[i, j])] for i, j in cells],
    }


def _together(mutual: NDArray[np.int64], size: NDArray[np.int64], ids: list[int]) -> list[int]:
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(ids) < 3:
        return ids
    among = mutual[np.ix_(ids, ids)].astype(np.float64)
    weight = np.maximum(size[ids], 1).astype(np.float64)
    nearness = among / np.sqrt(np.outer(weight, weight))
    distance = 1.0 / (1.0 + 10 * nearness)
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return [ids[i] for i in leaves_list(tree)]
