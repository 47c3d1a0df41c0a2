"""What a run may take and takes: the quote before training, the budget meanwhile, the bill at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from snugtune.config import FitConfig
from snugtune.cost.bill import Terms, Usage, bill
from snugtune.cost.budget import Budget, allowance
from snugtune.cost.meter import Counter, Energy, card_counters
from snugtune.cost.quote import Work, budget_warning, pass_s, quote, quote_sentence
from snugtune.cost.rates import rates
from snugtune.memory.devices import Device, this_device
from snugtune.memory.plan import Plan
from snugtune.progress import QuoteInfo
from snugtune.train.alternatives import Measured, estimated_alternatives
from snugtune.train.engine import TrainResult
from snugtune.train.pace import known_pace, record_pace
from snugtune.units import GIB

BYTES_PER_GB = 1e9
"""The recipe's author counts decimal GB."""


@dataclass(frozen=True)
class Spending:
    """Made by ``agree`` once the plan is known.

    ``lengths`` are the training texts' in tokens, ``earlier_s`` seconds of processes that died before.
    """

    config: FitConfig
    plan: Plan
    device: Device
    work: Work
    terms: Terms
    budget: Budget | None
    lengths: NDArray[np.int64]
    earlier_s: float = 0.0

    def bill(
        self,
        seconds: Callable[[], Mapping[str, float]],
        result: TrainResult,
        *,
        peak_bytes: int,
        energy: Energy | None,
        baseline_score: float,
    ) -> dict[str, Any]:
        """The block ``cost`` of ``run.json``.

        Args:
            seconds: tells those by phase and ``total`` when called.
            result: of training.
            peak_bytes: measured peak memory.
            energy: used, if it could be read.
            baseline_score: the baseline's on validation, by the metric that chose the weights.
        """
        on_card = self.device.kind == "cuda"
        memory_gb = peak_bytes / BYTES_PER_GB if on_card else None
        terms = replace(self.terms, rates=replace(self.terms.rates, memory_gb=memory_gb))
        estimated = self._estimated(seconds()["total"] + self.earlier_s, result.train_s, terms)
        # Only now, so that what the estimates took is in it.
        usage = Usage(
            seconds=seconds(),
            on_card=on_card,
            scored_rows=self.work.validation_rows + self.work.test_rows,
            energy=energy,
            earlier_s=self.earlier_s,
            metrics=result.metrics,
            baseline_score=baseline_score,
            train_s=result.train_s,
        )
        return bill(usage, terms, budget_ended_run=result.over_budget, estimated=estimated)

    def quoted(self) -> QuoteInfo | None:
        """The quote and the rates it was made with, for whoever watches; None without one."""
        quote, rates = self.terms.quote, self.terms.rates
        if quote is None:
            return None
        return QuoteInfo(
            quote.time_s,
            quote.train_s,
            quote.epoch_s,
            quote.after_s,
            rates.price_as_dict(),
            rates.units_per_hour,
        )

    def remember(self, result: TrainResult, filling_s: float) -> None:
        """Keep how long training took, for later quotes; ``result`` is of training without a mishap.

        What the lower layers gave was kept in ``filling_s`` before.
        """
        planned = quote(replace(self.work, pace=None))
        steps = math.ceil(self.work.train_rows / self.config.step_examples) * self.work.epochs
        if planned is not None and result.steps:
            share = min(1.0, result.steps / steps)
            measured_s = result.train_s + filling_s
            record_pace(self.plan, self.device, planned_s=planned.train_s * share, measured_s=measured_s)

    def _estimated(self, total_s: float, train_s: float, terms: Terms) -> list[dict[str, Any]]:
        measured = Measured(train_s, max(0.0, total_s - train_s), terms.rates.usd(total_s))
        return estimated_alternatives(
            self.config, self.work.classes, self.lengths, self.plan, self.device, measured
        )


def agree(
    config: FitConfig,
    plan: Plan,
    work: Work,
    lengths: NDArray[np.int64],
    *,
    half_precision: bool,
    elapsed: Callable[[], float],
    earlier_s: float,
    say: Callable[[str], None],
    devices: int = 1,
) -> Spending:
    """Tell the quote, and make the budget where a limit is set.

    Args:
        config: of the run.
        plan: of the run.
        work: what there is to do; what is known of this device's speed is filled in.
        lengths: of the training texts, in tokens.
        half_precision: whether training computes in half precision.
        elapsed: seconds of this process so far.
        earlier_s: seconds of processes that died before it.
        say: takes a sentence.
        devices: that train together; each has its list price, while the user's own price is that of all.

    Raises:
        UserInputError: a limit is in a currency of which no rate is known on this machine.
    """
    device = this_device()
    on_card = device.kind == "cuda"
    if half_precision:
        work = replace(work, full_precision_slowdown=device.full_precision_slowdown)
    work = replace(work, pace=known_pace(plan, device))
    known = rates(
        device.card or device.name,
        own_price=config.price_per_hour_usd,
        memory_gb=plan.predicted_peak_gib * GIB / BYTES_PER_GB if on_card else None,
        devices=devices,
    )
    limits = {name: getattr(config, name) for name in ("max_time_s", "max_cost_usd", "max_units")}
    allowed = allowance(known, **limits)
    quoted = quote(work)
    if quoted is not None:
        say(quote_sentence(quoted, known))
        warning = budget_warning(quoted, work, allowed, earlier_s + elapsed()) if allowed else None
        if warning:
            say(warning)
    terms = Terms(
        known, config.price_per_hour_usd, quoted, allowed,
        predictions_per_month=config.predictions_per_month, **limits,
    )  # fmt: skip
    budget = None
    if allowed is not None:
        budget = Budget(
            allowed,
            elapsed=lambda: earlier_s + elapsed(),
            after_s=work.after_s,
            looks_after=work.looks_after,
            whole_look_s=pass_s(work, work.validation_rows) if work.measured else 0.0,
        )
    return Spending(config, plan, device, work, terms, budget, lengths, earlier_s)


def card_energy(device: torch.device) -> list[Counter]:
    """Counters of the card that is trained on; none without one."""
    if device.type != "cuda":
        return []
    # Older versions of PyTorch do not tell it.
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return [] if uuid is None else card_counters(str(uuid))
