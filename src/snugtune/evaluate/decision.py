"""How a run decides: model and baseline pooled where that helps, calibrated, with a threshold for review."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.evaluate.calibration import fit_temperature
from snugtune.evaluate.mixing import Metric, Mixture, fit_mixture
from snugtune.evaluate.scaling import Calibration, choose_calibration
from snugtune.evaluate.selective import DELTA, Held, Promise, promise

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Decision:
    """From logits to calibrated probabilities, and the confidence at which a person need not look.

    ``mixture.weight`` is the share of the TF-IDF baseline, 0 where the model alone does as well.
    ``calibration`` goes on top of it. ``promise`` says how the threshold did on validation rows, each with
    probabilities from a calibration fitted without it; records of version 0.1 have none.
    """

    mixture: Mixture
    confidence_threshold: float
    precision_target: float
    delta: float = DELTA
    calibration: Calibration = field(default_factory=Calibration)
    promise: Promise | None = None

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
        return np.exp(self.calibration.apply(self.mixture.log_probabilities(logits, baseline_scores)))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the keys of ``run.json``."""
        return {
            "mixture": self.mixture.as_dict(),
            "calibration": self.calibration.as_dict(),
            "confidence_threshold": self.confidence_threshold,
            "precision_target": self.precision_target,
            "delta": self.delta,
            "promise": None if self.promise is None else self.promise.as_dict(),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Decision:
        """The decision that ``as_dict`` described, in this version or an earlier one."""
        calibration, kept = fields.get("calibration"), fields.get("promise")
        return cls(
            mixture=Mixture.from_dict(fields["mixture"]),
            confidence_threshold=fields["confidence_threshold"],
            precision_target=fields["precision_target"],
            delta=fields.get("delta", DELTA),
            calibration=Calibration() if calibration is None else Calibration.from_dict(calibration),
            promise=None if kept is None else Promise(**kept),
        )


@dataclass(frozen=True)
class Decided:
    """A decision, and what it would have said of each validation row, had it been fitted without that row.

    ``held_out (N, K)`` are those probabilities; ``log_losses`` are the cross-validated log losses of the
    calibration maps that were tried, in nats.
    """

    decision: Decision
    held_out: NDArray[np.float64]
    log_losses: dict[str, float]


def decide(
    logits: Floats,
    baseline_scores: Floats | None,
    y_true: NDArray[np.int64],
    *,
    precision: float,
    metric: Metric = "log_loss",
    class_rows: NDArray[np.integer[Any]] | None = None,
    adjust_for: Metric = "macro_f1",
    trained_tau: float = 0.0,
    search_tau: bool = True,
) -> Decided:
    """Choose mixture, calibration and threshold on validation: ``logits`` (N, K), ``y_true`` (N,).

    The baseline gets a share only where that improves ``metric`` beyond noise (see ``fit_mixture``). With
    ``class_rows (K,)``, how many rows each class has in training, rare classes are preferred as far as that
    improves ``adjust_for`` beyond noise; without ``search_tau`` as far as training did (``trained_tau``: see
    ``Balance.tau``). A mixture so adjusted is calibrated by maps that keep its choice of
    class.
    """
    mixture = _mixture(
        logits, baseline_scores, y_true, metric=metric, adjust_for=adjust_for, class_rows=class_rows,
        trained_tau=trained_tau, search_tau=search_tau,
    )  # fmt: skip
    scores = np.zeros_like(logits) if baseline_scores is None else baseline_scores
    calibrated = choose_calibration(
        mixture.log_probabilities(logits, scores), y_true, keep_order=mixture.tau > 0
    )
    held_out = np.exp(calibrated.out_of_fold)
    rows = Held.of(y_true, held_out)
    kept = promise(rows.confidence, rows.correct, precision)
    decision = Decision(
        mixture=mixture,
        confidence_threshold=kept.threshold,
        precision_target=precision,
        calibration=calibrated.calibration,
        promise=kept,
    )
    return Decided(decision, held_out, calibrated.log_losses)


def _mixture(
    logits: Floats,
    baseline_scores: Floats | None,
    y_true: NDArray[np.int64],
    *,
    class_rows: NDArray[np.integer[Any]] | None,
    **choice: Any,
) -> Mixture:
    if baseline_scores is None and class_rows is None:
        return Mixture(temperature_a=fit_temperature(logits, y_true))
    return fit_mixture(
        logits,
        np.zeros_like(logits) if baseline_scores is None else baseline_scores,
        y_true,
        class_prior=None if class_rows is None else class_rows / class_rows.sum(),
        **choice,
    )
