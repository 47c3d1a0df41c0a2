"""How a run decides: model and baseline pooled where that helps, calibrated, with a threshold for review."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.evaluate.calibration import review_threshold
from snugtune.evaluate.mixing import Metric, Mixture, fit_mixture

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Decision:
    """From logits to calibrated probabilities, and the confidence at which a person need not look.

    ``mixture.weight`` is the share of the TF-IDF baseline, 0 where the model alone does as well.
    """

    mixture: Mixture
    confidence_threshold: float
    precision_target: float

    @property
    def uses_baseline(self) -> bool:
        """Whether the baseline's scores are needed."""
        return self.mixture.weight > 0

    def probabilities(self, logits: Floats, baseline_scores: Floats | None = None) -> NDArray[np.float64]:
        """Calibrated probabilities (N, K) from the model's ``logits`` and ``baseline_scores``, (N, K) both.

        Raises:
            ValueError: the baseline is part of the mixture and its scores are not given.
        """
        if baseline_scores is None:
            if self.uses_baseline:
                raise ValueError("This decision mixes in the baseline; its scores are needed.")
            baseline_scores = np.zeros_like(logits)
        return self.mixture.apply(logits, baseline_scores)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the keys of ``run.json``."""
        return {
            "mixture": self.mixture.as_dict(),
            "confidence_threshold": self.confidence_threshold,
            "precision_target": self.precision_target,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Decision:
        """The decision that ``as_dict`` described."""
        mixture = Mixture.from_dict(fields["mixture"])
        return cls(mixture, fields["confidence_threshold"], fields["precision_target"])


def decide(
    logits: Floats,
    baseline_scores: Floats | None,
    y_true: NDArray[np.int64],
    *,
    precision: float,
    metric: Metric = "log_loss",
) -> Decision:
    """Choose mixture, temperature and threshold on validation: ``logits`` (N, K), ``y_true`` (N,).

    The baseline gets a share only where that improves ``metric`` beyond noise (see ``fit_mixture``).
    """
    scores = np.zeros_like(logits) if baseline_scores is None else baseline_scores
    mixture = fit_mixture(logits, scores, y_true, metric=metric)
    probabilities = mixture.apply(logits, scores)
    threshold = review_threshold(probabilities.max(1), probabilities.argmax(1) == y_true, precision)
    return Decision(mixture, threshold, precision)
