"""The model to train, its training, and what comes of it."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from snugtune.data.tokens import Tokens
from snugtune.errors import RestartNeededError, RunInterruptedError
from snugtune.files import check_free_space
from snugtune.memory.guard import Guard
from snugtune.memory.meter import PeakMeter
from snugtune.memory.plan import Plan
from snugtune.model.adapter import load_trainable_state, on_trained, trainable_state, wrap
from snugtune.model.backbone import load_for_fit
from snugtune.model.checkpointing import checkpoint_layers
from snugtune.model.head import Head, find_head
from snugtune.model.offload import embedding_to_host, move_whole
from snugtune.model.parameters import ParameterReport, count_parameters
from snugtune.model.sharding import shard
from snugtune.progress import TrainedInfo
from snugtune.stages.agreeing import Agreed
from snugtune.stages.job import Job, class_rows, load_again
from snugtune.stages.reading import ask_frozen_model
from snugtune.train.checkpoints import Checkpoints
from snugtune.train.engine import Examples, Services, TrainResult, steps_of, train
from snugtune.train.eva import start_from_data
from snugtune.train.features import FrozenPass
from snugtune.train.imbalance import Balanced, balance_with_probe, balance_without_probe
from snugtune.train.long_texts import Reading
from snugtune.train.planning import record_run
from snugtune.train.prefix import Prefix, kept_prefix
from snugtune.train.probe import HeldOut, write_start
from snugtune.train.ranks import settle_ranks
from snugtune.train.recovery import ALL_LEVERS, Recovery
from snugtune.train.retreats import evaluation_retreats, retreats
from snugtune.train.spending import Spending
from snugtune.units import GIB

FOLDER_OVERHEAD_BYTES = 64 * 2**20
"""Room for the tokenizer (up to 17 MB), the baseline (up to 50 MB) and the records."""


@dataclass(frozen=True)
class Trainee:
    """The model to train, the names of its head's modules, what is trained of it, and from where.

    ``balanced`` says how rare classes are favoured, ``frozen`` what the frozen model said of training and
    validation texts, if the probe asked it.
    """

    model: torch.nn.Module
    head_names: tuple[str, ...]
    parameters: ParameterReport
    begin_from: dict[str, torch.Tensor]
    balanced: Balanced
    frozen: FrozenPass | None


@dataclass(frozen=True)
class Peaks:
    """Peak memory of training, before and after, and what there was for it when it was planned."""

    predicted_bytes: int
    measured_bytes: int
    limit_bytes: int


@dataclass(frozen=True)
class Trained:
    """What training did, and the memory it took."""

    result: TrainResult
    peaks: Peaks


def make_trainee(job: Job, agreed: Agreed, reading: Reading, recovery: Recovery | None) -> Trainee:
    """The model on its device, head started from the probe, adapter attached, the plan's levers set."""
    plan, guard, model = agreed.plan, agreed.guard, job.backbone.model
    head = find_head(model, job.config.modules_to_save)
    judged = [reading.tokens[name] for name in ("train", "validation")]
    frozen = ask_frozen_model(job, head, judged, guard) if job.config.probe_start else None
    balanced = _balanced(job, head, judged, frozen)
    if job.group.sharded:
        # Adapters go onto whole weights; those that were divided have done their part.
        model = load_again(job)
        head = find_head(model, job.config.modules_to_save)
    begin_from = write_start(model, head, *balanced.probes) if balanced.probes else {}
    torch.manual_seed(job.config.seed)
    trained = wrap(model, job.config)
    if not job.group.sharded:
        # Adapters are made where the word embedding lies, and that may be the host.
        trained.to(job.device)
    _start_from_data(job, trained, reading.tokens["train"])
    checkpoint_layers(trained, plan.setup.activation_checkpointing)
    guard.retreats = retreats(trained, plan.setup.activation_checkpointing)
    parameters = count_parameters(trained)
    begin_from = on_trained(trained, begin_from)
    job.clock.say(
        f"Training {parameters.trainable:,} of {parameters.all:,} parameters ({parameters.percent:.2f} %)."
    )
    if job.group.sharded:
        shard(trained, job.group.mesh(job.device))
        guard.retreats = []
    _draw_levers(guard, recovery)
    return Trainee(trained, head.modules_to_save, parameters, begin_from, balanced, _of_texts(frozen, judged))


def _start_from_data(job: Job, trained: torch.nn.Module, tokens: Tokens) -> None:
    """EVA's first weights, where the settings ask for them."""
    if job.config.init_lora_weights == "eva":
        job.clock.say("Starting LoRA from what the layers are given on training texts (EVA).")
        start_from_data(
            trained, job.config, tokens,
            pad_token_id=job.pad_token_id, device=job.device, dtype=job.dtype,
        )  # fmt: skip


