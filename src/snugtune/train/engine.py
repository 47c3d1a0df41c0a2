"""The engine: one visible loop. An optimiser step is defined by its examples, never by how they are cut."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn

from snugtune.config import FitConfig
from snugtune.container import available_memory_bytes
from snugtune.cost.budget import Budget
from snugtune.data.batches import (
    Size,
    epoch_steps,
    micro_batches,
    packed_tokens,
    padded_tokens,
    shares,
    steps_per_epoch,
)
from snugtune.data.tokens import Tokens
from snugtune.errors import NUMBERS, RestartNeededError, TrainingError
from snugtune.evaluate.imbalance import Balance
from snugtune.evaluate.metrics import single_class_alarm
from snugtune.evaluate.multilabel.thresholds import Objective, best_common_score
from snugtune.memory.guard import Guard, device_memory
from snugtune.memory.meter import PeakMeter
from snugtune.model.adapter import load_trainable_state, trainable_state, virtual_tokens
from snugtune.model.packing import pack
from snugtune.model.sharding import divide_state, whole, whole_state
from snugtune.progress import Observer, ResumedInfo, StepInfo, ValidationInfo
from snugtune.train.checkpoints import LARGEST_COPY_BYTES, Checkpoints, TrainState, on_host, shared_state
from snugtune.train.forward import Inputs, collate, predict_logits, rows_to_pack
from snugtune.train.group import ALONE, GradientSum, Group
from snugtune.train.interrupts import Interrupts
from snugtune.train.keeper import BestKeeper
from snugtune.train.optim import allocate_state, make_optimizer, make_scheduler, scale_rates
from snugtune.train.prefix import Prefix
from snugtune.train.ranks import add_penalty_gradients, ranks_of
from snugtune.train.readback import Readback, to_device
from snugtune.train.step import (
    MicroBatch,
    add_gradients,
    clip_gradients,
    drop_gradients,
    summed_loss,
    trained_parameters,
)
from snugtune.train.transaction import (
    UpdateSnapshot,
    all_random_states,
    is_copied_before_update,
    random_state,
    random_state_on_error,
    set_all_random_states,
    set_random_state,
)
from snugtune.units import GIB

ROLLBACKS, RATE_CUT = 3, 0.5
"""How often training goes back after a number that is not finite, and what is left of the learning rates."""

SMALLEST_SCALE = 2.0**-10
"""Of the loss in float16. A gradient that overflows even then exceeds 6e7 somewhere, or is no number at all;
with less, ordinary ones would vanish: float16 knows nothing below 6e-8, which stands for 6e-5 then. fairseq
gives up at 1e-4 (``--min-loss-scale``), DeepSpeed at 1 (``min_loss_scale``)."""

OVERFLOW = "gradient in float16"

NO_FLOAT16 = "use bf16 or float32 instead of fp16"

LARGEST_SHARE_OF_MEMORY = 0.1
"""Of the host's free memory, that the state to go back to may take."""

MIXED_PRECISION = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Examples:
    """N tokenized texts with class ids ``y`` (N,), and how the user's file numbers them, for messages.

    Where a text may have several labels, ``y`` (N, K) is 1 for each that applies and else 0.

    A text that is read in several windows counts once: each window is an example of the text's labels that
    counts a share of it, and all of them are in the same step. The loss is convex in the logits, so what is
    made small is an upper bound of the loss of their mean, by which such a text is classified.
    """

    tokens: Tokens
    y: NDArray[Any]
    file_rows: NDArray[np.int64] | None = None


@dataclass
class TrainResult:
    """What training did; the model holds the best weights when it returns.

    ``metrics`` and ``memory`` are the lines of ``metrics.jsonl`` and ``memory.jsonl``. ``rollbacks`` are the
    times that a number was not finite: ``step``, ``what`` it was (loss, gradient or validation), ``rows`` of
    the training table in that step, the step that training went back ``to_step`` (null: it ended), and the
    ``learning_rate_factor`` from there on.
    """

    steps: int = 0
    best_step: int = 0
    best_score: float = -math.inf
    interrupted: bool = False
    stopped_early: bool = False
    over_budget: bool = False
    diverged: bool = False
    packed: bool = False
    train_s: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    rollbacks: list[dict[str, Any]] = field(default_factory=list)

    def note(self, events: list[dict[str, Any]], step: int | None = None) -> None:
        """Enter what the guard tells into ``memory``, under ``step`` or the step that was taken last."""
        self.memory += [{"step": self.steps if step is None else step, **event} for event in events]


