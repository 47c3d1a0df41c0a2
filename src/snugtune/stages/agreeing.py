"""What training will need: the plan, the guard that keeps to it, the quote and the budget."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from snugtune.cost.quote import Work
from snugtune.data.tokens import Tokens
from snugtune.memory.devices import Device, this_device, with_memory
from snugtune.memory.fleet import Fleet
from snugtune.memory.guard import NO_LIMIT, Guard, Limit, device_memory
from snugtune.memory.plan import Plan
from snugtune.memory.setup import Setup
from snugtune.model.offload import embedding_to_host, move_whole
from snugtune.model.sharding import shard
from snugtune.progress import PlanInfo
from snugtune.stages.job import Job
from snugtune.train.forward import INFERENCE_TOKENS
from snugtune.train.planning import plan_run
from snugtune.train.prefix import time_share
from snugtune.train.recovery import ALL_LEVERS, HALF_BATCHES, Recovery
from snugtune.train.retreats import evaluation_retreats
from snugtune.train.spending import Spending, agree
from snugtune.train.trial import frozen_pass_s, stepwise_pass_s, training_passes
from snugtune.units import GIB, gib


@dataclass(frozen=True)
class Agreed:
    """How training is cut to fit, what keeps it going, and what it may cost."""

    plan: Plan
    guard: Guard
    spending: Spending


def agree_on(job: Job, tokens: dict[str, Tokens], recovery: Recovery | None) -> Agreed:
    """Plan, guard and quote, told to the user; the model is on its device then.

    Raises:
        UserInputError: the run cannot stay within the budget that is set.
    """
    plan = _plan(job, tokens["train"])
    longest = int(tokens["train"].lengths.max(initial=1)) + job.config.virtual_tokens
    guard = _guard(job, plan, longest, recovery)
    _place(job, plan, guard, recovery)
    spending = _quoted(job, plan, tokens, guard, recovery)
    if (info := spending.quoted()) is not None:
        job.clock.on_quote(info)
    return Agreed(plan, guard, spending)


def _plan(job: Job, tokens: Tokens) -> Plan:
    """How the steps are cut, and with which levers, so that training fits; none changes the result."""
    # The folder that was loaded may have a layer more than the name stands for.
    config = job.config.model_copy(update={"model": job.backbone.source})
    if job.on_card and job.dtype == torch.float32:
        # It may be computed in because float16 did not hold the gradients.
        config = config.model_copy(update={"bf16": False})
    plan = plan_run(config, len(job.data.labels.names), tokens.lengths, _device(job), _fleet(job))
    plan = _of_first(job, plan)
    job.clock.say(
        f"Plan: {plan.predicted_peak_gib:.2f} GiB of {plan.capacity_gib:.1f} GiB free, "
        f"{plan.tokens_per_micro_batch:,} tokens in a micro-batch"
        + (f", {', '.join(plan.levers)}" if plan.levers else "")
        + f" ({plan.basis})."
    )
    job.clock.on_plan(PlanInfo(plan.predicted_peak_gib, plan.capacity_gib, plan.fits))
    if not plan.fits:
        job.clock.say(f"Warning: {plan.why}")
    return plan


def _device(job: Job) -> Device:
    """What the plan is made for: in a group, the least that any of the processes has for itself.

    The model is there already, and the plan counts it.
    """
    device = this_device()
    room = device.usable_gib
    if device.kind == "cpu":
        # One memory for all processes of a machine.
        room /= job.group.local_size
    room += gib(_held_bytes(job, device))
    return with_memory(device, job.group.least(int(room * GIB)) / GIB)


def _held_bytes(job: Job, device: Device) -> int:
    """What the loaded model takes of the device; a card holds those that were loaded in 4 bits."""
    if device.kind == "cuda":
        return torch.cuda.memory_reserved()
    return sum(parameter.nbytes for parameter in job.backbone.model.parameters())


def _fleet(job: Job) -> Fleet:
    return Fleet(job.group.size, job.group.sharded)


def _of_first(job: Job, plan: Plan) -> Plan:
    """The first process's plan: what other machines have measured before may differ."""
    setup, micro_batch, tokens = job.group.from_first(
        [asdict(plan.setup), plan.micro_batch, plan.tokens_per_micro_batch]
    )
    return replace(plan, setup=Setup(**setup), micro_batch=micro_batch, tokens_per_micro_batch=tokens)


