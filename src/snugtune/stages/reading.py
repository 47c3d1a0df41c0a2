"""Texts become tokens, and the frozen model says what it makes of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from snugtune.data.tokens import Tokens
from snugtune.memory.guard import Guard, device_memory
from snugtune.model.head import Head, find_head
from snugtune.stages.job import Job
from snugtune.train.features import FrozenPass, frozen_pass
from snugtune.train.long_texts import Encoder, Reading, RowReader, read_as_asked, read_by_evidence


def read_texts(job: Job) -> Reading:
    """Texts in tokens; long ones as the user says, or as validation rows say of a probe."""
    encoder, parts = Encoder(job.backbone.tokenizer, job.backbone.max_length), job.data.parts
    if job.config.long_texts != "auto":
        reading = read_as_asked(parts, encoder, job.config.long_texts)
    else:
        head = find_head(job.backbone.model, job.config.modules_to_save)
        reading = read_by_evidence(parts, encoder, job.data.labels.names, head, _row_reader(job, head))
    job.clock.say(reading.sentence())
    return reading


def _row_reader(job: Job, head: Head) -> RowReader:
    """A pass of the backbone as it is published, before there is a plan; after it, it is on the CPU."""

    def read_rows(tokens: Tokens) -> NDArray[np.float32]:
        guard = Guard(device_memory(job.device), say=job.clock.say, at_work=job.clock.at_work)
        job.backbone.model.to(job.device)
        found = ask_frozen_model(job, head, [tokens], guard)
        if not job.config.load_in_4bit:
            # The plan counts the memory that is free.
            job.backbone.model.to("cpu")
            guard.memory.free()
        return np.asarray(found.features, dtype=np.float32)

    return read_rows


def ask_frozen_model(job: Job, head: Head, parts: list[Tokens], guard: Guard) -> FrozenPass:
    """What the frozen model says of the rows of some parts, one after another: read, or remembered."""
    job.clock.phase("probe", sum(tokens.rows for tokens in parts))
    found = frozen_pass(
        job.backbone.model, head, parts, pad_token_id=job.pad_token_id, device=job.device, dtype=job.dtype,
        on_rows=job.clock.advance, guard=guard, group=job.group,
    )  # fmt: skip
    if found.rows_from_cache:
        job.clock.say(found.sentence())
    return found
