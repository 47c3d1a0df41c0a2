"""Plans for a fit: the rehearsal of its own step, put before the planner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from snugtune.config import FitConfig
from snugtune.errors import UserInputError
from snugtune.memory.devices import Device, this_device
from snugtune.memory.plan import Job, Plan, Planner
from snugtune.model.backbone import DEFAULT_MAX_LENGTH, usable_positions
from snugtune.model.checkpointing import encoder_layers
from snugtune.model.offload import word_embedding
from snugtune.model.parameters import meta_model
from snugtune.train.rehearsal import Rehearsal, model_shape


def plan_run(
    config: FitConfig,
    num_labels: int,
    lengths: NDArray[np.int64] | Sequence[int],
    device: Device | None = None,
) -> Plan:
    """How to train on this machine (or ``device``), with levers that keep the result; no side effects.

    ``lengths`` are the training texts' in tokens, as they will be cut. On a CPU the predicted peak is that of
    the tensors alone: what the process held before the model was loaded comes on top.
    """
    planner = make_planner(config, num_labels, lengths)
    return planner.plan(
        device or this_device(), price_per_hour_usd=config.price_per_hour_usd, may_change_result=False
    )


def plan_devices(
    config: FitConfig,
    num_labels: int,
    devices: Sequence[Device],
    *,
    lengths: NDArray[np.int64] | None = None,
) -> list[Plan]:
    """One plan for each device, with levers that change the result where nothing else fits."""
    planner = make_planner(config, num_labels, lengths)
    return [planner.plan(device, price_per_hour_usd=config.price_per_hour_usd) for device in devices]


def make_planner(
    config: FitConfig, num_labels: int, lengths: NDArray[np.int64] | Sequence[int] | None = None
) -> Planner:
    """The planner of a fit; without ``lengths``, every text is taken to be as long as the model reads."""
    if num_labels < 2:
        raise UserInputError(f"A classifier needs at least 2 labels, not {num_labels}; give their number.")
    model = meta_model(model_shape(config, num_labels))
    embedding = word_embedding(model).weight
    full = config.method == "full"
    return Planner(
        make_job(config, _length_limit(config, model), lengths),
        lambda setup: Rehearsal(config, num_labels, setup),
        layers=len(encoder_layers(model)),
        embedding_bytes=0 if full else 2 * embedding.numel(),
    )


def make_job(config: FitConfig, limit: int, lengths: NDArray[np.int64] | Sequence[int] | None) -> Job:
    """What is to be trained, from the settings and the lengths (in tokens) of the texts."""
    full = config.method == "full"
    asked = config.bf16 or config.fp16
    cut = None if lengths is None or not len(lengths) else np.minimum(np.asarray(lengths), limit)
    length = limit if cut is None else int(cut.max())
    return Job(
        step_examples=config.step_examples,
        length=length,
        max_micro_batch=_max_micro_batch(config, length),
        cpu_tokens=config.tokens_per_micro_batch,
        rows=None if cut is None else len(cut),
        tokens=None if cut is None else int(cut.sum()),
        epochs=config.num_train_epochs,
        weights_are_frozen=not full,
        half_precision=not full and config.bf16 is not False,
        mixed_precision=bool(asked) if full else config.bf16 is not False,
    )


def _max_micro_batch(config: FitConfig, length: int) -> int:
    """What the user's own bounds on a micro-batch, where given, leave of a step."""
    bound = config.per_device_train_batch_size or config.step_examples
    if "tokens_per_micro_batch" in config.model_fields_set:
        bound = min(bound, max(1, config.tokens_per_micro_batch // length))
    return bound


def _length_limit(config: FitConfig, model: PreTrainedModel) -> int:
    """Tokens kept of a text; a model without a limit of its own, or a longer one, gets the usual one."""
    room = usable_positions(model) or config.max_length or DEFAULT_MAX_LENGTH
    return min(config.max_length or DEFAULT_MAX_LENGTH, room)
