"""The engine: one visible loop. An optimiser step is defined by its examples, never by how they are cut."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from snugtune.config import FitConfig
from snugtune.data.batches import epoch_steps, micro_batches, steps_per_epoch
from snugtune.data.tokens import Tokens
from snugtune.errors import TrainingError
from snugtune.evaluate.metrics import single_class_alarm
from snugtune.model.adapter import load_trainable_state, trainable_state
from snugtune.progress import Observer, StepInfo, ValidationInfo
from snugtune.train.forward import collate, predict_logits
from snugtune.train.optim import make_optimizer, make_scheduler
from snugtune.train.step import MicroBatch, accumulate_gradients, clip_gradients
from snugtune.units import gib

MIXED_PRECISION = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Examples:
    """Tokenized texts with their class ids (N,), and how the user's file numbers them, for messages."""

    tokens: Tokens
    y: NDArray[np.int64]
    file_rows: NDArray[np.int64] | None = None


@dataclass
class TrainResult:
    """What training did; the model holds the best weights when it returns."""

    steps: int = 0
    best_step: int = 0
    best_score: float = -math.inf
    interrupted: bool = False
    stopped_early: bool = False
    train_s: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)


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
    observer: Observer | None = None,
    peak_bytes: Callable[[], int] | None = None,
) -> TrainResult:
    """Train ``model`` in place and leave it with the weights that scored best on validation.

    The untrained state (the probe start) is scored first, so the result is never worse than the probe
    on validation. Ctrl-C ends training and keeps the best so far.

    Raises:
        TrainingError: the loss or the gradient is not finite; names the step and the rows.
    """
    observer = observer or Observer()
    # Accelerate keeps one precision for the whole process; a fit after a fit may want another.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=MIXED_PRECISION[dtype], cpu=device.type == "cpu")
    per_epoch = steps_per_epoch(len(train_set.y), config.step_examples)
    total = max(1, math.ceil(per_epoch * config.num_train_epochs))
    optimizer = make_optimizer(model, config, head_names)
    scheduler = make_scheduler(optimizer, config, total)
    optimizer = accelerator.prepare(optimizer)
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    keeper = _BestKeeper(model, config.early_stopping_patience)
    result = TrainResult()
    started = time.perf_counter()

    def validate(epoch: float) -> None:
        logits = predict_logits(
            model, validation_set.tokens, pad_token_id=pad_token_id, device=device, dtype=dtype,
            max_examples=config.per_device_eval_batch_size,
        )  # fmt: skip
        alarm = single_class_alarm(logits.argmax(1), logits.shape[1]) if result.steps else None
        if alarm:
            observer.say(f"Alarm at step {result.steps}: {alarm}")
        score, log_loss = score_logits(logits, validation_set.y, config.metric)
        best = keeper.offer(score, log_loss, result.steps)
        result.metrics.append(
            {"step": result.steps, "epoch": epoch, "eval_score": score, "eval_loss": log_loss, "best": best}
        )
        observer.on_validation(ValidationInfo(result.steps, epoch, score, log_loss, best))

    try:
        validate(0.0)
        while result.steps < total and not keeper.exhausted:
            model.train()
            for step_rows in epoch_steps(train_set.tokens.lengths, config.step_examples, rng):
                rate = float(scheduler.get_last_lr()[0])
                loss = _optimizer_step(
                    model,
                    train_set,
                    step_rows,
                    accelerator,
                    optimizer,
                    config,
                    pad_token_id,
                    device,
                    result.steps,
                )
                scheduler.step()
                result.steps += 1
                elapsed = time.perf_counter() - started
                remaining = elapsed / result.steps * (total - result.steps)
                result.metrics.append(
                    {"step": result.steps, "loss": loss, "learning_rate": rate, "elapsed_s": elapsed}
                )
                peak = gib(peak_bytes()) if peak_bytes else None
                observer.on_step(StepInfo(result.steps, total, loss, rate, elapsed, remaining, peak))
                if result.steps == total:
                    break
            validate(result.steps / per_epoch)
    except KeyboardInterrupt:
        result.interrupted = True
    keeper.restore()
    result.stopped_early = keeper.exhausted and result.steps < total
    result.best_step, result.best_score = keeper.step, keeper.score
    result.train_s = time.perf_counter() - started
    return result


