"""The fastest way to train a model within a device's memory, why, and what else there was.

Levers that never change the result come first and are the only ones used unasked. Those that change it are
offered with their price in words, and make up the plan only where nothing else fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.cost.prices import Price, cost_usd, price_of, prices
from snugtune.memory import trace as ledger
from snugtune.memory.devices import Device, known_devices
from snugtune.memory.epoch import Epoch, cut_epoch
from snugtune.memory.fleet import ONE_DEVICE, Divided, Fleet, Units
from snugtune.memory.limits import (
    DOES_NOT_FIT,
    NO_RATES,
    NO_TEXTS,
    Limits,
    Verdict,
    Way,
    fewer_epochs,
    judge,
)
from snugtune.memory.residual import Residual, Subject, residual_for
from snugtune.memory.setup import Setup
from snugtune.memory.surface import MICRO_BATCHES, Rehearses, Surface, largest
from snugtune.memory.timing import Costs, costs
from snugtune.memory.workspaces import process_bytes
from snugtune.units import GIB, gib

MARGIN, CALIBRATED_MARGIN = 0.04, 0.02
"""Share of the device left free while no step on the card has confirmed the prediction, and after: what a
correction by a real step may still miss is what another shape or a fragmented heap adds."""

ESTIMATED, CALIBRATED, MEASURED = "estimated", "calibrated", "measured"

BLOCK_TOKENS = 64
"""Tokens of a text that attention's backward pass on a card keeps room for at once."""

ENOUGH_TOKENS = 2048
"""Padded tokens per micro-batch past which a card gains little: no lever is spent on more."""

LIBRARIES = 2
"""Workspaces of cuBLAS in a training process: the main thread's and the backward thread's."""

CRAMPED = 0.85
"""Share of the memory taken by frozen weights past which a plan has nothing left to give way with."""

BYTES_OF = {"float32": 4, "float16": 2, "bfloat16": 2}

TRIED_LAYERS = 3
"""Numbers of layers to checkpoint that are tried from where a straight line says they would do."""

MOST_WAYS = 6
"""Ways to keep to a limit that are told."""

HALF, HOST, CHECKPOINT = "half-precision frozen weights", "embedding on the CPU", "activation checkpointing"
CHUNKED = "validation in micro-batches of the training's size"
TOP, QUANTIZED, SHORTER = "adapters in the top layers only", "4-bit weights (NF4)", "shorter texts"
UNDROPPED, SMALLER, ADAPTED = "no dropout", "a smaller model", "LoRA in place of full fine-tuning"

CONTEXT, ROUNDING = "context and cuBLAS", "allocator: reserved, not in use"
PROCESS, CORRECTION = "libraries and heap", "missed by the model, measured here"
"""Parts of a peak that are no tensors."""

OFFERS = {
    TOP: "the lower half of the layers stays as published; often costs a point or less of accuracy",
    UNDROPPED: "nothing is dropped in training; may overfit on little data, else costs nothing",
    QUANTIZED: "weights are rounded to 4 bits, slower on most cards; needs bitsandbytes; costs little",
    SHORTER: "what lies beyond the shorter length is not read; harmless only if few texts are that long",
    SMALLER: "fewer parameters know less; often a few points of accuracy",
    ADAPTED: "the weights stay as published, adapters and the head are trained; often as accurate",
}
"""Levers that change the result, with their price."""


@dataclass(frozen=True)
class Job:
    """What is to be trained: a step's examples, the longest text, and how many tokens there are in all.

    ``tokens`` per epoch, ``rows`` and the texts' ``lengths`` (R,) are None where no data is given; then no
    time can be told. ``max_examples`` bounds a micro-batch beside its tokens.
    ``cpu_tokens`` bounds a CPU's micro-batches, where larger ones gain nothing. ``float16`` was asked for,
    whatever half-precision format suits the device. ``quantized``: 4-bit weights
    were asked for. ``drops_out``: there is dropout to leave out. ``packable``: texts may go without padding
    through the variable-length kernel of a card that has one. ``limits_layers``: the method can adapt some
    layers only; ``may_quantize``: it goes with 4-bit weights; ``recomputes``: with activation checkpointing.
    """

    step_examples: int
    length: int
    max_micro_batch: int
    cpu_tokens: int = 2048
    rows: int | None = None
    tokens: int | None = None
    lengths: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)
    max_examples: int | None = None
    epochs: float = 1.0
    weights_are_frozen: bool = True
    half_precision: bool = True
    mixed_precision: bool = True
    float16: bool = False
    quantized: bool = False
    drops_out: bool = False
    packable: bool = False
    limits_layers: bool = True
    may_quantize: bool = True
    recomputes: bool = True


