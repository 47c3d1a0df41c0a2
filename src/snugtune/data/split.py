"""Train, validation and test: stratified, seeded, groups of near-duplicates on one side."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snugtune.errors import UserInputError


@dataclass(frozen=True)
class Split:
    """``part`` (N,) holds "train", "validation" or "test" for each row."""

    part: NDArray[np.str_]
    seed: int

    def indices(self, name: str) -> NDArray[np.int64]:
        """Rows of one part, in order."""
        return np.flatnonzero(self.part == name)


def split_rows(
    y: NDArray[np.int64],
    groups: NDArray[np.int64],
    *,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> Split:
    """Split N rows with class ids ``y`` (N,) and near-duplicate ``groups`` (N,).

    Each group is dealt as a whole to one part. Classes are dealt one after the other, rarest first, and a
    class is never left without a row in training.

    Raises:
        UserInputError: a fraction is negative, or the two leave nothing to train on.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise UserInputError(
            f"validation_fraction={validation} and test_fraction={test} leave nothing to train on; "
            "both must be 0 or more and their sum below 1."
        )
    rng = np.random.default_rng(seed)
    members = _members(groups)
    part = np.full(len(y), "train", dtype="<U10")
    dealt: set[int] = set()
    classes, counts = np.unique(y, return_counts=True)
    for label in classes[np.argsort(counts, kind="stable")]:
        _deal_class(y, groups, members, part, dealt, int(label), (validation, test), rng)
    return Split(part, seed)


def _deal_class(
    y: NDArray[np.int64],
    groups: NDArray[np.int64],
    members: dict[int, NDArray[np.int64]],
    part: NDArray[np.str_],
    dealt: set[int],
    label: int,
    fractions: tuple[float, float],
    rng: np.random.Generator,
) -> None:
    rows = np.flatnonzero(y == label)
    mine = list(dict.fromkeys(groups[rows].tolist()))
    rng.shuffle(mine)
    for name, fraction in zip(("validation", "test"), fractions, strict=True):
        # Rounding at random keeps the expected share right for classes of a few rows.
        wanted = int(np.floor(fraction * len(rows) + rng.random()))
        for group in mine:
            held = members[group]
            if group in dealt or int((part[rows] == name).sum()) + (y[held] == label).sum() > wanted:
                continue
            if _leaves_training(y, part, held):
                part[held] = name
                dealt.add(group)
    dealt.update(mine)


def _leaves_training(y: NDArray[np.int64], part: NDArray[np.str_], held: NDArray[np.int64]) -> bool:
    """Whether each class of these rows would still have a row in training without them."""
    staying = part == "train"
    staying[held] = False
    return all((staying & (y == label)).any() for label in np.unique(y[held]))


def _members(groups: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    found: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups.tolist()):
        found[group].append(row)
    return {group: np.array(rows, dtype=np.int64) for group, rows in found.items()}