def _balanced(job: Job, head: Head, judged: list[Tokens], frozen: FrozenPass | None) -> Balanced:
    """How rare classes are favoured, with the probe the head starts from if there is a frozen pass.

    In a group as the first process finds: the last digits of another machine's probe may speak otherwise.
    """
    balanced = _balanced_here(job, head, judged, frozen)
    chosen = job.group.from_first(balanced.balance.method)
    return replace(balanced, balance=replace(balanced.balance, method=chosen))


def _balanced_here(job: Job, head: Head, judged: list[Tokens], frozen: FrozenPass | None) -> Balanced:
    if frozen is None:
        return balance_without_probe(job.config.imbalance, class_rows(job))
    train, validation = np.split(np.asarray(frozen.features, dtype=np.float32), [judged[0].rows])
    held_out = HeldOut(validation, job.data.parts["validation"].y, judged[1])
    balanced = balance_with_probe(
        job.config.imbalance, train, judged[0], job.data.parts["train"].y, head, held_out,
        label_names=job.data.labels.names, metric=job.config.metric,
    )  # fmt: skip
    if sentence := balanced.sentence():
        job.clock.say(sentence)
    return balanced


def _of_texts(frozen: FrozenPass | None, judged: list[Tokens]) -> FrozenPass | None:
    """What the frozen model said of the rows, averaged over each text's."""
    if frozen is None:
        return None
    of_rows = np.split(frozen.features, [judged[0].rows])
    of_texts = [tokens.pooled(rows) for tokens, rows in zip(judged, of_rows, strict=True)]
    # In half precision they wait for the audit while the model trains.
    return replace(frozen, features=np.concatenate(of_texts).astype(np.float16))


def train_within(
    job: Job,
    agreed: Agreed,
    trainee: Trainee,
    tokens: dict[str, Tokens],
    folder: Path,
    *,
    checkpoints: Checkpoints | None,
    resident_bytes_before: int,
) -> Trained:
    """Training by the plan, within the budget, with its peak measured; later plans and quotes learn from it.

    Raises:
        UserInputError: the disk of ``folder`` has no room for the run.
        TrainingError: the loss is not finite.
        RestartNeededError: memory ran out and this process cannot go on.
        RunInterruptedError: Ctrl-C before anything was learned.
    """
    plan, guard, spending = agreed.plan, agreed.guard, agreed.spending
    check_free_space(folder, _folder_bytes(trainee.parameters))
    job.clock.phase("train")
    with PeakMeter(job.device) as memory, _prefix(job, trainee, tokens, folder) as prefix:
        began = time.perf_counter()
        if prefix is not None:
            prefix.fill(
                trainee.model, [tokens["train"], tokens["validation"]], pad_token_id=job.pad_token_id,
                device=job.device, dtype=job.dtype, guard=guard,
            )  # fmt: skip
        filling_s = time.perf_counter() - began
        services = Services(
            job.clock, guard, memory, checkpoints, spending.budget, prefix, job.group, job.float32_instead
        )
        result = _run_engine(job, plan, guard.training.planned, trainee, tokens, services)
    # On a CPU the process's own memory, with its libraries and data, is part of what is measured.
    beside = 0 if job.on_card else resident_bytes_before
    predicted, limit = (beside + round(gib * GIB) for gib in (plan.predicted_peak_gib, plan.capacity_gib))
    peaks = Peaks(predicted, job.group.most(memory.peak_bytes), limit)
    if memory.is_of_this_process:
        _remember(job, plan, guard, peaks.measured_bytes - beside, result, filling_s, spending)
    job.clock.on_trained(_told(job, result, len(tokens["train"])))
    return Trained(result, peaks)


def _told(job: Job, result: TrainResult, rows: int) -> TrainedInfo:
    return TrainedInfo(
        result.steps, steps_of(rows, job.config), result.train_s, result.interrupted, result.stopped_early,
        result.over_budget, result.diverged,
    )  # fmt: skip


def _draw_levers(guard: Guard, recovery: Recovery | None) -> None:
    """After restarts that did not help, everything that keeps the result is given way with at once."""
    if recovery is not None and recovery.caution >= ALL_LEVERS:
        guard.give_way()


def _folder_bytes(parameters: ParameterReport) -> int:
    """What the run folder will take: trained tensors in float32, tokenizer, baseline, records."""
    return 4 * parameters.trainable + FOLDER_OVERHEAD_BYTES


