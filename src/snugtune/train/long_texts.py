"""How texts longer than the model reads are read: as the user says, or as validation rows say of a probe.

A linear probe on the frozen model's features stands for the model that is to be trained: it costs one pass
for each row of tokens, and rows that several ways have in common (all short texts, and the first window of
the others) are passed once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from snugtune.data.long_texts import WAYS, LongTexts
from snugtune.data.part import Part
from snugtune.data.tokens import Tokens, tokenize
from snugtune.evaluate.calibration import fit_temperature, log_softmax
from snugtune.evaluate.metrics import classification_metrics
from snugtune.evaluate.multilabel.decision import fit_sigmoid, row_losses
from snugtune.evaluate.multilabel.thresholds import OBJECTIVES, best_common_score
from snugtune.evaluate.scaling import beyond_noise
from snugtune.model.head import Head
from snugtune.train.probe import Features, HeldOut, fit_probes_of_texts

JUDGED = ("train", "validation")
"""The parts that are looked at for a choice; the test rows are not."""

RowReader = Callable[[Tokens], Features]
"""The frozen model's features (R, H) of the rows of some tokens."""


@dataclass(frozen=True)
class Encoder:
    """A model's tokenizer, and how many tokens the model reads of a text."""

    tokenizer: Any
    max_length: int

    def encode(self, parts: Mapping[str, Part], way: LongTexts) -> dict[str, Tokens]:
        """The texts of each part in tokens."""
        return {
            name: tokenize(part.texts, self.tokenizer, self.max_length, way) for name, part in parts.items()
        }


@dataclass(frozen=True)
class Reading:
    """Texts as they are read, tokens by part, in the way that was ``asked`` for or by evidence.

    ``candidates`` say how each way did; None where nothing was compared.
    """

    tokens: dict[str, Tokens]
    asked: str
    candidates: Mapping[LongTexts, dict[str, float]] | None = None

    def as_dict(self) -> dict[str, Any]:
        """``long_texts`` of ``run.json``."""
        train = self.tokens["train"]
        return {
            "asked": self.asked,
            "chosen": train.long_texts,
            "tokens": int(train.lengths.sum()),
            "price": train.price,
            "candidates": self.candidates,
        }

    def sentence(self) -> str:
        """For the person at the keyboard."""
        train = self.tokens["train"]
        if self.candidates is None:
            return train.sentence()
        found = ", ".join(f"{way} {one['log_loss']:.3f}" for way, one in self.candidates.items())
        return (
            f"Long texts are read by {train.long_texts!r} (log loss of probes on validation: {found}). "
            f"{train.sentence()}"
        )


def read_as_asked(parts: Mapping[str, Part], encoder: Encoder, way: LongTexts) -> Reading:
    """Texts read in the ``way`` that is named."""
    return Reading(encoder.encode(parts, way), way)


def read_by_evidence(
    parts: Mapping[str, Part],
    encoder: Encoder,
    label_names: Sequence[str],
    head: Head,
    read_rows: RowReader,
) -> Reading:
    """Texts read in the cheapest way that no dearer one beats beyond noise, by probes on validation texts.

    Where no text is longer than the model reads, nothing is compared and ``read_rows`` is not called.
    """
    judged = {name: parts[name] for name in JUDGED}
    ways = {way: encoder.encode(judged, way) for way in WAYS}
    if not any(tokens.truncation.rows_cut for tokens in ways["truncate"].values()):
        return Reading(encoder.encode(parts, "truncate"), "auto")
    started = time.perf_counter()
    sets = [tokens for way in WAYS for tokens in ways[way].values()]
    found = iter(_features_of_all(sets, read_rows))
    features = {way: {name: next(found) for name in JUDGED} for way in WAYS}
    token_s = (time.perf_counter() - started) / sum(int(tokens.lengths.sum()) for tokens in sets)
    y = {name: part.y for name, part in judged.items()}
    logits = {way: _probed(ways[way], features[way], y, len(label_names), head) for way in WAYS}
    y_true = y["validation"]
    chosen = _cheapest_unbeaten({way: _losses(logits[way], y_true) for way in WAYS})
    candidates = {
        way: {
            **_scores(logits[way], y_true, label_names),
            "price": ways[way]["train"].price,
            "pass_s": token_s * sum(int(tokens.lengths.sum()) for tokens in ways[way].values()),
        }
        for way in WAYS
    }
    rest = {name: part for name, part in parts.items() if name not in JUDGED}
    tokens = {**ways[chosen], **encoder.encode(rest, chosen)}
    return Reading(tokens, "auto", candidates)


def _features_of_all(sets: Sequence[Tokens], read_rows: RowReader) -> list[Features]:
    """The features of the rows of each of ``sets``; equal rows are passed once."""
    place: dict[bytes, int] = {}
    distinct: list[NDArray[np.int32]] = []
    places = []
    for tokens in sets:
        mine = np.empty(tokens.rows, dtype=np.int64)
        for i, row in enumerate(tokens.ids):
            mine[i] = place.setdefault(row.tobytes(), len(distinct))
            if mine[i] == len(distinct):
                distinct.append(row)
        places.append(mine)
    lengths = np.array([len(row) for row in distinct], dtype=np.int64)
    features = read_rows(Tokens(distinct, lengths, sets[0].truncation))
    return [features[mine] for mine in places]


def _probed(
    tokens: Mapping[str, Tokens],
    features: Mapping[str, Features],
    y: Mapping[str, NDArray[Any]],
    n_classes: int,
    head: Head,
) -> NDArray[np.float64]:
    """Log-probabilities (M, K) of the validation texts by a probe on the training texts.

    Where a text may have several labels, they are log-odds. Penalty and temperature are those of the least
    log loss on the validation texts themselves.
    """
    held_out = HeldOut(features["validation"], y["validation"], tokens["validation"])
    probe, _ = fit_probes_of_texts(features["train"], tokens["train"], y["train"], n_classes, head, held_out)
    logits = held_out.logits(probe, head)
    if held_out.y.ndim == 2:
        return fit_sigmoid(logits, held_out.y).apply(logits)
    return log_softmax(logits, fit_temperature(logits, y["validation"]))


def _losses(log_probs: NDArray[np.float64], y_true: NDArray[Any]) -> NDArray[np.float64]:
    if y_true.ndim == 2:
        return row_losses(log_probs, y_true)
    return np.asarray(-log_probs[np.arange(len(y_true)), y_true])


def _scores(
    log_probs: NDArray[np.float64], y_true: NDArray[Any], label_names: Sequence[str]
) -> dict[str, float]:
    if y_true.ndim == 2:
        found = {"log_loss": float(row_losses(log_probs, y_true).mean())}
        probabilities = expit(log_probs)
        for name in OBJECTIVES:
            found[name] = best_common_score(probabilities, y_true, name)
        return found
    metrics = classification_metrics(y_true, np.exp(log_probs), label_names, bootstrap_samples=0)
    return {name: metrics[name] for name in ("log_loss", "accuracy", "f1_macro")}


def _cheapest_unbeaten(losses: Mapping[LongTexts, NDArray[np.float64]]) -> LongTexts:
    """A dearer way must have lower losses (M,), text by text, than the best of the cheaper ones.

    Lower: by a one-sided normal test at 5 %, divided by the number of dearer ways.
    """
    chosen = WAYS[0]
    for way in WAYS[1:]:
        if beyond_noise(losses[chosen] - losses[way], len(WAYS) - 1):
            chosen = way
    return chosen
