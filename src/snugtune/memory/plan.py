"""The fastest way to train a model within a device's memory, why, and what else there was.

Levers that never change the result come first and are the only ones used unasked. Those that change it are
offered with their price in words, and make up the plan only where nothing else fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from snugtune.cost.prices import cost_usd, usd_per_hour
from snugtune.memory import trace as ledger
from snugtune.memory.devices import Device, known_devices
from snugtune.memory.setup import Setup
from snugtune.memory.surface import Rehearses, Surface
from snugtune.memory.trace import Trace
from snugtune.units import GIB, gib

MARGIN = 0.04
"""Share of the device left free while no card has confirmed the prediction."""

ENOUGH_TOKENS = 2048
"""Padded tokens per micro-batch past which a card gains little: no lever is spent on more."""

CRAMPED = 0.85
"""Share of the memory taken by frozen weights past which a plan has nothing left to give way with."""

TENSOR_EFFICIENCY, BANDWIDTH_EFFICIENCY, LAUNCH_S = 0.45, 0.7, 6e-6
"""Assumed shares of a card's peak rates in real kernels, and the least time of one operator call."""

PADDING = 1.05
"""Padded over real tokens with length buckets under a token budget."""

HALF, HOST, CHECKPOINT = "half-precision frozen weights", "embedding on the CPU", "activation checkpointing"
CHUNKED = "validation in micro-batches of the training's size"
TOP, QUANTIZED, SHORTER = "adapters in the top layers only", "4-bit weights (NF4)", "shorter texts"

OFFERS = {
    TOP: "the lower half of the layers stays as published; often costs a point or less of accuracy",
    QUANTIZED: "weights are rounded to 4 bits, slower on most cards; needs bitsandbytes; costs little",
    SHORTER: "what lies beyond the shorter length is not read; harmless only if few texts are that long",
}
"""Levers that change the result, with their price."""


@dataclass(frozen=True)
class Job:
    """What is to be trained: a step's examples, the longest text, and how many tokens there are in all.

    ``tokens`` per epoch and ``rows`` are None where no data is given; then no time can be told.
    ``cpu_tokens`` bounds a CPU's micro-batches, where larger ones gain nothing.
    """

    step_examples: int
    length: int
    max_micro_batch: int
    cpu_tokens: int = 4096
    rows: int | None = None
    tokens: int | None = None
    epochs: float = 1.0
    weights_are_frozen: bool = True
    half_precision: bool = True
    mixed_precision: bool = True


@dataclass(frozen=True)
class Alternative:
    """Another configuration; ``price`` says what it would change, empty if nothing."""

    levers: tuple[str, ...]
    fits: bool
    predicted_peak_gib: float
    micro_batch: int
    time_s: float | None
    price: str = ""


@dataclass(frozen=True)
class Plan:
    """How to train on one device, or by how much it does not fit.

    ``composition`` is the peak by category in GiB, ``peak_place`` the module at which it falls. ``basis`` is
    ``estimated`` until a card has confirmed the figures (``calibrated``) or a run has measured them.
    """

    name: str
    fits: bool
    capacity_gib: float
    predicted_peak_gib: float
    micro_batch: int
    tokens_per_micro_batch: int
    levers: tuple[str, ...]
    time_s: float | None
    cost_usd: float | None
    why: str
    basis: str = "estimated"
    changes_result: bool = False
    composition: dict[str, float] = field(default_factory=dict)
    peak_place: str = ""
    alternatives: tuple[Alternative, ...] = ()
    setup: Setup = field(default_factory=Setup)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class _Choice:
    """One configuration that was looked at: its largest micro-batch (0: none fits) and peak in bytes."""

    setup: Setup
    levers: tuple[str, ...]
    micro_batch: int
    peak_bytes: int
    length: int
    token_s: float
    price: str = ""


