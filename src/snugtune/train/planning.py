"""Plans for a fit: the rehearsal of its own step, put before the planner."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel

from snugtune.config import FitConfig
from snugtune.cost.quote import Work, quote
from snugtune.errors import UserInputError
from snugtune.memory.devices import Device, this_device
from snugtune.memory.fleet import ONE_DEVICE, Fleet, Units
from snugtune.memory.limits import Limits, Way
from snugtune.memory.plan import ADAPTED, OFFERS, SMALLER, Alternative, Job, Plan, Planner
from snugtune.memory.residual import Subject, record_residual
from snugtune.methods import METHODS
from snugtune.model.backbone import DEFAULT_MAX_LENGTH, set_dropout, usable_positions
from snugtune.model.checkpointing import encoder_layers
from snugtune.model.known import known_models
from snugtune.model.offload import word_embedding
from snugtune.model.packing import is_packable, kernel_takes
from snugtune.model.parameters import meta_model
from snugtune.train.rehearsal import Rehearsal, model_shape
from snugtune.train.survey import survey

TOKENS_PER_WORD = 1.3
"""Of English in common vocabularies, roughly."""

LOAD_BYTES_PER_S = 5e8
"""Assumed of a disk that a published model's weights are read from."""


def plan_run(
    config: FitConfig,
    num_labels: int,
    lengths: NDArray[np.int64] | Sequence[int],
    device: Device | None = None,
    fleet: Fleet = ONE_DEVICE,
) -> Plan:
    """How to train on this machine (or ``device``), with levers that keep the result; no side effects.

    ``lengths`` are the training texts' in tokens, as they will be cut. On a CPU the predicted peak is what
    training adds to the process: what it held before the model was loaded comes on top. Of several devices,
    the ``fleet``, ``device`` is each.
    """
    planner = make_planner(config, num_labels, lengths, fleet)
    return planner.plan(
        device or this_device(), price_per_hour_usd=config.price_per_hour_usd, may_change_result=False
    )


def record_run(plan: Plan, measured_bytes: int) -> None:
    """Keep what training by ``plan`` really took on this machine, for the plans of later runs.

    ``measured_bytes`` is the peak after at least one whole optimiser step on the longest texts and one look
    at validation: on a GPU ``torch.cuda.max_memory_reserved``, on a CPU what the process grew by. A run in
    which memory ran out says nothing and must not be kept.
    """
    if plan.fits:
        record_residual(
            this_device(), plan.setup, plan.subject,
            micro_batch=plan.micro_batch, length=plan.length,
            predicted_bytes=plan.modelled_bytes, measured_bytes=measured_bytes,
        )  # fmt: skip


def plan_devices(
    config: FitConfig,
    num_labels: int,
    devices: Sequence[Device],
    *,
    lengths: NDArray[np.int64] | None = None,
    limits: Limits | None = None,
    fleet: Fleet = ONE_DEVICE,
    prices: Mapping[str, float] | None = None,
    on_device: Callable[[Device], None] | None = None,
) -> list[Plan]:
    """One plan for each device, with levers that change the result where nothing else fits.

    With a ``fleet``, for several of each together. ``prices`` are the user's own in USD an hour, by the
    devices' names; those not among them have the setting ``price_per_hour_usd``. ``on_device`` is told which
    device is planned for.
    Where the model does not fit, or not within the ``limits``, LoRA in place of full fine-tuning and a
    smaller model of its kind are looked at, too.

    Raises:
        UserInputError: the settings cannot be used with the model, or not on a device.
    """
    for device in devices:
        _check_format(config, device)
    own = {device.name: (prices or {}).get(device.name, config.price_per_hour_usd) for device in devices}
    planner = make_planner(config, num_labels, lengths, fleet, checks_length=True)

    def planned(device: Device) -> Plan:
        if on_device is not None:
            on_device(device)
        return planner.plan(device, price_per_hour_usd=own[device.name], limits=limits)

    plans = [planned(device) for device in devices]
    others = _other_planners(config, num_labels, lengths, fleet) if any(map(_wants, plans)) else {}
    return [
        _with_others(plan, device, others, own[device.name], limits) if _wants(plan) else plan
        for plan, device in zip(plans, devices, strict=True)
    ]