@dataclass(frozen=True)
class Services:
    """What training uses beside the model and the data; every one may be left out.

    ``group`` are the processes that train together; checkpoints are the first one's. ``float32_instead``: a
    new process would compute in float32, should float16 not hold the gradients.
    """

    observer: Observer = field(default_factory=Observer)
    guard: Guard | None = None
    meter: PeakMeter | None = None
    checkpoints: Checkpoints | None = None
    budget: Budget | None = None
    prefix: Prefix | None = None
    group: Group = ALONE
    float32_instead: bool = False


def train(
    model: nn.Module,
    train_set: Examples,
    validation_set: Examples,
    config: FitConfig,
    *,
    head_names: tuple[str, ...],
    pad_token_id: int,
    dtype: torch.dtype,
    device: torch.device,
    begin_from: dict[str, Tensor] | None = None,
    balance: Balance | None = None,
    services: Services | None = None,
    packed: bool = False,
) -> TrainResult:
    """Train ``model`` in place and leave it with the weights that scored best on validation.

    The untrained state (the probe start) is scored first, so the result is never worse than the probe on
    validation; training itself then begins with the trained tensors ``begin_from``, if given, put in place.
    ``balance`` says how rare classes are favoured; every step is still divided by its number of examples.
    Ctrl-C ends training and keeps the best so far; so does the end of ``services.budget``, after a last look
    at validation. A loss or gradient that is not finite sends training back to its last good state, with half
    the learning rates; after three times it ends with the best weights. In float16 a gradient that overflows
    lowers the scale of the loss, and is not finite in this sense where no scale is small enough.

    With ``services.checkpoints``, training goes on from the newest committed state as if nothing had
    happened, and commits where it stands when it has to stop. With ``packed``, micro-batches of training are
    rows of texts without padding, for models of which ``model/packing.py`` knows how. Each process of
    ``services.group`` computes its share of a step's rows; the update is that of the whole step, and the same
    in all of them.

    Raises:
        TrainingError: numbers stay not finite and nothing was learned; names the step and the rows.
        RestartNeededError: memory ran out and this process cannot go on, or it should be in float32.
    """
    run = _Run(model, train_set, validation_set, config, head_names, pad_token_id, dtype, device,
               services or Services(), balance, packed)  # fmt: skip
    try:
        with run.saved_on_the_way_out(), run.interrupts:
            if not run.resume():
                run.begin(begin_from or {})
            while not run.has_ended:
                try:
                    for texts in run.steps_left():
                        run.optimizer_step(texts)
                        run.report(all_but=1)
                        if run.at_end_of_epoch:
                            run.validate()
                        if run.keeper.exhausted or run.over_budget():
                            break
                        run.commit_or_leave()
                    run.has_ended = True
                except _NotFiniteError as fault:
                    run.roll_back(fault)
    except KeyboardInterrupt:
        run.result.interrupted = True
    return run.finish()


class _NotFiniteError(TrainingError):
    """A number of the step ``step`` is not finite; ``what`` it is, and the ``rows`` of the training table."""

    def __init__(self, step: int, what: str, rows: list[int]) -> None:
        super().__init__(step, what, rows)
        self.step, self.what, self.rows = step, what, rows

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.rows[:8])) + (", ..." if len(self.rows) > 8 else "")
        return f"The {self.what} is not finite at step {self.step} (rows {shown} of the training table)"


@dataclass(frozen=True)
class _Taken:
    """A step that was taken; ``numbers`` are its loss and the norm of its gradient, on their way."""

    step: int
    texts: NDArray[np.int64]
    numbers: Readback
    learning_rate: float
    elapsed_s: float
    events: list[dict[str, Any]]
    memory: dict[str, float] | None


