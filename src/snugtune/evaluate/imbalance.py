"""Classes of very different sizes: weights in the loss, adjusted logits, or rows drawn more evenly.

All three change what is learnt in favour of rare classes: macro F1 may rise, and accuracy pays for it. With
class shares ``p (K,)`` in training:

- weights: the loss of a row of class k is multiplied by ``p_k ** -strength`` (with strength 1 the weighting
  of King & Zeng 2001, sec. 4.2), scaled to a mean of 1 over the rows, so that learning rates keep their
  meaning;
- logit adjustment: ``tau log p`` is added to the logits in the loss (Menon et al. 2021, arXiv:2007.07314,
  eq. 10), consistent for the balanced error at ``tau = 1``. In prediction nothing is added;
- sampling: a row of class k is drawn with probability in proportion to ``p_k ** -strength``, so that the
  class makes up ``p_k ** (1 - strength)`` of an epoch, scaled (Mahajan et al. 2018, sec. 2.2: strength 1/2).

After training, ``tau log p`` can be taken off the logits instead (Menon et al. 2021, eq. 9): see `Mixture`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from snugtune.evaluate.mixing import positive_shares

Counts = NDArray[np.integer[Any]]
Real = NDArray[np.float64]
Method = Literal["none", "weights", "logit_adjustment", "sampling"]
METHODS: tuple[Method, ...] = ("none", "weights", "logit_adjustment", "sampling")

WEIGHT_STRENGTH = 0.5
"""The square root: the inverse itself weighs a class of one row like one of a thousand."""

TAU = 1.0
"""Of the logit adjustment in the loss: the value for which Menon et al. prove consistency."""


def class_weights(class_rows: Counts, strength: float = WEIGHT_STRENGTH) -> Real:
    """Factors ``(K,)`` of the rows' losses; their mean over the rows is 1.

    ``class_rows (K,)`` are training rows of each class. A class without rows has the weight of one with one.

    Raises:
        ValueError: no class has a row.
    """
    rows = _checked(class_rows)
    weights = np.maximum(rows, 1) ** -strength
    return np.asarray(weights * rows.sum() / (weights @ rows))


def logit_shift(class_rows: Counts, tau: float = TAU) -> Real:
    """What is added to the logits ``(N, K)`` in the loss: ``tau log p``, ``(K,)``.

    A class without rows has half of the share of the smallest one that has some.

    Raises:
        ValueError: no class has a row.
    """
    return np.asarray(tau * np.log(positive_shares(_checked(class_rows))))


def sampling_probabilities(y: NDArray[np.int64], K: int, strength: float = WEIGHT_STRENGTH) -> Real:
    """The probability ``(N,)`` of drawing each training row of class ids ``y (N,)``; they sum to 1.

    Raises:
        ValueError: there is no row.
    """
    factors = class_weights(np.bincount(y, minlength=K), strength)[y]
    return np.asarray(factors / factors.sum())


@dataclass(frozen=True)
class Balance:
    """How training favours rare classes; ``class_rows`` (K,) are the training rows of each class."""

    method: Method
    class_rows: Counts

    @property
    def tau(self) -> float:
        """How much of ``log p`` is missing in logits that were trained so.

        They tell the classes of a world in which class k has a share in proportion to ``p_k ** (1 - tau)``:
        for a loss weighted by w, ``exp(logit_k)`` is drawn to ``w_k P(k | x)``, scaled. `natural` adds it.
        """
        return {"none": 0.0, "logit_adjustment": TAU}.get(self.method, WEIGHT_STRENGTH)

    @property
    def loss_weights(self) -> Real | None:
        """Factors (K,) of the rows' losses; None where all count alike."""
        return class_weights(self.class_rows) if self.method == "weights" else None

    @property
    def logit_shift(self) -> Real | None:
        """What the loss adds to the logits, (K,); None for nothing."""
        return logit_shift(self.class_rows) if self.method == "logit_adjustment" else None

    @property
    def expected_weights(self) -> Real | None:
        """How much a row of each class counts in the expected loss of an epoch, (K,), shift or none apart.

        Weights and sampling of one strength have the same: sampling repeats a row where weights scale it.
        """
        return class_weights(self.class_rows) if self.method in ("weights", "sampling") else None

    def probabilities(self, y: NDArray[np.int64]) -> Real | None:
        """By which rows of class ids ``y (N,)`` are drawn, (N,); None where each comes once."""
        return sampling_probabilities(y, len(self.class_rows)) if self.method == "sampling" else None

    def natural(self, logits: NDArray[np.floating[Any]]) -> Real:
        """Logits (N, K) for the classes' shares as they are, from those of a model that was trained so."""
        return np.asarray(logits + logit_shift(self.class_rows, self.tau))


def _checked(class_rows: Counts) -> Real:
    rows = np.asarray(class_rows, np.float64)
    if not rows.sum() > 0:
        raise ValueError("class_rows must count at least one row.")
    return rows
