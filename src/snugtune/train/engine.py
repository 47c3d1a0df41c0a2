"""The engine: one visible loop. An optimiser step is defined by its examples, never by how they are cut."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
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
from snugtune.cost.budget import Budget
from snugtune.data.batches import (
    Size,
    epoch_steps,
    micro_batches,
    packed_tokens,
    padded_tokens,
    steps_per_epoch,
)
from snugtune.data.tokens import Tokens
from snugtune.errors import TrainingError
from snugtune.evaluate.imbalance import Balance
from snugtune.evaluate.metrics import single_class_alarm
from snugtune.evaluate.multilabel.thresholds import Objective, best_common_score
from snugtune.memory.guard import Guard, device_memory
from snugtune.memory.meter import PeakMeter
from snugtune.model.adapter import load_trainable_state, trainable_state, virtual_tokens
from snugtune.model.packing import PackedTexts, pack
from snugtune.progress import Observer, StepInfo, ValidationInfo
from snugtune.train.checkpoints import Checkpoints, TrainState
from snugtune.train.forward import collate, predict_logits
from snugtune.train.keeper import BestKeeper
from snugtune.train.optim import allocate_state, make_optimizer, make_scheduler
from snugtune.train.prefix import Prefix
from snugtune.train.ranks import add_penalty_gradients, ranks_of
from snugtune.train.readback import Readback, to_device
from snugtune.train.step import MicroBatch, add_gradients, clip_gradients, drop_gradients, summed_loss
from snugtune.train.transaction import (
    UpdateSnapshot,
    is_copied_before_update,
    random_state,
    random_state_on_error,
    set_random_state,
)

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

    ``metrics`` and ``memory`` are the lines of ``metrics.jsonl`` and ``memory.jsonl``.
    """

    steps: int = 0
    best_step: int = 0
    best_score: float = -math.inf
    interrupted: bool = False
    stopped_early: bool = False
    over_budget: bool = False
    packed: bool = False
    train_s: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)

    def note(self, events: list[dict[str, Any]], step: int | None = None) -> None:
        """Enter what the guard tells into ``memory``, under ``step`` or the step that was taken last."""
        self.memory += [{"step": self.steps if step is None else step, **event} for event in events]


