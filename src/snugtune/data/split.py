"""Train, validation and test: stratified, seeded, groups of near-duplicates on one side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snugtune.errors import UserInputError

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """``part`` (N,) holds "train", "validation" or "test" for each row, ``groups`` (N,) what stayed whole."""

    part: NDArray[np.str_]
    groups: NDArray[np.int64]
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
    max_validation: int | None = None,
    fixed: NDArray[np.str_] | None = None,
) -> Split:
    """Split N rows with class ids ``y`` (N,) and near-duplicate ``groups`` (N,), in time linear in N.

    Each group is dealt as a whole to one part. Classes are dealt one after the other, rarest first, and a
    class is never left without a row in training.

    Args:
        y: class ids (N,).
        groups: group ids (N,), as from ``near_duplicate_groups``.
        validation: share of the rows; ``max_validation`` caps it in rows, for tables so large that
            a tenth says no more than a few thousand.
        test: share of the rows, 0 where a test file is given.
        seed: of the draw; the same seed gives the same split on every machine.
        max_validation: most validation rows to ask for.
        fixed: part names (N,) that are already decided, "" where they are not. An undecided row follows
            the first decided row of its group; groups that ``fixed`` itself divides stay divided.

    Raises:
        UserInputError: a fraction is negative, the two leave nothing to train on, or ``fixed`` holds an
            unknown name or leaves a class without a row in training.
    """
    validation = validation_share(validation, test, len(y), max_validation)
    rng = np.random.default_rng(seed)
    deal = _Deal(y, groups)
    if fixed is not None:
        _check_fixed(fixed)
        deal.fix(fixed)
        _check_training(deal.held["train"], y)
    classes, counts = np.unique(y, return_counts=True)
    rarest_first = np.argsort(counts, kind="stable")
    labels = classes[rarest_first].tolist()
    wanted = {
        name: dict(zip(labels, _wanted(counts[rarest_first], fraction, rng).tolist(), strict=True))
        for name, fraction in (("validation", validation), ("test", test))
    }
    for label in labels:
        shuffled = rng.permutation(deal.groups_of[label]).tolist()
        for name, most in wanted.items():
            deal.move(shuffled, name, label, most)
        deal.settle(shuffled)
    return Split(deal.part, groups, seed)


class _Deal:
    """The parts dealt so far, with the counts that decide on each group without a look at all rows.

    Groups are numbered here without gaps; a group's rows are found by one sort, not in a list of its own.
    """

    def __init__(self, y: NDArray[np.int64], groups: NDArray[np.int64]) -> None:
        self.y = y
        _, self.group = np.unique(groups, return_inverse=True)
        self.part = np.full(len(y), "train", dtype="<U10")
        self.decided = np.zeros(int(self.group.max(initial=-1)) + 1, dtype=bool)
        self.by_group = np.argsort(self.group, kind="stable")
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(self.group, minlength=len(self.decided)))])
        self.groups_of = self._groups_by_label()
        self.held = self._count()

    def rows_of(self, group: int) -> NDArray[np.int64]:
        """Rows of a group, in order."""
        return self.by_group[self.starts[group] : self.starts[group + 1]]

    def fix(self, fixed: NDArray[np.str_]) -> None:
        """Take over the decided rows, and the undecided ones of their groups."""
        rows = np.flatnonzero(fixed != "")
        decided, first = np.unique(self.group[rows], return_index=True)
        follows = np.full(len(self.decided), "train", dtype=self.part.dtype)
        follows[decided] = fixed[rows[first]]
        self.part = np.where(fixed == "", follows[self.group], fixed).astype(self.part.dtype)
        self.decided[decided] = True
        self.held = self._count()

    def move(self, candidates: list[int], name: str, label: int, wanted: Mapping[int, int]) -> None:
        """Move groups from training to part ``name`` while it has fewer rows of ``label`` than are wanted."""
        for group in candidates:
            if self.held[name][label] >= wanted[label]:
                return
            if self.decided[group]:
                continue
            rows = self.rows_of(group)
            labels = Counter(self.y[rows].tolist())
            if self._fits(labels, name, label, wanted):
                self.part[rows] = name
                self.held["train"].subtract(labels)
                self.held[name].update(labels)
                self.decided[group] = True

    def settle(self, candidates: list[int]) -> None:
        """What these groups hold now is final: a commoner class that shares one does not move it."""
        self.decided[candidates] = True

    def _fits(self, labels: Counter[int], name: str, label: int, wanted: Mapping[int, int]) -> bool:
        """Whether training keeps some of each label, and the part has room for all of these.

        Room for one row of another label there always is; a large group of it would be most of what the part
        says of that label, and is one text in truth.
        """
        held = self.held[name]
        leaves_training = all(self.held["train"][other] > count for other, count in labels.items())
        room = {other: wanted[other] - held[other] for other in labels}
        return leaves_training and all(
            count <= (room[other] if other == label else max(1, room[other]))
            for other, count in labels.items()
        )

    def _groups_by_label(self) -> dict[int, NDArray[np.int64]]:
        """The groups in which each label occurs, in the order of its first rows there."""
        labels, label = np.unique(self.y, return_inverse=True)
        _, first = np.unique(label * len(self.decided) + self.group, return_index=True)
        first = np.sort(first)
        first = first[np.argsort(label[first], kind="stable")]
        edges = np.searchsorted(label[first], np.arange(len(labels) + 1))
        return {
            name: self.group[first[start:stop]]
            for name, start, stop in zip(labels.tolist(), edges[:-1], edges[1:], strict=True)
        }

    def _count(self) -> dict[str, Counter[int]]:
        return {name: Counter(self.y[self.part == name].tolist()) for name in PARTS}


def _wanted(counts: NDArray[np.int64], fraction: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows to take of each class (K,): ``fraction * counts`` rounded so that the total is right as well.

    Systematic sampling (Madow 1949): one random offset for all classes, so that each share is rounded up or
    down with the right expectation and their sum is off by less than one row.
    """
    tolerance = 1e-9  # keeps .1 + .2 from falling short of the whole row it stands for
    edges = np.floor(np.cumsum([0.0, *(fraction * counts)]) + rng.random() + tolerance)
    return np.diff(edges).astype(np.int64)


def validation_share(validation: float, test: float, rows: int, max_validation: int | None) -> float:
    """The share of ``rows`` to validate on, at most ``max_validation`` of them.

    Raises:
        UserInputError: a share is negative, or the two leave nothing to train on.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise UserInputError(
            f"validation_fraction={validation} and test_fraction={test} leave nothing to train on; "
            "both must be 0 or more and their sum below 1."
        )
    return validation if max_validation is None else min(validation, max_validation / max(1, rows))


def _check_fixed(fixed: NDArray[np.str_]) -> None:
    for row, name in enumerate(fixed.tolist()):
        if name and name not in PARTS:
            raise UserInputError(
                f"Row {row} of the given split is {name!r}; "
                f"use {', '.join(PARTS)}, or nothing to leave it open."
            )


def _check_training(held: Counter[int], y: NDArray[np.int64]) -> None:
    missing = [label for label in np.unique(y).tolist() if not held[label]]
    if missing:
        raise UserInputError(
            f"The given split leaves {len(missing)} classes (first: class {missing[0]}) without a row "
            "in train; move at least one row of each there."
        )
