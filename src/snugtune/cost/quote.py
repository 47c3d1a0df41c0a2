"""What a run will take, told before it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from snugtune.cost.budget import Allowance
from snugtune.cost.rates import Rates
from snugtune.units import duration

FORWARD_SHARE = 1 / 3
"""Of a training pass: the backward pass costs about twice the forward pass."""

START_S = 15.0
"""A new process that imports the libraries, as the check of the saved folder does; on a slow machine."""

FEATURES_S_PER_WORD = 4e-6
LINEAR_S_PER_WORD_AND_CLASS = 5e-8
"""Of one TF-IDF baseline: its features, and a linear classifier for each class. Measured on one slow core
(2026-11-27; Banking77, CLINC150 and three labels of the CFPB's complaints, 18 to 189 classes)."""

JUDGES, JUDGES_ROWS = 5, 20_000
"""Linear classifiers by which the audit judges labels: of four fifths of the rows each, and no more rows."""

LEARNING_CURVE = 0.8 * (1 + 1 / 2 + 1 / 4 + 1 / 8 + 1 / 16)
"""Of all rows: what the linear classifiers of the audit's learning curve learn from."""


@dataclass(frozen=True)
class Work:
    """What there is to do. Rows by part, words of the training texts, classes, epochs.

    ``train_s`` is the time of training (None: not known), by the plan's estimate, or by a short pass over the
    texts if it was ``measured``; ``forward_share`` is the share of a forward pass in it, and ``look_share``
    what a look while training takes of one, less than all where lower layers are kept. ``pace`` is the real
    over that time in earlier runs like it (None: there were none), ``load_s`` that of loading the model once,
    ``full_precision_slowdown`` how much longer a forward pass takes in the float32 of the final scores than
    in training's number format.
    """

    train_rows: int
    validation_rows: int
    test_rows: int
    words: int
    classes: int
    epochs: float
    train_s: float | None
    load_s: float
    probe: bool
    pace: float | None = None
    full_precision_slowdown: float = 1.0
    forward_share: float = FORWARD_SHARE
    look_share: float = 1.0
    measured: bool = False
    audit: bool = False

    @property
    def looks_after(self) -> float:
        """The final scores of validation and test, in looks at validation."""
        held_out = self.validation_rows + self.test_rows
        return self.full_precision_slowdown * held_out / max(self.validation_rows, 1)

    @property
    def after_s(self) -> float:
        """After training, apart from those scores: audit, two baselines, the model loaded, saved, checked."""
        audit_s = self.audit_s if self.audit else 0.0
        return START_S + 2 * self.load_s + 2 * baseline_s(self.words, self.classes) + audit_s

    @property
    def audit_s(self) -> float:
        """The audit's own classifiers, on features of its own."""
        of_the_rows = min(0.8, JUDGES_ROWS / max(self.train_rows, 1))
        classifiers = JUDGES * of_the_rows + LEARNING_CURVE
        return features_s(self.words) + classifiers * linear_s(self.words, self.classes)


def baseline_s(words: int, classes: int) -> float:
    """Seconds of one baseline, about."""
    return features_s(words) + linear_s(words, classes)


def features_s(words: int) -> float:
    """Of TF-IDF features of texts with so many ``words``."""
    return FEATURES_S_PER_WORD * words


def linear_s(words: int, classes: int) -> float:
    """Of a linear classifier on them."""
    return LINEAR_S_PER_WORD_AND_CLASS * words * classes


@dataclass(frozen=True)
class Quote:
    """Seconds from now on: of all of it, of training, of one epoch with its look at validation, and
    ``after_s`` of what follows on training.

    ``measured``: it rests on a short pass over the texts. ``confirmed``: runs like it on this machine have
    put the estimate right.
    """

    time_s: float
    train_s: float
    epoch_s: float
    measured: bool = False
    confirmed: bool = False
    after_s: float = 0.0


def quote(work: Work) -> Quote | None:
    """What ``work`` will take; None if the plan knows no time."""
    if work.train_s is None:
        return None
    row_s = (work.pace or 1.0) * _told_row_s(work)
    whole_look_s = pass_s(work, work.validation_rows)
    look_s = work.look_share * whole_look_s
    epoch_s = row_s * work.train_rows + look_s
    train_s = epoch_s * work.epochs + look_s
    probe_s = pass_s(work, work.train_rows + work.validation_rows) if work.probe else 0.0
    after_s = whole_look_s * work.looks_after + work.after_s
    time_s = probe_s + train_s + after_s
    return Quote(time_s, train_s, epoch_s, work.measured, work.pace is not None, after_s)


def pass_s(work: Work, rows: int) -> float:
    """Seconds of ``rows`` through the whole model, forward, in training's number format; 0 if not known."""
    # A pass that was measured needs no putting right.
    pace = 1.0 if work.measured else work.pace or 1.0
    return work.forward_share * pace * _told_row_s(work) * rows


def _told_row_s(work: Work) -> float:
    return (work.train_s or 0.0) / work.epochs / max(work.train_rows, 1)


def quote_sentence(quote: Quote, rates: Rates) -> str:
    """For the user, before training begins."""
    parts = [f"about {duration(quote.time_s)} from here on, {duration(quote.train_s)} of it training"]
    usd = rates.usd(quote.time_s)
    if usd is not None and rates.price is not None:
        date = f", {rates.price.date}" if rates.price.date else ""
        parts.append(
            f"{usd:.2f} USD at {rates.price.usd_per_hour:.2f} USD an hour ({rates.price.provider}{date})"
        )
    units = rates.units(quote.time_s)
    if units is not None and units["colab"] is not None:
        parts.append(f"{units['colab']:.2f} Colab compute units")
    return f"Quote: {'; '.join(parts)} ({_basis(quote)})."


def _basis(quote: Quote) -> str:
    if quote.confirmed:
        return "as earlier runs here took"
    return (
        "by a short pass over some of the texts"
        if quote.measured
        else "a rough estimate, no run here has confirmed it"
    )


def budget_warning(quote: Quote, work: Work, allowance: Allowance, elapsed_s: float) -> str | None:
    """One sentence if the quote does not fit the budget: what will happen, and what would fit."""
    if elapsed_s + quote.time_s <= allowance.seconds:
        return None
    left = allowance.seconds - elapsed_s - (quote.time_s - quote.epoch_s * work.epochs)
    epochs = int(left / quote.epoch_s) if quote.epoch_s > 0 else 0
    told = f"That is more than the budget of {allowance.told}: training will end early"
    if 1 <= epochs < work.epochs:
        return f"{told}; --epochs {epochs} would fit and lets the learning rate fall in time."
    return f"{told}."


def quote_as_dict(quote: Quote | None, rates: Rates) -> dict[str, Any] | None:
    """JSON-ready: what was promised, to be compared with the bill."""
    if quote is None:
        return None
    told = {"time_s": quote.time_s, "train_s": quote.train_s, "usd": rates.usd(quote.time_s)}
    return {**told, "measured": quote.measured, "confirmed": quote.confirmed}