def _place(job: Job, plan: Plan, guard: Guard, recovery: Recovery | None) -> None:
    """The model on its device, or a share of it on each of the group's."""
    model = job.backbone.model
    if job.group.sharded:
        shard(model, job.group.mesh(job.device))
        return
    # No adapter is there yet to freeze what is not trained; virtual tokens are read from it once more.
    freeze = job.config.method != "full" and not job.config.virtual_tokens
    guard.retreats = evaluation_retreats(model, freeze=freeze) if job.on_card else []
    if plan.setup.embedding_on_host:
        embedding_to_host(model, freeze=freeze)
    if recovery is not None and recovery.caution >= ALL_LEVERS:
        guard.give_way()
    guard.again(lambda: move_whole(model, job.device), during="moving the model to the device")


def _guard(job: Job, plan: Plan, longest: int, recovery: Recovery | None) -> Guard:
    """What keeps the run going when memory runs out after all; its limits start from the plan.

    A plan that does not fit, or that a new process makes of what another one has left free, is where limits
    begin and not what they may grow to.
    """
    in_need = job.on_card and (not plan.fits or (recovery is not None and recovery.restarts > 0))
    start = plan.tokens_per_micro_batch
    whole_step = min(job.config.step_examples * longest, job.config.tokens_per_micro_batch or NO_LIMIT)
    most = max(start, whole_step) if in_need else start
    of_evaluation = (
        min(tokens, INFERENCE_TOKENS) if plan.setup.chunked_evaluation else INFERENCE_TOKENS
        for tokens in (most, start)
    )
    guard = Guard(
        device_memory(job.device),
        training=Limit(most, start),
        evaluation=Limit(*of_evaluation),
        say=job.clock.say,
        alone=not job.group.sharded,
        at_work=job.clock.at_work,
    )
    if recovery is not None and recovery.caution >= HALF_BATCHES:
        for limit in (guard.training, guard.evaluation):
            limit.lower(limit.tokens // 2)
    return guard


def _quoted(
    job: Job, plan: Plan, tokens: dict[str, Tokens], guard: Guard, recovery: Recovery | None
) -> Spending:
    """The quote, by short passes over some of the texts, and the budget if one is set."""
    how: dict[str, Any] = {
        "pad_token_id": job.pad_token_id, "device": job.device, "dtype": job.dtype, "guard": guard,
        "seed": job.config.seed,
    }  # fmt: skip
    pass_s = frozen_pass_s(job.backbone.model, tokens["train"], **how)
    stepwise_s = stepwise_pass_s(
        job.backbone.model, tokens["train"], step_examples=job.config.step_examples, **how
    )
    passes = training_passes(
        job.config, tokens["train"].lengths, checkpointed=plan.setup.activation_checkpointing > 0
    )
    share = time_share(job.config, job.backbone.model, job.device)
    work = Work(
        train_rows=len(tokens["train"]), validation_rows=len(tokens["validation"]),
        test_rows=len(tokens["test"]), words=sum(len(text.split()) for text in job.data.parts["train"].texts),
        classes=len(job.data.labels.names), epochs=job.config.num_train_epochs,
        train_s=passes * stepwise_s * job.config.num_train_epochs / job.group.size * share,
        load_s=job.load_s, probe=job.config.probe_start, forward_share=pass_s / stepwise_s / passes / share,
        look_share=share, measured=True, audit=job.config.audit,
    )  # fmt: skip
    clock, earlier_s = job.clock, recovery.spent_s if recovery else 0.0
    return agree(
        job.config, plan, work, tokens["train"].lengths, half_precision=job.dtype != torch.float32,
        elapsed=lambda: clock.elapsed_s, earlier_s=earlier_s, say=clock.say, devices=job.group.size,
    )  # fmt: skip