@dataclass(frozen=True)
class Alternative:
    """Another configuration; ``price`` says what it would change, empty if nothing."""

    levers: tuple[str, ...]
    fits: bool
    predicted_peak_gib: float
    micro_batch: int
    time_s: float | None
    price: str = ""
    cost_usd: float | None = None
    composition: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """How to train on one device, or by how much it does not fit.

    ``composition`` is the peak by category in GiB (it adds up to it), ``peak_place`` the module at which it
    falls. ``basis`` is that of the peak: ``estimated`` until a card has confirmed it (``calibrated``, by a
    step like it; ``measured``, by this very step), ``basis_why`` says why and what is left free; ``bases``
    are those of all figures. ``modelled_bytes`` is the peak without any correction.

    ``time_s`` and ``cost_usd`` are those of training, ``fit_time_s`` and ``fit_cost_usd`` those of a whole
    fit (None: no time is known). ``asked`` is the device's name as the user gave it, ``other_prices`` are
    known ones of one such card that were not taken.

    Of several ``devices`` peak and micro-batch are each one's, time and cost those of all together;
    ``exchange_s`` is what of the time they wait for each other's numbers.
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
    basis: str = ESTIMATED
    basis_why: str = ""
    bases: dict[str, str] = field(default_factory=dict)
    changes_result: bool = False
    composition: dict[str, float] = field(default_factory=dict)
    peak_place: str = ""
    price: Price | None = None
    limits: Verdict | None = None
    alternatives: tuple[Alternative, ...] = ()
    length: int = 0
    modelled_bytes: int = 0
    setup: Setup = field(default_factory=Setup)
    subject: Subject = field(default_factory=lambda: Subject("", "", ""))
    devices: int = 1
    exchange_s: float | None = None
    asked: str = ""
    fit_time_s: float | None = None
    fit_cost_usd: float | None = None
    other_prices: tuple[Price, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class _Choice:
    """One configuration that was looked at: its largest micro-batch (0: none fits), peak in bytes, and what
    one ``epoch`` computes and takes (of one step of the longest texts, where none are given). ``is_timed``
    says whether that may be told.
    """

    setup: Setup
    levers: tuple[str, ...]
    micro_batch: int
    peak_bytes: int
    length: int
    epoch: Epoch
    epoch_s: float
    is_timed: bool
    price: str = ""


@dataclass(frozen=True)
class _Texts:
    """What a micro-batch holds: so many texts, the longest of ``length``, and so many ``tokens`` in all: as
    many of each unless texts are packed.
    """

    count: int
    length: int
    tokens: int

    def peak_bytes(self, surface: Surface) -> int:
        """The peak that is predicted with them."""
        if self.tokens != self.count * self.length:
            return surface.packed_peak_bytes(self.count, self.tokens, self.length)
        return surface.peak_bytes(self.count, self.length)

    def trace(self, surface: Surface) -> ledger.Trace:
        """The trace of a step with them."""
        if self.tokens != self.count * self.length:
            return surface.packed_trace(self.count, self.tokens, self.length)
        return surface.trace(self.count, self.length)


class Planner:
    """Plans one job for any number of devices; traces are shared between them.

    Args:
        rehearse: makes the rehearsal of a setup (``snugtune.train.rehearsal``).
        layers: how many repeated layers the model has.
        embedding_bytes: of the frozen word embedding in half precision; 0 if it is trained.
        subject: what is trained, for what real steps have shown of it; None for no such correction.
        fleet: how many devices train together, and how.
        units: the model's parameters by unit of sharding; needed by a fleet that shards.
        beside_s: seconds that a fit on a device takes beside training, given those of training.
    """

    def __init__(
        self,
        job: Job,
        rehearse: Callable[[Setup], Rehearses],
        *,
        layers: int,
        embedding_bytes: int,
        subject: Subject | None = None,
        fleet: Fleet = ONE_DEVICE,
        units: Units | None = None,
        beside_s: Callable[[float, Device], float] = lambda *_: 0.0,
    ) -> None:
        self.beside_s = beside_s
        self.fleet, self.units = fleet, units or Units(0, 0, 0)
        self.job, self.layers, self.embedding_bytes = job, layers, embedding_bytes
        self.subject = subject
        self._rehearse = rehearse
        self._rehearsals: dict[Setup, Rehearses] = {}
        self._surfaces: dict[tuple[Setup, int, bool], Surface] = {}
        self._residuals: dict[tuple[Device, Setup], Residual | None] = {}
        self._epochs: dict[tuple[int, int, bool], Epoch] = {}
        self._worsts: dict[tuple[Setup, Device, int, int], _Texts] = {}
        self._all_costs: dict[Setup, Costs] = {}

    def plan(
        self,
        device: Device,
        *,
        price_per_hour_usd: float | None = None,
        may_change_result: bool = True,
        limits: Limits | None = None,
    ) -> Plan:
        """The fastest configuration that fits ``device``; the smallest one if none does.

        The price is that of all devices together.
        """
        safe = self._safe_choices(device)
        fits = any(choice.micro_batch for choice in safe)
        cramped = self._weights_share(device, self._base(device)) > CRAMPED and not self.job.quantized
        offers = self._offers(device, safe[-1]) if may_change_result and (cramped or not fits) else []
        best = _pick(safe, offers)
        others = [choice for choice in (*safe, *offers) if choice is not best]
        price = price_of(device.card or device.name, price_per_hour_usd)
        if price is not None and price_per_hour_usd is None:
            price = replace(price, usd_per_hour=self.fleet.devices * price.usd_per_hour)
        plan = self._as_plan(best, others, device, price)
        if price_per_hour_usd is None:
            plan = replace(plan, other_prices=tuple(prices(device.card or device.name)[1:]))
        return self._within(plan, best, device, limits) if limits else plan

    def _within(self, plan: Plan, best: _Choice, device: Device, limits: Limits) -> Plan:
        """The plan with the verdict on the limits, and what would keep to them where it does not."""
        untold = NO_TEXTS if self.job.lengths is None else NO_RATES
        untold = untold if plan.fits else DOES_NOT_FIT
        verdict = judge(limits, plan.fit_time_s, plan.fit_cost_usd, train_s=plan.time_s, untold=untold)
        if verdict.kept is False and plan.time_s is not None and plan.fit_time_s is not None:
            ways = (*self._levers_within(plan, best, device, limits), *self._cards_within(device, limits))
            per_hour = plan.price.usd_per_hour if plan.price else None
            beside_s = plan.fit_time_s - plan.time_s
            fewer = fewer_epochs(limits, self.job.epochs, plan.time_s, beside_s, per_hour)
            chosen = ways[: MOST_WAYS - 1]
            verdict = replace(verdict, ways=(*chosen, fewer) if fewer else chosen)
        return replace(plan, limits=verdict)

    def _fit_s(self, train_s: float | None, device: Device) -> float | None:
        """Seconds of a whole fit, of which training takes so many."""
        return None if train_s is None else train_s + self.beside_s(train_s, device)

    def _levers_within(self, plan: Plan, best: _Choice, device: Device, limits: Limits) -> Iterable[Way]:
        """Levers that change the result and make the run short enough on this device."""
        per_hour = plan.price.usd_per_hour if plan.price else None
        for choice in self._offers(device, best):
            time_s = self._fit_s(self._time_s(choice), device)
            cost = cost_usd(time_s, per_hour)
            if time_s is not None and limits.keeps(time_s, cost):
                added = [lever for lever in choice.levers if lever not in best.levers]
                yield Way("; ".join(added), choice.price, time_s, cost)

    def _cards_within(self, device: Device, limits: Limits) -> list[Way]:
        """Other known cards that keep to the limits, cheapest first (at list prices), then fastest."""
        found = []
        for card in dict.fromkeys(known_devices().values()):
            if card.card == device.card:
                continue
            other = self.plan(card, may_change_result=False)
            time_s, cost = other.fit_time_s, other.fit_cost_usd
            if other.fits and time_s is not None and limits.keeps(time_s, cost):
                told = (
                    f" at {other.price.usd_per_hour:.2f} USD an hour ({other.price.provider})"
                    if other.price
                    else ""
                )
                found.append(Way(f"the {card.name}{told}", "", time_s, cost))
        unknown = float("inf")
        return sorted(found, key=lambda w: (unknown if w.cost_usd is None else w.cost_usd, w.time_s))[:3]

    def _safe_choices(self, device: Device) -> list[_Choice]:
        """Configurations with the same result, from no lever to all; stops where more would gain nothing."""
        base = self._base(device)
        asked = (QUANTIZED,) if self.job.quantized else ()
        return self._climb(device, base, (*asked, *_half(base)), enough=self._enough(device))

    def _climb(
        self, device: Device, base: Setup, levers: tuple[str, ...], *, enough: int, price: str = ""
    ) -> list[_Choice]:
        """From ``base`` through the levers that keep the result, until a micro-batch of ``enough`` fits."""
        choices = [self._choose(device, base, levers, price=price)]
        if choices[0].micro_batch >= enough:
            return choices
        setup = replace(base, chunked_evaluation=True)
        if setup != base:
            levers = (*levers, CHUNKED)
        if self._weights_share(device, base) > CRAMPED:
            return [*choices, self._with_everything(device, setup, levers, price)]
        if setup != base:
            choices.append(self._choose(device, setup, levers, price=price))
            if choices[-1].micro_batch >= enough:
                return choices
        if device.kind == "cuda" and self.embedding_bytes > 0.02 * device.usable_gib * GIB:
            setup, levers = replace(setup, embedding_on_host=True), (*levers, HOST)
            choices.append(self._choose(device, setup, levers, price=price))
            if choices[-1].micro_batch >= enough:
                return choices
        if self.job.recomputes:
            choices += self._checkpointed(device, setup, levers, enough, price)
        return choices

    def _with_everything(self, device: Device, setup: Setup, levers: tuple[str, ...], price: str) -> _Choice:
        """Every lever that keeps the result."""
        if self.embedding_bytes:
            setup, levers = replace(setup, embedding_on_host=True), (*levers, HOST)
        if self.job.recomputes:
            setup = replace(setup, activation_checkpointing=self.layers)
            levers = (*levers, f"{CHECKPOINT} of all {self.layers} layers")
        return self._choose(device, setup, levers, price=price)

    def _checkpointed(
        self, device: Device, setup: Setup, levers: tuple[str, ...], enough: int, price: str
    ) -> list[_Choice]:
        """All layers checkpointed, and the fewest that let a micro-batch of ``enough`` through."""
        everything = self._choose(
            device, replace(setup, activation_checkpointing=self.layers),
            (*levers, f"{CHECKPOINT} of all {self.layers} layers"), price=price,
        )  # fmt: skip
        found = [everything]
        if everything.micro_batch:
            k = self._fewest_layers(device, setup, min(everything.micro_batch, enough))
            if 0 < k < self.layers:
                some = f"{CHECKPOINT} of the last {k} of {self.layers} layers"
                fewer = replace(setup, activation_checkpointing=k)
                found.append(self._choose(device, fewer, (*levers, some), price=price))
        return found[::-1]

    def _fewest_layers(self, device: Device, setup: Setup, micro_batch: int) -> int:
        """Layers to checkpoint so that ``micro_batch`` fits.

        From where a straight line between none and all says, a few more: the last layers save less than
        others, for their activations are the first to go.
        """

        def peak(k: int) -> int:
            some = replace(setup, activation_checkpointing=k)
            return self._peak(device, some, micro_batch, self.job.length, of_longest=True)

        none, budget = peak(0), self._budget(device, setup)
        if none <= budget:
            return 0
        share = (none - budget) / max(none - peak(self.layers), 1)
        k = min(self.layers, int(np.ceil(share * self.layers)) + 1)
        most = min(k + TRIED_LAYERS, self.layers)
        return next((more for more in range(k, most) if peak(more) <= budget), most)

    def _offers(self, device: Device, smallest: _Choice) -> list[_Choice]:
        """Levers that change the result, on top of all that do not."""
        offers: list[_Choice] = []
        may_quantize = self.job.may_quantize and self.job.weights_are_frozen and not self.job.quantized
        if may_quantize and device.kind == "cuda":
            base = replace(self._base(device), quantized=True, chunked_evaluation=True)
            levers = (QUANTIZED, *_half(base), CHUNKED)
            offers += self._climb(device, base, levers, enough=1, price=OFFERS[QUANTIZED])
            if self._weights_share(device, smallest.setup) > CRAMPED:
                return offers
        if self.job.drops_out:
            undropped = replace(smallest.setup, dropout=False, attention_dropout=0.0)
            named = (*smallest.levers, UNDROPPED)
            offers.append(self._choose(device, undropped, named, price=OFFERS[UNDROPPED]))
        if self.job.weights_are_frozen and self.job.limits_layers and self.layers > 1:
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
        """Share of the memory that weights take even with the embedding on the host; past 1 nothing fits."""
        if device.kind == "cpu" or not self.job.weights_are_frozen:
            return 0.0
        storages = self._rehearsal(setup).trace(MICRO_BATCHES[0], self.job.length, work=True).storages
        weights = sum(s.n_bytes for s in storages if s.category == ledger.WEIGHTS)
        moved = 0 if setup.embedding_on_host else self.embedding_bytes
        fixed = device.context_bytes + LIBRARIES * device.library_bytes
        room = max(self._budget(device, setup) - fixed, 1)
        return (weights - moved) / room

    def _limit(self, device: Device, length: int) -> int:
        """The largest micro-batch that is of any use."""
        most = min(self.fleet.share(self.job.step_examples), self.job.max_micro_batch)
        return min(most, max(1, self.job.cpu_tokens // length)) if device.kind == "cpu" else most

    def _enough(self, device: Device) -> int:
        return min(self._limit(device, self.job.length), max(1, ENOUGH_TOKENS // self.job.length))

    def _base(self, device: Device) -> Setup:
        can = device.kind == "cuda" or device.has_bfloat16
        half = "float16" if self.job.float16 and device.kind == "cuda" else device.half
        return Setup(
            device=device.kind,
            weights=half if self.job.half_precision and can else "float32",
            compute=half if self.job.mixed_precision and can else "float32",
            attention="packed" if self._packs(device) else "fused",
            quantized=self.job.quantized,
            accumulates=True,
            shards=self.fleet.shards,
        )

    def _packs(self, device: Device) -> bool:
        """The variable-length kernel takes half precision, and cards from compute capability 8.0 on."""
        on_such_card = device.kind == "cuda" and device.compute_capability >= (8, 0)
        return self.job.packable and self.job.mixed_precision and on_such_card

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
        budget = self._budget(device, setup)
        limit = self._limit(device, length) if self._weights_share(device, setup) <= 1 else 0
        best = self._largest(device, setup, length, budget, limit)
        peak = self._peak(device, setup, max(best, 1), length)
        epoch = self._epoch(setup, max(best, 1), length)
        epoch_s = self._epoch_s(device, setup, epoch) if best else math.inf
        is_timed = best > 0 and self.job.lengths is not None and device.knows_rates
        return _Choice(setup, levers, best, peak, length, epoch, epoch_s, is_timed, price)

    def _largest(self, device: Device, setup: Setup, length: int, budget: int, limit: int) -> int:
        """The largest micro-batch within the budget, whichever texts fill its tokens.

        First of the longest texts alone; what others take more is then kept free for them.
        """
        best, room = limit, budget
        while best:
            best = self._largest_of_longest(device, setup, length, room, best)
            over = self._peak(device, setup, best, length) - budget if best else 0
            if over <= 0:
                break
            best, room = best - 1, room - over
        return best

    def _largest_of_longest(self, device: Device, setup: Setup, length: int, room: int, limit: int) -> int:
        def fits(micro_batch: int) -> bool:
            return self._peak(device, setup, micro_batch, length, of_longest=True) <= room

        return largest(fits, limit)

    def _worst(self, device: Device, setup: Setup, micro_batch: int, length: int) -> _Texts:
        """Of the texts that may share the tokens of ``micro_batch`` of the longest, those that take most.

        As far as texts are known, and on a card: its kernels keep room for each of them.
        """
        longest = _Texts(micro_batch, length, micro_batch * length)
        if device.kind == "cpu" or self.job.lengths is None:
            return longest
        key = setup, device, micro_batch, length
        if key not in self._worsts:
            epoch = self._epoch(setup, micro_batch, length)
            others = np.unique(np.stack([epoch.texts, epoch.tokens.astype(np.int64)]), axis=1).T.tolist()
            more = [(texts, tokens) for texts, tokens in others if texts > micro_batch]
            self._worsts[key] = self._heaviest(self.surface(setup, device), setup, longest, more)
        return self._worsts[key]

    def _heaviest(
        self, surface: Surface, setup: Setup, longest: _Texts, more: list[tuple[int, int]]
    ) -> _Texts:
        """The one among the ``longest`` texts and those that are ``more``, (count, tokens) each."""
        if not more:
            return longest
        if setup.attention == "packed":
            count, tokens = surface.heaviest([(longest.count, longest.tokens), *more], longest.length)
            return longest if count == longest.count else _Texts(count, longest.length, tokens)
        length = self._short(setup, longest.length)
        count = min(max(count for count, _ in more), longest.tokens // length)
        short = _Texts(count, length, count * length)
        return max(longest, short, key=lambda texts: texts.peak_bytes(surface))

    def _short(self, setup: Setup, length: int) -> int:
        """The length of padded texts for which kernels take most beside what tokens take.

        That they take for whole blocks of tokens of each text.
        """
        epoch = self._epoch(setup, max(1, ENOUGH_TOKENS // length), length)
        lengths = epoch.tokens // epoch.texts
        return int(lengths[np.argmax(epoch.texts * np.ceil(lengths / BLOCK_TOKENS))])

    def surface(self, setup: Setup, device: Device) -> Surface:
        """Peaks of a setup on a device: with the allocator on a card, tensors alone on a CPU."""
        key = setup, device.library_bytes, device.grows_segments
        if key not in self._surfaces:
            self._surfaces[key] = Surface(
                self._rehearsal(setup), allocator=setup.device == "cuda",
                expandable_segments=device.grows_segments, library_bytes=device.library_bytes,
            )  # fmt: skip
        return self._surfaces[key]

    def _rehearsal(self, setup: Setup) -> Rehearses:
        if setup not in self._rehearsals:
            self._rehearsals[setup] = self._made_rehearsal(setup)
        return self._rehearsals[setup]

    def _made_rehearsal(self, setup: Setup) -> Rehearses:
        whole = self._rehearse(replace(setup, shards=1))
        if setup.shards == 1:
            return whole
        return Divided(whole, setup.shards, BYTES_OF[setup.weights] * self.units.gathered)

    def _peak(
        self, device: Device, setup: Setup, micro_batch: int, length: int, *, of_longest: bool = False
    ) -> int:
        """The peak as far as it is known: modelled, put right by real steps, or measured in this one."""
        modelled = self._modelled(device, setup, micro_batch, length, of_longest=of_longest)
        residual = self._residual(device, setup)
        if residual is None or self.subject is None:
            return modelled
        # What a step takes was measured without the context, which a card of the table has yet to make.
        context = 0 if device.is_here else device.context_bytes
        taken = modelled - context
        seen = residual.measured(self.subject.model, micro_batch, length, taken)
        return context + (residual.corrected(taken) if seen is None else seen)

    def _modelled(
        self, device: Device, setup: Setup, micro_batch: int, length: int, *, of_longest: bool = False
    ) -> int:
        """The model's own, of a micro-batch of the longest texts alone or whichever take most."""
        surface = self.surface(setup, device)
        worst = None if of_longest else self._worst(device, setup, micro_batch, length)
        peak = surface.peak_bytes(micro_batch, length) if worst is None else worst.peak_bytes(surface)
        if device.kind == "cpu":
            lasting = surface.lasting_bytes(length)
            return process_bytes(peak, lasting, half=setup.compute != "float32")
        return peak + device.context_bytes

    def _residual(self, device: Device, setup: Setup) -> Residual | None:
        if self.subject is None or setup.shards > 1:
            return None
        key = device, setup
        if key not in self._residuals:
            self._residuals[key] = residual_for(device, setup, self.subject)
        return self._residuals[key]

    def _margin(self, device: Device, setup: Setup) -> float:
        return MARGIN if self._residual(device, setup) is None else CALIBRATED_MARGIN

    def _budget(self, device: Device, setup: Setup) -> int:
        return int(device.usable_gib * GIB * (1 - self._margin(device, setup)))

    def _epoch(self, setup: Setup, micro_batch: int, length: int) -> Epoch:
        """One epoch, in micro-batches of as many tokens as ``micro_batch`` texts of ``length``."""
        packed = setup.attention == "packed"
        key = micro_batch * length, length, packed
        if key not in self._epochs:
            given, step = self.job.lengths, self.job.step_examples
            lengths = np.full(step, length) if given is None else np.minimum(given, length)
            self._epochs[key] = cut_epoch(
                lengths, step_examples=step, tokens_per_micro_batch=micro_batch * length,
                max_examples=self.job.max_examples, packed=packed, devices=self.fleet.devices,
            )  # fmt: skip
        return self._epochs[key]

    def _epoch_s(self, device: Device, setup: Setup, epoch: Epoch) -> float:
        """Seconds of forward and backward, with no time for what devices exchange."""
        seconds = self._costs(setup).seconds(device, setup.compute, epoch.tokens, epoch.pairs)
        return epoch.of_slowest(seconds)

    def _costs(self, setup: Setup) -> Costs:
        if setup not in self._all_costs:
            rehearsal, length = self._rehearsal(setup), self.job.length
            few, more = (rehearsal.trace(b, length, work=True).work for b in MICRO_BATCHES)
            micro_batches = 3 if setup.accumulates else 2
            self._all_costs[setup] = costs(few, more, MICRO_BATCHES, length, micro_batches=micro_batches)
        return self._all_costs[setup]

    def _time_s(self, choice: _Choice) -> float | None:
        computing_s = self._computing_s(choice)
        return None if computing_s is None else computing_s + self._exchange_s(choice, computing_s)

    def _computing_s(self, choice: _Choice) -> float | None:
        return choice.epoch_s * self.job.epochs if choice.is_timed else None

    def _exchange_s(self, choice: _Choice, computing_s: float) -> float:
        """What devices wait for each other: layers are gathered while others run, sums are not hidden."""
        if self.fleet.devices == 1 or self.job.rows is None:
            return 0.0
        steps = self.job.rows / self.job.step_examples * self.job.epochs
        passes = choice.epoch.passes * self.job.epochs
        parameters = self.units.layers + self.units.rest
        # Forward and back.
        gathered = 2 * passes * BYTES_OF[choice.setup.weights] * parameters if self.fleet.sharded else 0
        summed = (passes if self.fleet.sharded else steps) * self._trained_bytes(choice)
        gathering_s, adding_s = self.fleet.exchange_s(gathered, summed)
        return max(0.0, gathering_s - computing_s) + adding_s

    def _trained_bytes(self, choice: _Choice) -> float:
        """Of trained tensors in float32; AdamW's state is two of them."""
        storages = self._rehearsal(choice.setup).trace(MICRO_BATCHES[0], choice.length, work=True).storages
        return choice.setup.shards * sum(s.n_bytes for s in storages if s.category == ledger.STATE) / 2

    def _as_plan(self, best: _Choice, others: list[_Choice], device: Device, price: Price | None) -> Plan:
        micro_batch = max(best.micro_batch, 1)
        trace, event = self._at_peak(best, device)
        per_hour = price.usd_per_hour if price else None
        time_s = self._time_s(best)
        computing_s = self._computing_s(best)
        fit_s = self._fit_s(time_s, device)
        basis, basis_why = self._basis(device, best)
        margin = self._margin(device, best.setup)
        return Plan(
            name=device.name,
            fits=best.micro_batch > 0,
            capacity_gib=device.usable_gib,
            predicted_peak_gib=gib(best.peak_bytes),
            micro_batch=best.micro_batch,
            tokens_per_micro_batch=best.micro_batch * best.length,
            levers=best.levers,
            time_s=time_s,
            cost_usd=cost_usd(time_s, per_hour),
            why=_why(
                best, others, device, self.job.step_examples, margin, self.fleet,
                self._limit(device, best.length),
            ),
            basis=basis,
            basis_why=basis_why,
            bases={
                "capacity_gib": MEASURED if device.is_here and not device.is_capped else ESTIMATED,
                "predicted_peak_gib": basis, "time_s": ESTIMATED, "cost_usd": ESTIMATED,
                "fit_time_s": ESTIMATED, "fit_cost_usd": ESTIMATED, "exchange_s": ESTIMATED,
            },
            changes_result=bool(best.price),
            composition=self._composition(best, device, trace, event),
            peak_place=trace.peak_place(event),
            price=price,
            alternatives=tuple(self._as_alternative(choice, device, per_hour) for choice in others),
            length=best.length,
            modelled_bytes=self._modelled(device, best.setup, micro_batch, best.length),
            setup=best.setup,
            subject=self.subject or Subject("", "", ""),
            devices=self.fleet.devices,
            exchange_s=None if computing_s is None else self._exchange_s(best, computing_s),
            asked=device.asked,
            fit_time_s=fit_s,
            fit_cost_usd=cost_usd(fit_s, per_hour),
        )  # fmt: skip

    def _basis(self, device: Device, choice: _Choice) -> tuple[str, str]:
        """How far the peak is known, and why so much of the device is left free."""
        residual, margin = self._residual(device, choice.setup), self._margin(device, choice.setup)
        free = f"{100 * margin:.0f} % of the device is left free"
        if residual is None or self.subject is None:
            why = f"Uncalibrated: no step on this card has confirmed it yet; {free} for that."
            return ESTIMATED, why + _of_unknown(device)
        micro_batch = max(choice.micro_batch, 1)
        modelled = self._modelled(device, choice.setup, micro_batch, choice.length)
        taken = modelled - (0 if device.is_here else device.context_bytes)
        if residual.measured(self.subject.model, micro_batch, choice.length, taken) is not None:
            return MEASURED, f"This very step was taken here; {free} instead of {100 * MARGIN:.0f} %."
        missed = (choice.peak_bytes - modelled) / 2**20
        steps = "a real step" if len(residual.steps) == 1 else f"{len(residual.steps)} real steps"
        return CALIBRATED, (
            f"Corrected by {missed:+,.0f} MiB, from {steps} under the same conditions, so {free} "
            f"instead of {100 * MARGIN:.0f} %."
        )

    def _at_peak(self, choice: _Choice, device: Device) -> tuple[ledger.Trace, int]:
        """The step's trace and the event that makes its peak."""
        surface = self.surface(choice.setup, device)
        trace = self._worst(device, choice.setup, max(choice.micro_batch, 1), choice.length).trace(surface)
        return trace, surface.peak_event(trace)

    def _composition(
        self, choice: _Choice, device: Device, trace: ledger.Trace, event: int
    ) -> dict[str, float]:
        """The peak by category in GiB; what no tensor accounts for has its own names, and it adds up."""
        modelled = self._modelled(device, choice.setup, max(choice.micro_batch, 1), choice.length)
        parts = composition_gib(trace, event, modelled, device)
        if choice.peak_bytes != modelled:
            parts[CORRECTION] = gib(choice.peak_bytes - modelled)
        return parts

    def _as_alternative(self, choice: _Choice, device: Device, per_hour: float | None) -> Alternative:
        time_s = self._time_s(choice)
        return Alternative(
            levers=choice.levers,
            fits=choice.micro_batch > 0,
            predicted_peak_gib=gib(choice.peak_bytes),
            micro_batch=choice.micro_batch,
            time_s=time_s,
            price=choice.price,
            cost_usd=cost_usd(time_s, per_hour),
            composition=self._composition(choice, device, *self._at_peak(choice, device)),
        )


