"""A split of texts with several labels each: every label is spread as evenly as the others allow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from snugtune.data.split import PARTS, Split, validation_share

Counts = NDArray[np.int64]


def split_label_sets(
    y: NDArray[np.int8],
    groups: NDArray[np.int64],
    *,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    max_validation: int | None = None,
) -> Split:
    """Split N rows of labels ``y`` (N, K), 1 where one applies, and near-duplicate ``groups`` (N,).

    Iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011, On the stratification of multi-label data,
    algorithm 1) of whole groups: the label with the fewest rows left is dealt first, each of its groups to
    the part that still wants most of it; ties go to the part that wants most rows, then by lot. Rows without
    a label come last. No label is left without a row in training.

    Raises:
        UserInputError: a fraction is negative, or the two leave nothing to train on.
    """
    validation = validation_share(validation, test, len(y), max_validation)
    shares = np.array([1 - validation - test, validation, test])
    deal = _Deal(y, groups, shares, np.random.default_rng(seed))
    while (label := deal.rarest()) is not None:
        deal.deal(deal.groups_with(label), label)
    deal.deal(deal.undecided(), None)
    return Split(np.array(PARTS)[deal.part][deal.group_of], groups, seed)


class _Deal:
    """What each part holds and still wants: groups as rows of counts by label."""

    def __init__(
        self,
        y: NDArray[np.int8],
        groups: NDArray[np.int64],
        shares: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> None:
        _, self.group_of = np.unique(groups, return_inverse=True)
        G = int(self.group_of.max(initial=-1)) + 1
        self.rows = np.bincount(self.group_of, minlength=G)
        self.labels = np.zeros((G, y.shape[1]), dtype=np.int64)
        np.add.at(self.labels, self.group_of, y)
        self.part = np.full(G, -1, dtype=np.int64)
        self.rng = rng
        self.wanted = shares[:, None] * self.labels.sum(axis=0)
        self.wanted_rows = shares * self.rows.sum()
        self.open = self.labels.sum(axis=0)
        # Rows of each label that training has, or may still get.
        self.for_training = self.open.copy()
        self.allowed = shares > 0

    def rarest(self) -> int | None:
        """The label with the fewest rows still to deal; None if there are none."""
        left = np.flatnonzero(self.open)
        return int(left[np.argmin(self.open[left])]) if len(left) else None

    def undecided(self) -> Counts:
        return np.flatnonzero(self.part < 0)

    def groups_with(self, label: int) -> Counts:
        return np.flatnonzero((self.part < 0) & (self.labels[:, label] > 0))

    def deal(self, groups: Counts, label: int | None) -> None:
        """Each of ``groups`` to the part that wants it most, judged by ``label`` or by rows alone."""
        for group in self.rng.permutation(groups).tolist():
            part = self._choose(group, label)
            self.part[group] = part
            self.wanted[part] -= self.labels[group]
            self.wanted_rows[part] -= self.rows[group]
            self.open -= self.labels[group]
            if part:
                self.for_training -= self.labels[group]

    def _choose(self, group: int, label: int | None) -> int:
        mine = self.labels[group]
        takes_last = (self.for_training[mine > 0] <= mine[mine > 0]).any()
        if takes_last:
            return 0
        wants = self.wanted_rows if label is None else self.wanted[:, label]
        ranks = zip(wants, self.wanted_rows, self.rng.random(len(PARTS)), strict=True)
        # A large group in a small part would be most of what it says, and is one text in truth.
        fits = [part == 0 or self.rows[group] <= max(1, room) for part, room in enumerate(self.wanted_rows)]
        candidates = [(rank, part) for part, rank in enumerate(ranks) if self.allowed[part] and fits[part]]
        return max(candidates)[1]