def score_logits(logits: NDArray[np.float32], y: NDArray[np.int64], metric: str) -> tuple[float, float]:
    """The validation score (``accuracy`` or ``f1_macro``) and the log loss of logits (N, K)."""
    predicted = logits.argmax(1)
    score = accuracy_score(y, predicted) if metric == "accuracy" else f1_score(y, predicted, average="macro")
    return float(score), float(cross_entropy(torch.from_numpy(logits), torch.from_numpy(y)))


def _optimizer_step(
    model: nn.Module,
    examples: Examples,
    rows: NDArray[np.int64],
    accelerator: Any,
    optimizer: Any,
    config: FitConfig,
    pad_token_id: int,
    device: torch.device,
    step: int,
) -> float:
    optimizer.zero_grad(set_to_none=True)
    cut = micro_batches(
        rows, examples.tokens.lengths, config.tokens_per_micro_batch, config.per_device_train_batch_size
    )
    mean_loss = accumulate_gradients(
        model, (_micro_batch(examples, part, pad_token_id, device) for part in cut), len(rows),
        autocast=accelerator.autocast, backward=accelerator.backward, label_smoothing=config.label_smoothing,
    )  # fmt: skip
    accelerator.unscale_gradients(optimizer)
    loss, norm = torch.stack([mean_loss, clip_gradients(model, config.max_grad_norm)]).tolist()
    # With float16, an overflowing gradient is the loss scaler's business: it skips the step.
    if not math.isfinite(loss) or (accelerator.scaler is None and not math.isfinite(norm)):
        raise TrainingError(_not_finite(step + 1, examples, rows, loss))
    optimizer.step()
    return float(loss)


def _micro_batch(
    examples: Examples, part: NDArray[np.int64], pad_token_id: int, device: torch.device
) -> MicroBatch:
    target = torch.from_numpy(examples.y[part]).to(device, non_blocking=True)
    return MicroBatch(collate(examples.tokens, part, pad_token_id, device), target)


def _not_finite(step: int, examples: Examples, rows: NDArray[np.int64], loss: float) -> str:
    in_file = rows if examples.file_rows is None else examples.file_rows[rows]
    shown = ", ".join(str(i) for i in in_file[:8]) + (", ..." if len(in_file) > 8 else "")
    what = "loss" if not math.isfinite(loss) else "gradient"
    return (
        f"The {what} is not finite at step {step} (rows {shown} of the training table); "
        "lower the learning rates, or use bf16 or float32 instead of fp16."
    )


class _BestKeeper:
    """Keeps the weights that scored best; ties go to the lower log loss.

    Patience counts looks without a gain over the best *trained* score: training often falls below a good
    probe start first and passes it later.
    """

    def __init__(self, model: nn.Module, patience: int | None) -> None:
        self.model, self.patience = model, patience
        self.score, self.log_loss, self.step = -math.inf, math.inf, 0
        self.trained_score, self.since = -math.inf, 0
        self.state: dict[str, Tensor] | None = None

    def offer(self, score: float, log_loss: float, step: int) -> bool:
        better = (score, -log_loss) > (self.score, -self.log_loss)
        if better:
            self.score, self.log_loss, self.step = score, log_loss, step
            self.state = trainable_state(self.model)
        if step > 0:
            self.since = 0 if score > self.trained_score else self.since + 1
            self.trained_score = max(score, self.trained_score)
        return better

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self.since >= self.patience

    def restore(self) -> None:
        if self.state is not None:
            load_trainable_state(self.model, self.state)