def own_prices(given: str | float | None, devices: Sequence[Device]) -> dict[str, float]:
    """The user's own prices in USD an hour by the devices' names: of ``0.35``, or ``t4=0.35,h100=2.5``.

    Raises:
        UserInputError: one price for several devices, one of a device that is not planned for, or no number.
    """
    if given is None:
        return {}
    named = [piece.partition("=") for piece in str(given).split(",") if piece.strip()]
    if not named:
        raise UserInputError("--price must be USD per hour, as 0.35 or t4=0.35,h100=2.5, not nothing.")
    if [sign for _, sign, _ in named] == [""]:
        if len(devices) > 1:
            example = ",".join(f"{device.name}=0.35" for device in devices[:2])
            raise UserInputError(f"--price {given} is one price for {len(devices)} devices; give {example}.")
        return {device.name: _price(str(given)) for device in devices}
    names = {
        asked: device.name for device in devices for asked in (device.asked.lower(), device.name.lower())
    }
    found = {}
    for name, _, price in named:
        if name.strip().lower() not in names:
            raise UserInputError(
                f"--price {given}: {name.strip()!r} is not among the devices "
                f"({', '.join(device.name for device in devices)}); give NAME=USD for those."
            )
        found[names[name.strip().lower()]] = _price(price)
    return found


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise UserInputError(
            f"--price must be USD per hour, as 0.35 or t4=0.35,h100=2.5, not {text.strip()!r}."
        )
    return price


def _check_format(config: FitConfig, device: Device) -> None:
    known = device.kind == "cuda" and device.compute_capability > (0, 0)
    if config.bf16 and known and not device.has_bfloat16:
        major, minor = device.compute_capability
        raise UserInputError(
            f"bf16 needs a GPU of compute capability 8.0 or later, and the {device.name} has "
            f"{major}.{minor}; leave it out or take fp16."
        )


def _other_planners(
    config: FitConfig, num_labels: int, lengths: NDArray[np.int64] | None, fleet: Fleet
) -> dict[str, list[Planner]]:
    """By the lever that they stand for (``ADAPTED``, ``SMALLER``): what is less to train, largest first."""

    def planner(**changes: str) -> Planner:
        return make_planner(config.model_copy(update=changes), num_labels, lengths, fleet)

    adapted = [planner(method="lora")] if config.method == "full" else []
    return {ADAPTED: adapted, SMALLER: [planner(model=name) for name in smaller_models(config.model)]}


def _wants(plan: Plan) -> bool:
    """Whether it does not fit, or not within the limits."""
    return not plan.fits or (plan.limits is not None and plan.limits.kept is False)


def smaller_models(model: str) -> list[str]:
    """Known models of the same family (all but the size in their names is alike), the largest first."""
    known = known_models()
    if model not in known:
        return []
    this = known[model]
    alike = {
        other.name: other.published_parameters
        for other in known.values()
        if _family(other.name) == _family(this.name)
        and other.published_parameters < this.published_parameters
    }
    return sorted(alike, key=lambda name: -alike[name])


SIZE_IN_NAME = re.compile(r"(?<=[-_])(?:\d+(?:\.\d+)?[bm]|small|base|large|xl)(?=[-_]|$)", re.IGNORECASE)


def _family(name: str) -> str:
    return SIZE_IN_NAME.sub("", name)


def _with_others(
    plan: Plan, device: Device, others: dict[str, list[Planner]], price: float | None, limits: Limits | None
) -> Plan:
    """The plan with, for each lever, the first of its planners that does (or the last) as an alternative, and
    as a way to keep to the limits where it is one.
    """
    for lever, planners in others.items():
        for planner in planners:
            other = planner.plan(device, price_per_hour_usd=price, may_change_result=False)
            does = other.fits and not (limits and limits.keeps(other.fit_time_s, other.fit_cost_usd) is False)
            if does or planner is planners[-1]:
                plan = _with_other(plan, other, lever, does)
                break
    return plan