def _prefix(
    job: Job, trainee: Trainee, tokens: dict[str, Tokens], folder: Path
) -> AbstractContextManager[Prefix | None]:
    """Layers below every adapter compute each training and validation text once; what they give waits.

    Not in a group, where each process would have to compute the texts of all.
    """
    if not job.group.is_alone:
        return nullcontext()
    lengths = np.concatenate([tokens[name].lengths for name in ("train", "validation")])
    return kept_prefix(trainee.model, job.config, lengths, job.device, folder)


def _run_engine(
    job: Job, plan: Plan, most_tokens: int, trainee: Trainee, tokens: dict[str, Tokens], services: Services
) -> TrainResult:
    part, validation = job.data.parts["train"], job.data.parts["validation"]
    result = train(
        trainee.model,
        Examples(tokens["train"], part.y, np.where(part.rows < 0, -1, part.rows + job.data.first_row)),
        Examples(tokens["validation"], validation.y),
        job.config.model_copy(update={"tokens_per_micro_batch": most_tokens}),
        head_names=trainee.head_names,
        pad_token_id=job.pad_token_id,
        dtype=job.dtype,
        device=job.device,
        begin_from=trainee.begin_from,
        balance=trainee.balanced.balance,
        services=services,
        packed=job.on_card and plan.setup.attention == "packed",
    )
    is_probe_kept = job.config.probe_start and math.isfinite(result.best_score)
    if result.best_step == 0 and result.interrupted and not is_probe_kept:
        raise RunInterruptedError("Interrupted before anything was learned; nothing was written.")
    return result


def _remember(
    job: Job, plan: Plan, guard: Guard, measured_bytes: int, result: TrainResult, filling_s: float,
    spending: Spending,
) -> None:  # fmt: skip
    """What training really took corrects the plans of later runs, unless it did not go by this plan."""
    if not job.group.is_alone:
        return  # plans of one device do not learn from it
    undisturbed = result.steps > 0 and not any("event" in row for row in result.memory)
    # After a restart micro-batches may be smaller than planned, or the device another.
    limits = {guard.training.tokens, guard.training.planned, plan.tokens_per_micro_batch}
    by_plan = len(limits) == 1 and plan.setup.device == job.device.type
    if undisturbed and by_plan:
        record_run(plan, measured_bytes)
        spending.remember(result, filling_s)


def on_published_weights(job: Job, model: torch.nn.Module, agreed: Agreed) -> torch.nn.Module:
    """The trained tensors on the backbone's published weights: exactly what a user of the folder loads.

    Those weights are in 4 bits where the adapter was trained on such; all else is in float32. A model that in
    float32 does not fit a card, though it was trained there, stays on the host and is scored there.
    """
    guard, state = agreed.guard, trainable_state(model)
    # Both at once may not fit.
    if not job.group.sharded:
        model.to("cpu")
    guard.memory.free()
    if job.group.sharded:
        return shard(_published(job, model, state, job.device), job.group.mesh(job.device)).eval()
    try:
        return _published_on_card(job, model, state, agreed)
    except RestartNeededError as error:
        failure = str(error)
    # The handler is left, and with it what its traceback held.
    job.clock.say(f"{failure} The trained model is scored on the CPU.")
    guard.retreats = []
    return _published(job, model, state, torch.device("cpu")).eval()


def _published_on_card(
    job: Job, model: torch.nn.Module, state: dict[str, torch.Tensor], agreed: Agreed
) -> torch.nn.Module:
    final = _published(job, model, state, job.device)
    agreed.guard.retreats = evaluation_retreats(final) if job.on_card else []
    if agreed.plan.setup.embedding_on_host:
        embedding_to_host(final)
    during = "moving the trained model to the device"
    agreed.guard.again(lambda: move_whole(final, job.device), during=during)
    return final.eval()


def _published(
    job: Job, model: torch.nn.Module, state: dict[str, torch.Tensor], device: torch.device
) -> torch.nn.Module:
    """As it comes from loading: on the host or, in 4 bits, on ``device``."""
    fresh = load_for_fit(job.config, job.data.labels, device=device)
    final = wrap(fresh.model, job.config, like=model)
    load_trainable_state(final, state)
    settle_ranks(final)
    final.config._name_or_path = job.backbone.source  # type: ignore[union-attr]
    return final


def in_one_piece(job: Job, model: torch.nn.Module) -> torch.nn.Module:
    """``model``, which was divided among devices, whole on the host of the first process; others' have no
    use for it.
    """
    if not job.group.sharded:
        return model
    state = trainable_state(model)
    if not job.group.is_first:
        return model
    return _published(job, model, state, job.device).eval()