def composition_gib(trace: ledger.Trace, event: int, peak_bytes: int, device: Device) -> dict[str, float]:
    """A peak on ``device`` by category in GiB, which add up; ``event`` of the ``trace`` is its place."""
    parts = trace.composition(event)
    if device.kind == "cuda":
        parts[CONTEXT] = device.context_bytes + parts.pop(ledger.LIBRARY, 0)
    parts[PROCESS if device.kind == "cpu" else ROUNDING] = peak_bytes - sum(parts.values())
    return {name: gib(n_bytes) for name, n_bytes in parts.items() if n_bytes}


def _speed(choice: _Choice) -> tuple[float, int]:
    return choice.epoch_s, len(choice.levers)


def _of_unknown(device: Device) -> str:
    """What is taken for granted of a card that is not in the table; empty for any other."""
    if device.knows_rates:
        return ""
    assumed = "" if device.is_here else "float16 and fused attention are assumed, and "
    return f" {device.name} is not in the table of cards: {assumed}no time is told."


def _half(setup: Setup) -> tuple[str, ...]:
    """The lever that is in use already where frozen weights are in half precision on a card."""
    return (HALF,) if setup.weights != "float32" and setup.device == "cuda" else ()


def _pick(safe: list[_Choice], offers: list[_Choice]) -> _Choice:
    """The fastest choice that keeps the result, unless weights leave it no room and 4 bits are offered; the
    fastest offer where none does, one that reads less of the texts only if no other fits; and what needs
    least where nothing fits.
    """
    fitting = [choice for choice in safe if choice.micro_batch]
    offered = [choice for choice in offers if choice.micro_batch]
    if fitting:
        in_4_bits = [choice for choice in offered if choice.setup.quantized]
        return min(in_4_bits or fitting, key=_speed)
    if offered:
        return min(offered, key=lambda choice: (choice.price == OFFERS[SHORTER], *_speed(choice)))
    return min((*safe, *offers), key=lambda c: c.peak_bytes)