def _with_other(plan: Plan, other: Plan, lever: str, does: bool) -> Plan:
    told = f"{lever} ({other.subject.model})" if lever == SMALLER else lever
    offer = Alternative(
        (told, *other.levers), other.fits, other.predicted_peak_gib, other.micro_batch, other.time_s,
        OFFERS[lever], other.cost_usd, other.composition,
    )  # fmt: skip
    verdict = plan.limits
    if does and verdict is not None and verdict.kept is False and other.fit_time_s is not None:
        way = Way(told, OFFERS[lever], other.fit_time_s, other.fit_cost_usd)
        verdict = replace(verdict, ways=(*verdict.ways, way))
    return replace(plan, alternatives=(*plan.alternatives, offer), limits=verdict)


def make_planner(
    config: FitConfig,
    num_labels: int,
    lengths: NDArray[np.int64] | Sequence[int] | None = None,
    fleet: Fleet = ONE_DEVICE,
    *,
    checks_length: bool = False,
) -> Planner:
    """The planner of a fit; without ``lengths``, every text is taken to be as long as the model reads.

    Raises:
        UserInputError: fewer than two labels; the model cannot be found or is no text classifier; where it
            ``checks_length``, ``max_length`` is more than the model reads.
    """
    if num_labels < 2:
        raise UserInputError(f"A classifier needs at least 2 labels, not {num_labels}; give their number.")
    shape = model_shape(config, num_labels)
    model = meta_model(shape)
    embedding = word_embedding(model).weight
    full = config.method == "full"
    packable = _may_pack(config, model.config) and not fleet.sharded
    limit = length_limit(config, model)
    if checks_length and config.max_length is not None and config.max_length > limit:
        raise UserInputError(
            f"max_length={config.max_length} is more than the {limit} tokens that {config.model} can read; "
            "lower it."
        )
    job = make_job(config, limit, lengths, packable=packable)
    # Virtual tokens of some methods are read from it once more; what is divided stays on the devices.
    stays = full or config.virtual_tokens or fleet.sharded
    return Planner(
        replace(job, may_quantize=job.may_quantize and not fleet.sharded),
        lambda setup: Rehearsal(config, num_labels, setup),
        layers=len(encoder_layers(model)),
        embedding_bytes=0 if stays else 2 * embedding.numel(),
        subject=Subject(config.model, shape.model_type, config.method),
        fleet=fleet,
        units=_units(model),
        beside_s=_beside(config, num_labels, job, model.num_parameters()),
    )


def _beside(
    config: FitConfig, num_labels: int, job: Job, parameters: int
) -> Callable[[float, Device], float]:
    """Tells the seconds of what a fit does beside training, by what its quote adds up: the frozen pass, the
    looks at validation, the audit, the final scores in float32, baselines, loading, saving, checking.

    All of the job's rows are taken to be trained on, and held-out ones to come on top.
    """
    rows = job.rows or 0
    whole = Work(
        train_rows=rows,
        validation_rows=round(rows * config.validation_fraction),
        test_rows=round(rows * config.test_fraction),
        words=round((job.tokens or 0) / TOKENS_PER_WORD),
        classes=num_labels,
        epochs=config.num_train_epochs,
        train_s=None,
        load_s=4 * parameters / LOAD_BYTES_PER_S,
        probe=config.probe_start,
        forward_share=1 / METHODS[config.method].passes,
        audit=config.audit,
    )

    def beside_s(train_s: float, device: Device) -> float:
        slowdown = device.full_precision_slowdown if job.mixed_precision else 1.0
        told = quote(replace(whole, train_s=train_s, full_precision_slowdown=slowdown))
        return told.time_s - train_s if told else 0.0

    return beside_s


def _units(model: PreTrainedModel) -> Units:
    """The parts in which FSDP2 gathers the model (``model/sharding.py``)."""
    layers = [sum(p.numel() for p in layer.parameters()) for layer in encoder_layers(model)]
    return Units(max(layers), sum(layers), model.num_parameters() - sum(layers))