@dataclass
class _Run:
    """The state of one training: what the loop above goes through, step by step."""

    model: nn.Module
    train_set: Examples
    validation_set: Examples
    config: FitConfig
    head_names: tuple[str, ...]
    pad_token_id: int
    dtype: torch.dtype
    device: torch.device
    services: Services
    balance: Balance | None = None
    packed: bool = False

    def __post_init__(self) -> None:
        config, services = self.config, self.services
        self.observer, self.meter, self.checkpoints = services.observer, services.meter, services.checkpoints
        self.group = services.group
        self.guard = services.guard or Guard(device_memory(self.device), alone=not self.group.sharded)
        # The first process has the states, and all of them take part in making one.
        (self.has_states,) = self.group.any(self.checkpoints is not None)
        # Accelerate keeps one precision for the whole process; a fit after a fit may want another.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision=MIXED_PRECISION[self.dtype], cpu=self.device.type == "cpu"
        )
        self.class_weights = None if self.balance is None else self.balance.loss_weights
        shift = None if self.balance is None else self.balance.logit_shift
        self.logit_shift = None if shift is None else torch.from_numpy(shift).float().to(self.device)
        self.per_epoch = steps_per_epoch(len(self.train_set.y), config.step_examples)
        self.total = steps_of(len(self.train_set.y), config)
        self.trained = trained_parameters(self.model)
        self.plain_optimizer = make_optimizer(self.model, config, self.head_names)
        self.guard.again(lambda: allocate_state(self.plain_optimizer), during="making the optimiser's state")
        self.scheduler = make_scheduler(self.plain_optimizer, config, self.total)
        self.ranks = ranks_of(self.model, config, self.total)
        self.gradient_sum: GradientSum | None = None
        if not (self.group.is_alone or self.group.sharded):
            self.guard.again(self._make_gradient_sum, during="making room for the sum of gradients")
        # What a row computes: virtual tokens are computed with each.
        self.row_lengths = self.train_set.tokens.lengths + virtual_tokens(self.model)
        self.optimizer = self.accelerator.prepare(self.plain_optimizer)
        torch.manual_seed(config.seed)
        self.keeper = BestKeeper(self.model, config.early_stopping_patience, self.guard)
        self.result = TrainResult(packed=self.packed)
        self.untold: deque[_Taken] = deque()
        self.interrupts, self.has_begun, self.has_ended = Interrupts(), False, False
        self.base_rates = list(getattr(self.scheduler, "base_lrs", ()))
        self.rng_at_rest = all_random_states(self.device)
        self.good: TrainState | None = None
        # Steps in a row, told of, in which a gradient overflowed, so that the weights stayed as they were.
        self.skipped = 0
        self.started = time.perf_counter()

    def begin(self, begin_from: dict[str, Tensor]) -> None:
        """The untrained state is scored, then training begins with the tensors ``begin_from``."""
        if not self.group.is_alone:
            load_trainable_state(self.model, self.group.tensors_from_first(trainable_state(self.model)))
        self.try_longest()
        self.validate()
        load_trainable_state(self.model, self.group.tensors_from_first(begin_from))
        self.has_begun = True
        self.keep_good()

    def resume(self) -> bool:
        """Go on from the newest committed state; whether there is one."""
        if not self.has_states:
            return False
        state = self._newest()
        for reason in self.checkpoints.skipped if self.checkpoints else ():
            self.observer.say(f"A saved training state was passed over: {reason}")
        if state is None:
            return False
        self.try_longest()
        self._go_to(state)
        self.started = time.perf_counter() - state.elapsed_s
        if self.meter is not None:
            # The CPU's memory says nothing of a card's, nor the other way round.
            kind = "allocated_gib" if self.device.type == "cuda" else "resident_gib"
            peaks = [line["peak_gib"] for line in state.memory if "peak_gib" in line and kind in line]
            self.meter.was_at_least(round(max(peaks, default=0.0) * GIB))
        self.has_begun = True
        self.keep_good()
        self.observer.say(f"Going on from step {state.step} of {self.total}.")
        if self.result.steps and self.at_end_of_epoch and not self._has_looked:
            self.validate()
        return True

    def _newest(self) -> TrainState | None:
        """The newest committed state; the first process reads it for all."""
        state = self.checkpoints.newest(balance=self._balance) if self.checkpoints else None
        return shared_state(state, self.group)

    def _go_to(self, state: TrainState) -> None:
        """Everything as it was when ``state`` was made, but for the time."""
        load_trainable_state(self.model, state.weights)
        if self.ranks is not None:
            self.ranks.load(state.weights)
        # A copy: the optimiser keeps the tensors it is given and changes them.
        self.plain_optimizer.load_state_dict(divide_state(self.plain_optimizer, on_host(state).optimizer))
        self.scheduler.load_state_dict(state.scheduler)
        if self.accelerator.scaler is not None and state.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)
        set_all_random_states(state.rng, self.device)
        self.rng_at_rest = state.rng
        self.keeper.load(state.best, state.best_weights)
        self.guard.training.lower(state.limits["training"])
        self.guard.evaluation.lower(state.limits["evaluation"])
        result = self.result
        result.steps, result.metrics, result.memory = state.step, list(state.metrics), list(state.memory)
        result.rollbacks = list(state.rollbacks)
        self.untold.clear()
        self.skipped = 0
        self.observer.on_resumed(
            ResumedInfo(state.step, self.total, state.elapsed_s, result.metrics, result.memory)
        )

    def keep_good(self) -> None:
        """Take where training stands as a state to go back to, if there is memory for it."""
        self.good = None
        room = LARGEST_SHARE_OF_MEMORY * available_memory_bytes() / self.group.local_size
        (does_not_fit,) = self.group.any(_state_bytes(self.model) > room)
        if not does_not_fit:
            self.good = self._copy()

    def _copy(self) -> TrainState:
        """Where training stands, in the host's memory."""
        made: list[TrainState] = []
        self.guard.again(lambda: made.append(on_host(self._state())), during="copying the state of training")
        return made[-1]

    def roll_back(self, fault: _NotFiniteError) -> None:
        """Back to the last good state with lower learning rates; without one, or too often, training ends.

        Raises:
            TrainingError: nothing was learned that could be kept.
            RestartNeededError: float16 does not hold the gradients, and float32 may be taken.
        """
        if fault.what == OVERFLOW and self.services.float32_instead:
            raise RestartNeededError(f"{fault}, however small the loss is scaled.", kind=NUMBERS)
        good = self.good
        if good is None and self.has_states:
            if self.checkpoints is not None:
                self.checkpoints.finished(wait=True)
            good = self._newest()
        rollbacks, told = list(self.result.rollbacks), {"step": fault.step, "what": fault.what}
        # Where no step has changed the weights since, lower rates would not have helped.
        is_same = fault.what == OVERFLOW and good is not None and good.step >= fault.step - self.skipped
        if good is None or is_same or len(rollbacks) == ROLLBACKS:
            nothing_learned = self.keeper.step == 0 and not self.config.probe_start
            if nothing_learned or not math.isfinite(self.keeper.log_loss):
                raise TrainingError(f"{fault}; lower the learning rates, or {NO_FLOAT16}.")
            self.result.rollbacks = [*rollbacks, {**told, "rows": fault.rows, "to_step": None}]
            self.untold.clear()
            self.has_ended = self.result.diverged = True
            why = (
                f"however small the loss is scaled; {NO_FLOAT16}"
                if is_same
                else "and lower learning rates did not help"
            )
            self.observer.say(f"{fault}, {why}: training ends with the best weights so far, those of step "
                              f"{self.keeper.step}.")  # fmt: skip
            return
        factor = RATE_CUT ** (len(rollbacks) + 1)
        self._go_to(good)
        told |= {"rows": fault.rows, "to_step": good.step, "learning_rate_factor": factor}
        self.result.rollbacks = [*rollbacks, told]
        scale_rates(self.scheduler, self.base_rates, factor)
        self.observer.say(f"{fault}: training goes back to step {good.step} and on with "
                          f"{factor:g} of the learning rates.")  # fmt: skip

    def commit_or_leave(self) -> None:
        """Save the state if it is time to, and end if a signal says so: in all processes at the same step."""
        is_due = self.checkpoints is not None and self.checkpoints.due()
        is_due, must_leave = self.group.any(is_due, self.interrupts.is_held)
        if is_due:
            self._commit()
        if must_leave:
            self.interrupts.leave()

    def _commit(self) -> None:
        """One that cannot be saved is told, and does no other harm."""
        self.report()
        if self.skipped:
            # Whoever went on from here would have passed over examples that taught nothing.
            return
        if self.checkpoints is not None:
            self._tell(self.checkpoints.finished())
        if _state_bytes(self.model) > LARGEST_COPY_BYTES:
            self._save(self._state())
            return
        started = time.perf_counter()
        state = self.good = self._copy()
        if self.checkpoints is not None:
            self.checkpoints.commit_behind(state, time.perf_counter() - started)

    def _save(self, state: TrainState) -> None:
        if self.checkpoints is not None:
            self._tell(self.checkpoints.commit(state))

    @contextmanager
    def saved_on_the_way_out(self) -> Iterator[None]:
        """Whatever ends the inside, what was learned by then is committed if it can be gone on from."""
        try:
            yield
        except BaseException:
            with suppress(_NotFiniteError):
                self._commit_last()
            raise

    def _commit_last(self) -> None:
        # Before it has begun, the model is not yet what training begins from.
        if not (self.has_states and self.has_begun):
            return
        state, at_rest = self.good, self.interrupts.at_rest
        if at_rest:
            # Gradients of the step in hand go; the step is done again from its beginning.
            self.report()
        # What a step went through that was never completed is told, too, by whoever goes on.
        untold = self.guard.new_events()
        self.result.note(untold)
        if at_rest:
            state = replace(self._state(), rng=self.rng_at_rest)
        elif state is not None:
            told = [{"step": state.step, **event} for event in untold]
            state = replace(state, memory=[*state.memory, *told])
        if self.checkpoints is None:
            return
        self._tell(self.checkpoints.finished(wait=True))
        last = self.checkpoints.last_step
        if state is not None and (untold or last is None or state.step > last):
            self._tell(self.checkpoints.commit(state))

    def _tell(self, warning: str | None) -> None:
        if warning:
            self.observer.say(warning)

    def _state(self) -> TrainState:
        """Where training stands; its tensors are the living ones."""
        scaler = self.accelerator.scaler
        return TrainState(
            step=self.result.steps,
            weights=trainable_state(self.model) | (self.ranks.state() if self.ranks else {}),
            optimizer=whole_state(self.plain_optimizer.state_dict()),
            scheduler=self.scheduler.state_dict(),
            scaler={} if scaler is None else scaler.state_dict(),
            rng=all_random_states(self.device),
            best=self.keeper.scalars(),
            best_weights=self.keeper.state or {},
            metrics=self.result.metrics,
            elapsed_s=self.elapsed_s,
            limits={"training": self.guard.training.tokens, "evaluation": self.guard.evaluation.tokens},
            memory=self.result.memory,
            rollbacks=self.result.rollbacks,
            balance=self._balance,
        )

    @property
    def _balance(self) -> str:
        return "none" if self.balance is None else self.balance.method

    @property
    def _has_looked(self) -> bool:
        """Whether validation was looked at since the last step."""
        return any("eval_score" in line and line["step"] == self.result.steps for line in self.result.metrics)

    def over_budget(self) -> bool:
        """Whether training must end now for the run to stay within its budget; if so, after a last look."""
        budget = self.services.budget
        if budget is None or self.result.steps == self.total:
            return False
        # By the first process's clock.
        why = self.group.from_first(budget.exhausted())
        if why is None:
            return False
        self.observer.say(why)
        self.result.over_budget = True
        if not self.at_end_of_epoch:
            self.validate()
        return True

    @property
    def at_end_of_epoch(self) -> bool:
        return self.result.steps % self.per_epoch == 0 or self.result.steps == self.total

    def steps_left(self) -> Iterator[NDArray[np.int64]]:
        """The examples of each step still to take; the order is that of the seed, wherever it is entered."""
        if self.keeper.exhausted:
            return iter(())
        rng = np.random.default_rng(self.config.seed)
        lengths, y = self.train_set.tokens.text_lengths, self.train_set.y
        probabilities = None if self.balance is None else self.balance.probabilities(y)
        epochs = (epoch_steps(lengths, self.config.step_examples, rng, probabilities) for _ in count())
        return islice(chain.from_iterable(epochs), self.result.steps, self.total)

    def try_longest(self) -> None:
        """The longest micro-batch, for nothing: what can fail fails in the first seconds."""
        self.model.train()
        tokens = self.train_set.tokens
        longest = np.argsort(tokens.text_lengths, kind="stable")[-self.config.step_examples :]
        before = random_state(self.device)
        # Twice, because from the second micro-batch of a step on there are gradients beside it.
        parts = self._cut(tokens.rows_of(longest))
        largest = max(reversed(parts), key=lambda part: self._size(part, self.row_lengths))
        for _ in range(2 if self.device.type == "cuda" else 1):
            self._accumulate(longest, [largest])
        drop_gradients(self.trained)
        set_random_state(before, self.device)

    def optimizer_step(self, texts: NDArray[np.int64]) -> None:
        """One step on the examples ``texts``, in micro-batches that fit; ``report`` tells of it later."""
        if not self.model.training:
            self.model.train()
        drop_gradients(self.trained)
        learning_rate = float(self.scheduler.get_last_lr()[0])
        losses = self._accumulate(texts, self._cut(self._own_rows(texts)))
        numbers = self._update(self._of_all_processes(losses))
        if self.ranks is not None:
            self.ranks.allocate(self.result.steps + 1, self.guard)
        self.scheduler.step()
        self.result.steps += 1
        self.rng_at_rest = all_random_states(self.device)
        memory = None if self.meter is None else self.meter.now()
        events = self.guard.new_events()
        self.untold.append(
            _Taken(self.result.steps, texts, numbers, learning_rate, self.elapsed_s, events, memory)
        )

    def _own_rows(self, texts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of the step ``texts`` that this process computes."""
        rows = self.train_set.tokens.rows_of(texts)
        if self.group.is_alone:
            return rows
        return shares(rows, self.row_lengths, self.group.size)[self.group.rank]

    def _cut(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """``rows`` in micro-batches."""
        budget = min(self.config.tokens_on_cpu, self.guard.training.tokens)
        return micro_batches(
            rows, self.row_lengths, budget, self.config.per_device_train_batch_size, packed=self.packed
        )

    def _accumulate(self, texts: NDArray[np.int64], parts: list[NDArray[np.int64]]) -> list[Tensor]:
        """The gradients of ``parts`` of the step ``texts``, added up; returns the parts of its loss."""
        losses: list[Tensor] = []
        # Asked before the first pass: in the middle of them the others are waiting for layers.
        passes = self.group.most(len(parts)) if self.group.sharded else len(parts)

        def add(part: NDArray[np.int64], counts: float = 1.0) -> None:
            self._check_interrupts()
            self._seed_dropout(part)
            with random_state_on_error(self.device), self._lower_layers_kept(part):
                losses.append(
                    add_gradients(
                        self.model,
                        self._micro_batch(part, counts),
                        len(texts),
                        autocast=self.accelerator.autocast,
                        backward=self.accelerator.backward,
                        label_smoothing=self.config.label_smoothing,
                        parameters=self.trained,
                    )
                )

        self.guard.each(parts, self.row_lengths, add, self.guard.training, during="training", size=self._size)
        if self.group.sharded:
            # Every process passes as often as the busiest, for a layer is whole only while all ask for it.
            shortest = texts[np.argmin(self.train_set.tokens.text_lengths[texts])]
            nothing = self.train_set.tokens.rows_of(shortest.reshape(1))[:1]
            for _ in range(passes - len(parts)):
                add(nothing, counts=0.0)
        return losses

    def _seed_dropout(self, part: NDArray[np.int64]) -> None:
        """In a group the masks of a micro-batch follow from seed, step and rows, not from what was drawn
        before: processes that start again need not know what each of them had drawn.
        """
        if not self.group.is_alone:
            key = [self.config.seed, self.result.steps, int(part[0])]
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))

    def _check_interrupts(self) -> None:
        # A process of a group that left in the middle of a step would leave the others waiting.
        if self.group.is_alone:
            self.interrupts.check()

    def _make_gradient_sum(self) -> None:
        self.gradient_sum = GradientSum(self.group, self.trained)

    def _of_all_processes(self, losses: list[Tensor]) -> list[Tensor]:
        """Gradients, and the parts of the loss that are returned, added up over all processes."""
        if self.group.is_alone:
            return losses
        if self.gradient_sum is not None:
            self.gradient_sum.complete()
            self.guard.again(self.gradient_sum.fill, during="adding gradients up")
            self.gradient_sum.add_up()
        summed: list[Tensor] = []
        self.guard.again(
            lambda: summed.append(sum(losses, torch.zeros((), device=self.device))), during="adding losses up"
        )
        return [self.group.add_up(summed[-1])]

    @property
    def _size(self) -> Size:
        return packed_tokens if self.packed else padded_tokens

    def _micro_batch(self, rows: NDArray[np.int64], counts: float = 1.0) -> MicroBatch:
        """``rows`` as the model takes them; each counts its share of its text, times ``counts``."""
        tokens, device = self.train_set.tokens, self.device
        y, weight = self.train_set.y[tokens.text_of_row[rows]], tokens.share_of_text(rows)
        if self.class_weights is not None:
            of_class = self.class_weights[y].astype(np.float32)
            weight = of_class if weight is None else weight * of_class
        if counts != 1.0:
            weight = np.full(len(rows), counts, dtype=np.float32)
        return MicroBatch(
            self._inputs(rows),
            to_device(_target(y), device),
            None if weight is None else to_device(torch.from_numpy(weight), device),
            self.logit_shift,
        )

    def _inputs(self, rows: NDArray[np.int64]) -> Inputs:
        tokens = self.train_set.tokens
        if not self.packed:
            return collate(tokens, rows, self.pad_token_id, self.device)
        texts = pack(rows_to_pack(tokens, rows, self.pad_token_id), self.model)
        return texts.to(lambda tensor: to_device(tensor, self.device))

    def _update(self, losses: list[Tensor]) -> Readback:
        """Clip the gradients and change the weights, all of it or nothing.

        Returns loss, gradient norm and, in float16, the scale of the loss.
        """
        made: list[Readback] = []

        def update() -> None:
            self.accelerator.unscale_gradients(self.optimizer)
            add_penalty_gradients(self.model)
            norm = whole(clip_gradients(self.trained, self.config.max_grad_norm))
            scale = [] if self.accelerator.scaler is None else [self.accelerator.scaler._scale]
            numbers = Readback(torch.stack([torch.stack(losses).sum(), norm, *scale]))
            self.optimizer.step()
            made.append(numbers)

        self.guard.whole(
            update,
            # Without a copy, a failure sends the run back to a committed step.
            self._snapshot if is_copied_before_update(self.config) else None,
            during="the update of the weights",
        )
        return made[-1]

    def _snapshot(self) -> Callable[[], None]:
        return UpdateSnapshot(self.trained, self.plain_optimizer, self.accelerator.scaler).restore

    def _lower_layers_kept(self, rows: NDArray[np.int64]) -> AbstractContextManager[None]:
        """Inside, these ``rows`` pass through the model; those of validation count on from training's."""
        prefix = self.services.prefix
        return nullcontext() if prefix is None else prefix.rows(rows)

    def validate(self) -> None:
        """One look at the validation part; the weights are kept if they are the best so far."""
        self.report()
        started = time.perf_counter()
        logits = predict_logits(
            self.model, self.validation_set.tokens, pad_token_id=self.pad_token_id, device=self.device,
            dtype=self.dtype, max_examples=self.config.per_device_eval_batch_size, guard=self.guard,
            around=self._around_validation, group=self.group,
        )  # fmt: skip
        steps = self.result.steps
        one_label = self.validation_set.y.ndim == 1
        alarm = single_class_alarm(logits.argmax(1), logits.shape[1]) if steps and one_label else None
        if alarm:
            self.observer.say(f"Alarm at step {steps}: {alarm}")
        scored: list[tuple[float, float]] = []
        self.guard.again(
            lambda: scored.append(score_logits(logits, self.validation_set.y, self.config.metric)),
            during="scoring",
        )
        score, log_loss = scored[-1]
        if steps and not math.isfinite(log_loss):
            raise _NotFiniteError(steps, "log loss of validation", [])
        best, epoch = self.keeper.offer(score, log_loss, steps), steps / self.per_epoch
        self.result.metrics.append(
            {"step": steps, "epoch": epoch, "eval_score": score, "eval_loss": log_loss, "best": best}
        )
        self.observer.on_validation(ValidationInfo(steps, epoch, score, log_loss, best))
        if self.services.budget is not None:
            self.services.budget.looked(time.perf_counter() - started)
        if steps and not self.skipped:
            self.keep_good()

    def _around_validation(self, rows: NDArray[np.int64]) -> AbstractContextManager[None]:
        self._check_interrupts()
        return self._lower_layers_kept(self.train_set.tokens.rows + rows)

    def report(self, *, all_but: int = 0) -> None:
        """Note and tell of the steps that were taken and not yet told of, but for the last ``all_but``.

        A step is told of after the next one was asked for, so that a GPU always has work; but before
        anything that takes the weights to be good: a look at validation, a commit, the end.

        Raises:
            _NotFiniteError: a step's loss or gradient was not finite.
        """
        while len(self.untold) > all_but:
            self._report(self.untold.popleft())

    def _report(self, taken: _Taken) -> None:
        numbers: list[float] = []
        self.guard.again(lambda: numbers.extend(taken.numbers.read()), during="reading the loss")
        loss, norm, *scale = numbers
        if what := self._what_is_not_finite(taken.step, loss, norm, *scale):
            raise _NotFiniteError(taken.step, what, _rows_in_file(self.train_set, taken.texts))
        at, elapsed, memory = {"step": taken.step}, {"elapsed_s": taken.elapsed_s}, taken.memory
        skipped = {"skipped": True} if self.skipped else {}
        self.result.metrics.append(
            {**at, "loss": loss, "learning_rate": taken.learning_rate, **elapsed, **skipped}
        )
        self.result.note(taken.events, taken.step)
        if memory is not None:
            self.result.memory.append({**at, **elapsed, **memory})
        remaining = taken.elapsed_s / taken.step * (self.total - taken.step)
        self.observer.on_step(
            StepInfo(
                taken.step, self.total, loss, taken.learning_rate, taken.elapsed_s, remaining,
                None if memory is None else memory["peak_gib"], memory,
            )
        )  # fmt: skip

    def _what_is_not_finite(
        self, step: int, loss: float, norm: float, scale: float | None = None
    ) -> str | None:
        """Of a step's numbers, ``scale`` being that of the loss in float16; None if all is well.

        There an overflowing gradient is the loss scaler's business at first: it skips the step, and halves.
        """
        if not math.isfinite(loss):
            return "loss"
        if scale is None:
            return None if math.isfinite(norm) else "gradient"
        self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
        is_all = step == self.total == self.skipped
        return OVERFLOW if self.skipped and (scale <= SMALLEST_SCALE or is_all) else None

    def finish(self) -> TrainResult:
        """The best weights back into the model, and what there is to tell."""
        result = self.result
        if result.interrupted:
            with suppress(_NotFiniteError):
                self.report()
        elif self.has_states:
            # What comes after training may need a new process, too; it must not train again.
            if self.checkpoints is not None:
                self._tell(self.checkpoints.finished(wait=True))
            self._save(self._state())
        self.guard.again(self.keeper.restore, during="taking the best weights back")
        result.note(self.guard.new_events())
        result.stopped_early = self.keeper.exhausted and result.steps < self.total
        result.best_step, result.best_score = self.keeper.step, self.keeper.score
        result.train_s = self.elapsed_s
        return result

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started


def steps_of(texts: int, config: FitConfig) -> int:
    """Optimiser steps of training on so many texts."""
    return max(1, math.ceil(steps_per_epoch(texts, config.step_examples) * config.num_train_epochs))


def score_logits(logits: NDArray[np.float32], y: NDArray[Any], metric: Objective) -> tuple[float, float]:
    """The validation score (``accuracy``, ``f1_macro`` or ``f1_micro``) and the log loss of logits (N, K).

    Of label sets ``y`` (N, K) it is the best score that one threshold for all labels gives.
    """
    tensor = torch.from_numpy(logits)
    log_loss = float(summed_loss(tensor, _target(y))) / len(y)
    if y.ndim == 2:
        return best_common_score(torch.sigmoid(tensor).numpy(), y, metric), log_loss
    predicted = logits.argmax(1)
    if metric == "accuracy":
        return float(accuracy_score(y, predicted)), log_loss
    return float(f1_score(y, predicted, average=metric.removeprefix("f1_"))), log_loss


def _target(y: NDArray[Any]) -> Tensor:
    """What the loss takes of class ids (N,) or label sets (N, K)."""
    return torch.from_numpy(y if y.ndim == 1 else y.astype(np.float32))


def _rows_in_file(examples: Examples, texts: NDArray[np.int64]) -> list[int]:
    in_file = texts if examples.file_rows is None else examples.file_rows[texts]
    rows: list[int] = in_file[in_file >= 0].tolist()  # texts from reviews are in no file
    return rows


def _state_bytes(model: nn.Module) -> int:
    """Of a committed state: the trained tensors, their two moments, and the best ones."""
    return sum(4 * p.nbytes for p in model.parameters() if p.requires_grad)