def _would_do(smallest: _Choice, device: Device, margin: float) -> str:
    """Which known card, no smaller than the one that was asked for, has room for it."""
    known = known_devices()
    asked = known[device.card].usable_gib if device.card in known else 0.0
    least_gib = max(asked, device.usable_gib)
    tensors_bytes = smallest.peak_bytes - device.context_bytes
    large = sorted(
        (card.usable_gib, card.name)
        for card in set(known.values())
        if card.usable_gib >= least_gib
        and card.usable_gib * (1 - margin) * GIB >= tensors_bytes + card.context_bytes
    )
    if not large:
        return "no known single card would do"
    return f"the {'whole ' if large[0][1] == device.card else ''}{large[0][1]} would do"


def _why(
    best: _Choice, others: list[_Choice], device: Device, step_examples: int, margin: float, fleet: Fleet,
    limit: int,
) -> str:  # fmt: skip
    """Why this choice; ``limit`` is the largest micro-batch that was of any use."""
    if not best.micro_batch:
        missing = gib(best.peak_bytes) - device.usable_gib * (1 - margin)
        return (
            f"Even 1 x {best.length} tokens needs {gib(best.peak_bytes):.2f} GiB, {missing:.2f} GiB more "
            f"than there is; {_would_do(best, device, margin)}."
        )
    if best.price:
        keeps = any(other.micro_batch and not other.price for other in others)
        told = "Nothing else fits with room to spare" if keeps else "Nothing that keeps it fits"
        return f"{told}; this changes the result: {best.price}."
    return _why_so_many(best, device, step_examples, fleet, limit)


def _why_so_many(best: _Choice, device: Device, step_examples: int, fleet: Fleet, limit: int) -> str:
    """Why so many examples are computed at once."""
    at, several = f"{best.micro_batch} x {best.length} tokens", fleet.devices > 1
    if best.micro_batch == fleet.share(step_examples):
        if several:
            return f"Each of {fleet.devices} devices computes its share of a step, {at}, at once."
        return f"A whole step of {at} fits at once."
    cut = f"{'their shares of ' if several else ''}a step of {step_examples} examples"
    are_cut = f"{cut} {'are' if several else 'is'} cut into such."
    if best.micro_batch == limit:
        bound = "a CPU gains nothing from more" if device.kind == "cpu" else "the settings ask for no more"
        return f"{at} fit at once, and {bound}; {are_cut}"
    on_each = f"each of {fleet.devices} devices " if several else ""
    return f"The largest micro-batch that fits {on_each}is {at}; {are_cut}"