@dataclass(frozen=True)
class Services:
    """What training uses beside the model and the data; every one may be left out."""

    observer: Observer = field(default_factory=Observer)
    guard: Guard | None = None
    meter: PeakMeter | None = None
    checkpoints: Checkpoints | None = None
    budget: Budget | None = None
    prefix: Prefix | None = None


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
    at validation. With ``services.checkpoints``, training goes on from the
    newest committed state as if nothing had happened. With ``packed``, micro-batches of training are rows of
    texts without padding, for models of which ``model/packing.py`` knows how.

    Raises:
        TrainingError: the loss or the gradient is not finite; names the step and the rows.
        RestartNeededError: memory ran out and this process cannot go on.
    """
    run = _Run(model, train_set, validation_set, config, head_names, pad_token_id, dtype, device,
               services or Services(), balance, packed)  # fmt: skip
    try:
        resumed = run.resume()
        run.try_longest()
        if not resumed:
            run.validate()
            load_trainable_state(model, begin_from or {})
        for texts in run.steps_left():
            run.optimizer_step(texts)
            run.report(all_but=1)
            if run.at_end_of_epoch:
                run.validate()
            if run.keeper.exhausted or run.over_budget():
                break
            run.commit_if_due()
    except KeyboardInterrupt:
        run.result.interrupted = True
    return run.finish()


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
        self.guard = services.guard or Guard(device_memory(self.device))
        # Accelerate keeps one precision for the whole process; a fit after a fit may want another.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision=MIXED_PRECISION[self.dtype], cpu=self.device.type == "cpu"
        )
        self.class_weights = None if self.balance is None else self.balance.loss_weights
        shift = None if self.balance is None else self.balance.logit_shift
        self.logit_shift = None if shift is None else torch.from_numpy(shift).float().to(self.device)
        self.per_epoch = steps_per_epoch(len(self.train_set.y), config.step_examples)
        self.total = max(1, math.ceil(self.per_epoch * config.num_train_epochs))
        self.plain_optimizer = make_optimizer(self.model, config, self.head_names)
        self.guard.again(lambda: allocate_state(self.plain_optimizer), during="making the optimiser's state")
        self.scheduler = make_scheduler(self.plain_optimizer, config, self.total)
        self.ranks = ranks_of(self.model, config, self.total)
        # What a row computes: virtual tokens are computed with each.
        self.row_lengths = self.train_set.tokens.lengths + virtual_tokens(self.model)
        self.optimizer = self.accelerator.prepare(self.plain_optimizer)
        torch.manual_seed(config.seed)
        self.keeper = BestKeeper(self.model, config.early_stopping_patience, self.guard)
        self.result = TrainResult(packed=self.packed)
        self.untold: deque[_Taken] = deque()
        self.started = time.perf_counter()

    def resume(self) -> bool:
        """Go on from the newest committed state; whether there is one."""
        if self.checkpoints is None:
            return False
        state = self.checkpoints.newest()
        for reason in self.checkpoints.skipped:
            self.observer.say(f"A saved training state was passed over: {reason}")
        if state is None:
            return False
        load_trainable_state(self.model, state.weights)
        if self.ranks is not None:
            self.ranks.load(state.weights)
        self.plain_optimizer.load_state_dict(state.optimizer)
        self.scheduler.load_state_dict(state.scheduler)
        if self.accelerator.scaler is not None and state.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)
        set_random_state(state.rng, self.device)
        self.keeper.load(state.best, state.best_weights)
        self.guard.training.lower(state.limits["training"])
        self.guard.evaluation.lower(state.limits["evaluation"])
        self.result.steps, self.result.metrics, self.result.memory = state.step, state.metrics, state.memory
        self.started = time.perf_counter() - state.elapsed_s
        self.observer.say(f"Going on from step {state.step} of {self.total}.")
        return True

    def commit_if_due(self, *, now: bool = False) -> None:
        """Save the state if it is time to; a state that cannot be saved is told, and does no other harm."""
        if self.checkpoints is None or not (now or self.checkpoints.due()):
            return
        self.report()
        scaler = self.accelerator.scaler
        warning = self.checkpoints.commit(
            TrainState(
                step=self.result.steps,
                weights=trainable_state(self.model) | (self.ranks.state() if self.ranks else {}),
                optimizer=self.plain_optimizer.state_dict(),
                scheduler=self.scheduler.state_dict(),
                scaler={} if scaler is None else scaler.state_dict(),
                rng=random_state(self.device),
                best=self.keeper.scalars(),
                best_weights=self.keeper.state or {},
                metrics=self.result.metrics,
                elapsed_s=self.elapsed_s,
                limits={"training": self.guard.training.tokens, "evaluation": self.guard.evaluation.tokens},
                memory=self.result.memory,
            )
        )
        if warning:
            self.observer.say(warning)

    def over_budget(self) -> bool:
        """Whether training must end now for the run to stay within its budget; if so, after a last look."""
        budget = self.services.budget
        why = None if budget is None or self.result.steps == self.total else budget.exhausted()
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
        parts = self._cut(longest)
        largest = max(reversed(parts), key=lambda part: self._size(part, self.row_lengths))
        for _ in range(2 if self.device.type == "cuda" else 1):
            self._accumulate(longest, [largest])
        drop_gradients(self.model)
        set_random_state(before, self.device)

    def optimizer_step(self, texts: NDArray[np.int64]) -> None:
        """One step on the examples ``texts``, in micro-batches that fit; ``report`` tells of it later."""
        self.model.train()
        drop_gradients(self.model)
        learning_rate = float(self.scheduler.get_last_lr()[0])
        numbers = self._update(self._accumulate(texts, self._cut(texts)))
        if self.ranks is not None:
            self.ranks.allocate(self.result.steps + 1, self.guard)
        self.scheduler.step()
        self.result.steps += 1
        memory = None if self.meter is None else self.meter.now()
        events = self.guard.new_events()
        self.untold.append(
            _Taken(self.result.steps, texts, numbers, learning_rate, self.elapsed_s, events, memory)
        )

    def _cut(self, texts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The rows of ``texts`` in micro-batches."""
        tokens = self.train_set.tokens
        budget = min(self.config.tokens_per_micro_batch, self.guard.training.tokens)
        return micro_batches(
            tokens.rows_of(texts), self.row_lengths, budget, self.config.per_device_train_batch_size,
            packed=self.packed,
        )  # fmt: skip

    def _accumulate(self, texts: NDArray[np.int64], parts: list[NDArray[np.int64]]) -> list[Tensor]:
        """The gradients of ``parts`` of the step ``texts``, added up; returns the parts of its loss."""
        losses: list[Tensor] = []

        def add(part: NDArray[np.int64]) -> None:
            with random_state_on_error(self.device), self._lower_layers_kept(part):
                losses.append(
                    add_gradients(
                        self.model,
                        self._micro_batch(part),
                        len(texts),
                        autocast=self.accelerator.autocast,
                        backward=self.accelerator.backward,
                        label_smoothing=self.config.label_smoothing,
                    )
                )

        self.guard.each(parts, self.row_lengths, add, self.guard.training, during="training", size=self._size)
        return losses

    @property
    def _size(self) -> Size:
        return packed_tokens if self.packed else padded_tokens

    def _micro_batch(self, rows: NDArray[np.int64]) -> MicroBatch:
        tokens, device = self.train_set.tokens, self.device
        y, weight = self.train_set.y[tokens.text_of_row[rows]], tokens.share_of_text(rows)
        if self.class_weights is not None:
            of_class = self.class_weights[y].astype(np.float32)
            weight = of_class if weight is None else weight * of_class
        return MicroBatch(
            self._inputs(rows),
            to_device(_target(y), device),
            None if weight is None else to_device(torch.from_numpy(weight), device),
            self.logit_shift,
        )

    def _inputs(self, rows: NDArray[np.int64]) -> dict[str, Tensor] | PackedTexts:
        tokens = self.train_set.tokens
        if not self.packed:
            return collate(tokens, rows, self.pad_token_id, self.device)
        texts = pack([tokens.ids[i] for i in rows], self.model)
        return texts.to(lambda tensor: to_device(tensor, self.device))

    def _update(self, losses: list[Tensor]) -> Readback:
        """Clip the gradients and change the weights, all of it or nothing; returns loss and gradient norm."""
        made: list[Readback] = []

        def update() -> None:
            self.accelerator.unscale_gradients(self.optimizer)
            add_penalty_gradients(self.model)
            norm = clip_gradients(self.model, self.config.max_grad_norm)
            numbers = Readback(torch.stack([torch.stack(losses).sum(), norm]))
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
        return UpdateSnapshot(self.model, self.plain_optimizer, self.accelerator.scaler).restore

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
            around=lambda rows: self._lower_layers_kept(self.train_set.tokens.rows + rows),
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
        best, epoch = self.keeper.offer(score, log_loss, steps), steps / self.per_epoch
        self.result.metrics.append(
            {"step": steps, "epoch": epoch, "eval_score": score, "eval_loss": log_loss, "best": best}
        )
        self.observer.on_validation(ValidationInfo(steps, epoch, score, log_loss, best))
        if self.services.budget is not None:
            self.services.budget.looked(time.perf_counter() - started)

    def report(self, *, all_but: int = 0) -> None:
        """Note and tell of the steps that were taken and not yet told of, but for the last ``all_but``.

        A step is told of after the next one was asked for, so that a GPU always has work; but before
        anything that takes the weights to be good: a look at validation, a commit, the end.

        Raises:
            TrainingError: a step's loss or gradient was not finite.
        """
        while len(self.untold) > all_but:
            self._report(self.untold.popleft())

    def _report(self, taken: _Taken) -> None:
        numbers: list[float] = []
        self.guard.again(lambda: numbers.extend(taken.numbers.read()), during="reading the loss")
        loss, norm = numbers
        # With float16, an overflowing gradient is the loss scaler's business: it skips the step.
        if not math.isfinite(loss) or (self.accelerator.scaler is None and not math.isfinite(norm)):
            raise TrainingError(_not_finite(taken.step, self.train_set, taken.texts, loss))
        at, elapsed, memory = {"step": taken.step}, {"elapsed_s": taken.elapsed_s}, taken.memory
        self.result.metrics.append({**at, "loss": loss, "learning_rate": taken.learning_rate, **elapsed})
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

    def finish(self) -> TrainResult:
        """The best weights back into the model, and what there is to tell."""
        result = self.result
        self.report()
        if not result.interrupted:
            # What comes after training may need a new process, too; it must not train again. Ctrl-C may have
            # come in the middle of an update.
            self.commit_if_due(now=True)
        self.guard.again(self.keeper.restore, during="taking the best weights back")
        result.note(self.guard.new_events())
        result.stopped_early = self.keeper.exhausted and result.steps < self.total
        result.best_step, result.best_score = self.keeper.step, self.keeper.score
        result.train_s = self.elapsed_s
        return result

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started


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


def _not_finite(step: int, examples: Examples, texts: NDArray[np.int64], loss: float) -> str:
    in_file = texts if examples.file_rows is None else examples.file_rows[texts]
    in_file = in_file[in_file >= 0]  # texts from reviews are in no file
    shown = ", ".join(str(i) for i in in_file[:8]) + (", ..." if len(in_file) > 8 else "")
    what = "loss" if not math.isfinite(loss) else "gradient"
    return (
        f"The {what} is not finite at step {step} (rows {shown} of the training table); "
        "lower the learning rates, or use bf16 or float32 instead of fp16."
    )