class Planner:
    """Plans one job for any number of devices; traces are shared between them.

    Args:
        rehearse: makes the rehearsal of a setup (``snugtune.train.rehearsal``).
        layers: how many repeated layers the model has.
        embedding_bytes: of the frozen word embedding in half precision; 0 if it is trained.
    """

    def __init__(
        self, job: Job, rehearse: Callable[[Setup], Rehearses], *, layers: int, embedding_bytes: int
    ) -> None:
        self.job, self.layers, self.embedding_bytes = job, layers, embedding_bytes
        self._rehearse = rehearse
        self._surfaces: dict[Setup, Surface] = {}

    def plan(
        self, device: Device, *, price_per_hour_usd: float | None = None, may_change_result: bool = True
    ) -> Plan:
        """The fastest configuration that fits ``device``; the smallest one if none does."""
        safe = self._safe_choices(device)
        fitting = [choice for choice in safe if choice.micro_batch]
        cramped = self._weights_share(device, self._base(device)) > CRAMPED
        offers = self._offers(device, safe[-1]) if may_change_result and (cramped or not fitting) else []
        offered = [choice for choice in offers if choice.micro_batch]
        if offered and (cramped or not fitting):
            fitting = offered[:1]
        best = min(fitting, key=_speed) if fitting else min(safe, key=lambda c: c.peak_bytes)
        others = [choice for choice in (*safe, *offers) if choice is not best]
        return self._as_plan(best, others, device, price_per_hour_usd)

    def _safe_choices(self, device: Device) -> list[_Choice]:
        """Configurations with the same result, from no lever to all; stops where more would gain nothing."""
        base = self._base(device)
        first = (HALF,) if base.weights != "float32" and device.kind == "cuda" else ()
        choices = [self._choose(device, base, first)]
        enough = self._enough(device)
        share = self._weights_share(device, base)
        if choices[0].micro_batch >= enough or share > 1:
            return choices
        setup, levers = replace(base, chunked_evaluation=True), (*first, CHUNKED)
        if share > CRAMPED:
            everything = replace(
                setup, embedding_on_host=self.embedding_bytes > 0, activation_checkpointing=self.layers
            )
            named = (*levers, *((HOST,) if self.embedding_bytes else ()), f"{CHECKPOINT} of all layers")
            return [*choices, self._choose(device, everything, named)]
        choices.append(self._choose(device, setup, levers))
        if choices[-1].micro_batch >= enough:
            return choices
        if device.kind == "cuda" and self.embedding_bytes > 0.02 * device.usable_gib * GIB:
            setup, levers = replace(setup, embedding_on_host=True), (*levers, HOST)
            choices.append(self._choose(device, setup, levers))
            if choices[-1].micro_batch >= enough:
                return choices
        choices += self._checkpointed(device, setup, levers)
        return choices

    def _checkpointed(self, device: Device, setup: Setup, levers: tuple[str, ...]) -> list[_Choice]:
        """All layers checkpointed, and the fewest that let a micro-batch of usual size through."""
        everything = self._choose(
            device, replace(setup, activation_checkpointing=self.layers),
            (*levers, f"{CHECKPOINT} of all {self.layers} layers"),
        )  # fmt: skip
        found = [everything]
        if everything.micro_batch:
            wanted = min(everything.micro_batch, self._enough(device))
            k = self._fewest_layers(device, setup, wanted)
            if 0 < k < self.layers:
                some = f"{CHECKPOINT} of the last {k} of {self.layers} layers"
                found.append(
                    self._choose(device, replace(setup, activation_checkpointing=k), (*levers, some))
                )
        return found[::-1]

    def _fewest_layers(self, device: Device, setup: Setup, micro_batch: int) -> int:
        """Layers to checkpoint so that ``micro_batch`` fits, by a straight line between none and all."""
        none, all_layers = (
            self._peak(device, replace(setup, activation_checkpointing=k), micro_batch, self.job.length)
            for k in (0, self.layers)
        )
        budget = self._budget(device)
        if none <= budget:
            return 0
        share = (none - budget) / max(none - all_layers, 1)
        return min(self.layers, int(np.ceil(share * self.layers)) + 1)

    def _offers(self, device: Device, smallest: _Choice) -> list[_Choice]:
        """Levers that change the result, on top of all that do not."""
        offers = []
        if self.job.weights_are_frozen and device.kind == "cuda":
            quantized = replace(self._base(device), quantized=True, chunked_evaluation=True)
            plain = self._choose(device, quantized, (QUANTIZED,), price=OFFERS[QUANTIZED])
            offers.append(plain)
            if not plain.micro_batch:
                rest = (QUANTIZED, f"{CHECKPOINT} of all {self.layers} layers")
                checkpointed = replace(quantized, activation_checkpointing=self.layers)
                offers.append(self._choose(device, checkpointed, rest, price=OFFERS[QUANTIZED]))
            if self._weights_share(device, smallest.setup) > CRAMPED:
                return offers
            half = self.layers // 2
            top = replace(smallest.setup, top_layers=half)
            named = (*smallest.levers, f"{TOP} ({half} of {self.layers})")
            offers.append(self._choose(device, top, named, price=OFFERS[TOP]))
        if self.job.length >= 64:
            shorter = self.job.length // 2
            named = (*smallest.levers, f"{SHORTER} ({shorter} tokens)")
            offers.append(self._choose(device, smallest.setup, named, price=OFFERS[SHORTER], length=shorter))
        return offers

    def _weights_share(self, device: Device, setup: Setup) -> float:
        """Share of the memory that weights take even with the embedding on the host.

        Past 1 no lever on activations helps, and none needs to be looked at.
        """
        if device.kind == "cpu" or not self.job.weights_are_frozen:
            return 0.0
        storages = self.surface(setup).trace(2, self.job.length).storages
        weights = sum(s.n_bytes for s in storages if s.category == ledger.WEIGHTS)
        moved = 0 if setup.embedding_on_host else self.embedding_bytes
        room = max(self._budget(device) - device.fixed_bytes, 1)
        return (weights - moved) / room

    def _limit(self, device: Device, length: int) -> int:
        """The largest micro-batch that is of any use."""
        most = min(self.job.step_examples, self.job.max_micro_batch)
        return min(most, max(1, self.job.cpu_tokens // length)) if device.kind == "cpu" else most

    def _enough(self, device: Device) -> int:
        return min(self._limit(device, self.job.length), max(1, ENOUGH_TOKENS // self.job.length))

    def _base(self, device: Device) -> Setup:
        # Both half formats have the same sizes: one trace serves all cards.
        half = "float16" if device.kind == "cuda" else "bfloat16"
        can = device.kind == "cuda" or device.has_bfloat16
        return Setup(
            device=device.kind,
            weights=half if self.job.half_precision and can else "float32",
            compute=half if self.job.mixed_precision and can else "float32",
            accumulates=True,
        )

    def _choose(
        self,
        device: Device,
        setup: Setup,
        levers: tuple[str, ...],
        *,
        price: str = "",
        length: int | None = None,
    ) -> _Choice:
        length = length or self.job.length
        surface = self.surface(setup)
        budget = self._budget(device) - device.fixed_bytes
        best = surface.max_micro_batch(budget, length, self._limit(device, length))
        peak = self._peak(device, setup, max(best, 1), length)
        return _Choice(
            setup, levers, best, peak, length, self._token_s(device, setup, max(best, 1), length), price
        )

    def surface(self, setup: Setup) -> Surface:
        """Peaks of a setup; with the allocator on a card, tensors alone on a CPU."""
        if setup not in self._surfaces:
            self._surfaces[setup] = Surface(self._rehearse(setup), allocator=setup.device == "cuda")
        return self._surfaces[setup]

    def _peak(self, device: Device, setup: Setup, micro_batch: int, length: int) -> int:
        return self.surface(setup).peak_bytes(micro_batch, length) + device.fixed_bytes

    def _budget(self, device: Device) -> int:
        return int(device.usable_gib * GIB * (1 - MARGIN))

    def _token_s(self, device: Device, setup: Setup, micro_batch: int, length: int) -> float:
        seconds = micro_batch_seconds(self.surface(setup).trace(micro_batch, length), device, setup)
        return seconds / (micro_batch * length)

    def _time_s(self, choice: _Choice) -> float | None:
        if self.job.tokens is None or not choice.micro_batch:
            return None
        return choice.token_s * self.job.tokens * PADDING * self.job.epochs

    def _as_plan(
        self, best: _Choice, others: list[_Choice], device: Device, price_per_hour_usd: float | None
    ) -> Plan:
        micro_batch = max(best.micro_batch, 1)
        exact = self.surface(best.setup).trace(micro_batch, best.length)
        peak = best.peak_bytes
        per_hour = usd_per_hour(device.name, price_per_hour_usd)
        time_s = self._time_s(best)
        return Plan(
            name=device.name,
            fits=best.micro_batch > 0,
            capacity_gib=device.usable_gib,
            predicted_peak_gib=gib(peak),
            micro_batch=best.micro_batch,
            tokens_per_micro_batch=best.micro_batch * best.length,
            levers=best.levers,
            time_s=time_s,
            cost_usd=cost_usd(time_s, per_hour),
            why=_why(best, peak, device, self.job.step_examples),
            changes_result=bool(best.price),
            composition=_composition(exact, device),
            peak_place=exact.peak_place(),
            alternatives=tuple(self._as_alternative(choice) for choice in others),
            setup=best.setup,
        )

    def _as_alternative(self, choice: _Choice) -> Alternative:
        return Alternative(
            levers=choice.levers,
            fits=choice.micro_batch > 0,
            predicted_peak_gib=gib(choice.peak_bytes),
            micro_batch=choice.micro_batch,
            time_s=self._time_s(choice),
            price=choice.price,
        )


def micro_batch_seconds(trace: Trace, device: Device, setup: Setup) -> float:
    """Forward and backward of one micro-batch by a roofline: each operator takes the longest of arithmetic,
    traffic and launch, at assumed shares of the card's peak rates.
    """
    work = trace.work
    train = work.phase == ledger.ACTIVATIONS
    tflops = device.float32_tflops if setup.compute == "float32" else device.half_tflops
    arithmetic = work.flops[train] / (tflops * 1e12 * TENSOR_EFFICIENCY)
    traffic = work.n_bytes[train] / (device.bandwidth_gb_s * 1e9 * BANDWIDTH_EFFICIENCY)
    micro_batches = 3 if setup.accumulates else 2
    return float(np.maximum(np.maximum(arithmetic, traffic), LAUNCH_S).sum()) / micro_batches


def _composition(trace: Trace, device: Device) -> dict[str, float]:
    parts = {name: gib(n_bytes) for name, n_bytes in trace.composition().items()}
    return parts | ({"context and cuBLAS": gib(device.fixed_bytes)} if device.fixed_bytes else {})


def _speed(choice: _Choice) -> tuple[float, int]:
    return choice.token_s, len(choice.levers)


def _why(best: _Choice, peak_bytes: int, device: Device, step_examples: int) -> str:
    at = f"{max(best.micro_batch, 1)} x {best.length} tokens"
    if not best.micro_batch:
        missing = gib(peak_bytes) - device.usable_gib * (1 - MARGIN)
        large = sorted(
            (d.usable_gib, d.name)
            for d in set(known_devices().values())
            if d.usable_gib * (1 - MARGIN) * GIB >= peak_bytes
        )
        would = f"; the {large[0][1]} would do" if large else "; no known single card would do"
        return f"Even {at} needs {gib(peak_bytes):.2f} GiB, {missing:.2f} GiB more than there is{would}."
    if best.price:
        return f"Nothing else fits with room to spare, and it changes the result: {best.price}."
    if best.micro_batch == step_examples:
        return f"A whole step of {at} fits at once."
    return f"The largest micro-batch that fits is {at}; a step of {step_examples} examples is cut into such."
