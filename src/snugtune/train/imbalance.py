"""How training favours rare classes: as the user says, or as validation texts say of probes.

A probe on frozen features, fitted as training would be, stands for the model: it costs a regression and no
pass. Sampling has the expected loss of weights, so its probe is theirs; it is taken where it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.data.tokens import Tokens
from snugtune.evaluate.calibration import softmax
from snugtune.evaluate.imbalance import METHODS, Balance, Method
from snugtune.evaluate.metrics import classification_metrics
from snugtune.evaluate.mixing import Metric, best_beyond_noise
from snugtune.model.head import Head, Probe
from snugtune.train.probe import Features, HeldOut, adjusted, fit_probes_of_texts

COMPARED: tuple[Method, ...] = ("none", "weights", "logit_adjustment")

METRICS: dict[str, Metric] = {"accuracy": "accuracy", "f1_macro": "macro_f1", "f1_micro": "accuracy"}
"""Settings that choose, by the name they have in `mixing`; of one label a text, micro F1 is accuracy."""


@dataclass(frozen=True)
class Balanced:
    """A way to favour rare classes, the probe and the one of the next stronger penalty that go with it.

    ``candidates`` say how each way did; None where nothing was compared. ``probes`` are None without a probe
    start.
    """

    asked: str
    balance: Balance
    probes: tuple[Probe, Probe] | None = None
    candidates: dict[Method, dict[str, float]] | None = None

    @property
    def class_rows(self) -> NDArray[np.integer[Any]] | None:
        """Training rows of each class, (K,), if anything may depend on them; else None."""
        return None if self.asked == "none" else self.balance.class_rows

    @property
    def searches_tau(self) -> bool:
        """Whether validation may say after training, too, how far rare classes are preferred."""
        return self.asked == "auto"

    def as_dict(self) -> dict[str, Any]:
        """``imbalance`` of ``run.json``."""
        return {
            "asked": self.asked,
            "chosen": self.balance.method,
            "trained_tau": self.balance.tau,
            "candidates": self.candidates,
        }

    def sentence(self) -> str | None:
        """For the user, where training is another one than without."""
        if self.balance.method == "none":
            return None
        why = "" if self.candidates is None else ", by the evidence of probes on validation"
        return f"Rare classes are favoured in training: {self.balance.method}{why}."


def balance_without_probe(asked: str, class_rows: NDArray[np.int64]) -> Balanced:
    """What is asked for; where evidence is, there is none without a probe."""
    return Balanced(asked, Balance(_named(asked), class_rows))


def balance_with_probe(
    asked: str,
    features: Features,
    tokens: Tokens,
    y: NDArray[Any],
    head: Head,
    held_out: HeldOut,
    *,
    label_names: Sequence[str],
    metric: str,
) -> Balanced:
    """What is asked for, or what the held-out texts say for ``auto``, with its probes.

    ``features`` (R, H) are those of the rows of ``tokens``, ``y`` (N,) the classes of their texts. Training
    without any favour is left only for a way whose probe has a higher ``metric`` (``accuracy`` or
    ``f1_macro``) beyond noise, by a paired bootstrap. It is the only way where a text may have several
    labels, ``y`` (N, K).
    """
    if y.ndim == 2:
        of_labels = fit_probes_of_texts(features, tokens, y, len(label_names), head, held_out)
        return Balanced(asked, Balance("none", (y > 0).sum(axis=0)), of_labels)
    class_rows = np.bincount(y, minlength=len(label_names))
    balances = {method: Balance(method, class_rows) for method in METHODS}

    def fit(method: Method) -> tuple[Probe, Probe]:
        return fit_probes_of_texts(features, tokens, y, len(label_names), head, held_out, balances[method])

    if asked != "auto":
        method = _named(asked)
        return Balanced(asked, balances[method], fit(method))
    best, stronger = fit("none")
    shift = balances["logit_adjustment"]
    # That of the plain probe, shifted: the loss adds the shift again.
    shifted = adjusted(best, features, head, shift), adjusted(stronger, features, head, shift)
    probes = dict(zip(COMPARED, ((best, stronger), fit("weights"), shifted), strict=True))
    said = [softmax(held_out.logits(best, head)) for best, _ in probes.values()]
    chosen = COMPARED[best_beyond_noise(said.__getitem__, len(said), held_out.y, METRICS[metric])]
    candidates = {
        method: _scores(probabilities, held_out.y, label_names)
        for method, probabilities in zip(COMPARED, said, strict=True)
    }
    return Balanced(asked, balances[chosen], probes[chosen], candidates)


def _named(asked: str) -> Method:
    return next((method for method in METHODS if method == asked), "none")


def _scores(
    probabilities: NDArray[np.float64], y_true: NDArray[np.int64], label_names: Sequence[str]
) -> dict[str, float]:
    metrics = classification_metrics(y_true, probabilities, label_names, bootstrap_samples=0)
    return {name: metrics[name] for name in ("accuracy", "f1_macro")}