def labels_and_lengths(
    config: FitConfig, labels: int | None, rows: int | None
) -> tuple[int, NDArray[np.int64] | None, bool]:
    """The number of classes, the texts' lengths in tokens (R,), None where nothing is known of them, and
    whether these are counted (or else estimated).

    From the table of ``config``, if it names one, else from ``labels`` and ``rows``.

    Raises:
        UserInputError: there is no table and no number of classes, or both; or the table cannot be used.
    """
    if config.train:
        for option, value in (("--labels", labels), ("--rows", rows)):
            if value is not None:
                raise UserInputError(f"{option} is for plans without a table; leave it out, or the table.")
        found = survey(config)
        if found.labels < 2:
            raise UserInputError(
                f"The rows of {config.train} all carry one label, and a classifier needs at least 2; name "
                "another column with --label."
            )
        return found.labels, found.lengths, found.exact
    if labels is None:
        raise UserInputError("Give the number of classes with --labels, or a table to count them in.")
    if rows is None:
        return labels, None, False
    if rows < 1:
        raise UserInputError(f"--rows must be at least 1, not {rows}.")
    return labels, longest_texts(config, labels, rows), False


def longest_texts(config: FitConfig, num_labels: int, rows: int) -> NDArray[np.int64]:
    """Lengths (rows,) of texts of which nothing is known but their number: all as long as the model reads."""
    limit = length_limit(config, meta_model(model_shape(config, num_labels)))
    return np.full(rows, limit, dtype=np.int64)


def _may_pack(config: FitConfig, shape: PretrainedConfig) -> bool:
    set_dropout(shape, config.hidden_dropout)
    unpacked = config.packing == "off" or config.virtual_tokens > 0
    return not unpacked and is_packable(shape) and kernel_takes(shape)


def make_job(
    config: FitConfig,
    limit: int,
    lengths: NDArray[np.int64] | Sequence[int] | None,
    *,
    packable: bool = False,
) -> Job:
    """What is to be trained, from the settings and the lengths (in tokens) of the texts."""
    full = config.method == "full"
    asked = config.bf16 or config.fp16
    # What is computed of a text are its tokens and the virtual ones before it.
    virtual = config.virtual_tokens
    limit += virtual
    cut = None if lengths is None or not len(lengths) else np.minimum(np.asarray(lengths) + virtual, limit)
    length = limit if cut is None else int(cut.max())
    return Job(
        step_examples=config.step_examples,
        length=length,
        max_micro_batch=_max_micro_batch(config, length),
        cpu_tokens=config.tokens_on_cpu,
        rows=None if cut is None else len(cut),
        tokens=None if cut is None else int(cut.sum()),
        lengths=cut,
        max_examples=config.per_device_train_batch_size,
        epochs=config.num_train_epochs,
        weights_are_frozen=not full,
        half_precision=not full and (config.fp16 or config.bf16 is not False),
        mixed_precision=bool(asked) if full else config.fp16 or config.bf16 is not False,
        float16=config.fp16,
        quantized=config.load_in_4bit,
        packable=packable,
        drops_out=config.hidden_dropout > 0 or config.lora_dropout > 0,
        limits_layers=METHODS[config.method].limits_layers,
        may_quantize="load_in_4bit" in METHODS[config.method].settings,
        recomputes=config.method != "prefix",
    )


def _max_micro_batch(config: FitConfig, length: int) -> int:
    """What the user's own bounds on a micro-batch, where given, leave of a step."""
    bound = config.per_device_train_batch_size or config.step_examples
    if config.tokens_per_micro_batch is not None:
        bound = min(bound, max(1, config.tokens_per_micro_batch // length))
    return bound


def length_limit(config: FitConfig, model: PreTrainedModel) -> int:
    """Tokens kept of a text; a model without a limit of its own, or a longer one, gets the usual one."""
    positions = usable_positions(model)
    room = positions - config.virtual_tokens if positions else config.max_length or DEFAULT_MAX_LENGTH
    return min(config.max_length or DEFAULT_MAX_LENGTH, room)
