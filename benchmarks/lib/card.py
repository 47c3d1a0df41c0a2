"""The contestants of ``speed_gpu.py``, each in a process of its own on a card whose memory may be capped."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

from .capped_worker import cap_card
from .common import quiet_libraries, synchronize
from .datasets import like_complaints
from .memory import CachedPool, PeakMemory
from .turns import Report, WorkClock


def train_turns(
    clock: WorkClock,
    report: Report,
    *,
    options: dict[str, Any],
    kind: str,
    tokens: int | None = None,
    packing: str = "auto",
) -> None:
    """``repeats`` epochs over the same rows, one a turn, as many as begin before ``deadline_at``.

    ``kind`` is "ours" or "bare loop" (``tokens`` in a micro-batch), "planned" (ours as our plan has it), or
    the recipe's padding. The peak is that of an epoch before the others, which is not timed: to see it, the
    cache must be empty, and to grow it takes time.
    """
    if time.time() > options["deadline_at"]:
        raise RuntimeError("not begun before the deadline")
    quiet_libraries()
    _cap(options)
    config = _config(options, tokens, packing)
    plan = _plan(options, config, options["rows"]) if kind == "planned" else None
    data = like_complaints(config, options["rows"], options["classes"])
    contestant = _contestant(kind, data, config, plan)
    memory, pool = PeakMemory(data.device), CachedPool(data.device)
    memory.restart()
    contestant.turn("training")  # warms up, too
    peaks = memory.as_dict()
    for _ in range(options["repeats"]):
        with pool.given_back():
            clock.offer_turn()
        if time.time() > options["deadline_at"]:
            return
        turn = contestant.turn("training")
        report({**asdict(turn), **peaks, **contestant.about()})


def quantized_decoder(clock: WorkClock, report: Report, *, options: dict[str, Any], rows: int) -> None:
    """Optimiser steps of an 8-billion-parameter decoder in 4 bits, every layer checkpointed."""
    from snugtune.config import FitConfig
    from snugtune.model.adapter import wrap
    from snugtune.model.checkpointing import checkpoint_layers, encoder_layers
    from snugtune.model.head import find_head
    from snugtune.model.precision import compute_dtype, pick_device
    from snugtune.model.quantization import count_weights

    from .shapes import classifier_in_4bit, llama_8b

    _cap(options)
    device = pick_device()
    config = FitConfig(
        train="", num_train_epochs=1, tokens_per_micro_batch=4 * options["max_length"],
        early_stopping_patience=None,
    )  # fmt: skip
    dtype, shape = compute_dtype(config, device), llama_8b(tiny=options["tiny"])
    model = classifier_in_4bit(shape, options["classes"], dtype, device)
    parameters = sum(count_weights(parameter) for parameter in model.parameters())
    head_names = find_head(model).modules_to_save
    trained = wrap(model, config)
    checkpoint_layers(trained, len(encoder_layers(trained)))
    examples = _examples(shape.vocab_size, options, rows)
    clock.restart()
    told = _train(trained, examples, config, head_names, dtype, device)
    report({"parameters": parameters, "dtype": str(dtype).removeprefix("torch."), **told})


def _examples(vocabulary: int, options: dict[str, Any], rows: int) -> Any:
    import numpy as np

    from snugtune.train.engine import Examples

    from .lengths import cfpb_lengths, random_tokens

    lengths = np.minimum(cfpb_lengths(rows), options["max_length"])
    y = np.random.default_rng(0).integers(0, options["classes"], rows)
    return Examples(random_tokens(lengths, vocabulary, (0, 2)), y)


def _train(
    model: Any, examples: Any, config: Any, head_names: tuple[str, ...], dtype: Any, device: Any
) -> dict[str, Any]:
    """One epoch by the engine: losses, speed and peak."""
    from snugtune.progress import Observer
    from snugtune.train.engine import Services, train

    from .datasets import subset

    memory, losses = PeakMemory(device), []

    class Steps(Observer):
        def on_step(self, info: Any) -> None:
            losses.append(info.loss)

    lengths = examples.tokens.lengths
    memory.restart()
    began = time.perf_counter()
    train(
        model, examples, subset(examples, [int(lengths.argmin())]), config, head_names=head_names,
        pad_token_id=1, dtype=dtype, device=device, services=Services(Steps()),
    )  # fmt: skip
    synchronize(device)
    seconds = time.perf_counter() - began
    return {
        "steps": len(losses),
        "losses": losses,
        "finite": all(map(math.isfinite, losses)),
        "seconds": seconds,
        "tokens_per_s": float(lengths.sum()) / seconds,
        **memory.as_dict(),
    }


def forecast(clock: WorkClock, report: Report, *, options: dict[str, Any], rows: int, epochs: int) -> None:
    """What our own plan says of ``rows`` texts and ``epochs`` on this device, under the same cap."""
    _cap(options)
    quiet_libraries()
    clock.restart()
    config = _config(options, None).model_copy(update={"num_train_epochs": epochs})
    report({"plan": _plan(options, config, rows).as_dict()})


def _plan(options: dict[str, Any], config: Any, rows: int) -> Any:
    """Our plan for ``rows`` texts on this device; what a card calls free knows no cap on a process."""
    import numpy as np

    from snugtune.memory.devices import this_device, with_memory
    from snugtune.train.planning import plan_run

    from .lengths import cfpb_lengths

    device, cap = this_device(), options["cap_gib"]
    if cap is not None and device.kind == "cuda":
        device = with_memory(device, min(cap, device.usable_gib))
    lengths = np.minimum(cfpb_lengths(rows), options["max_length"])
    return plan_run(config, options["classes"], lengths, device)


def _contestant(kind: str, data: Any, config: Any, plan: Any) -> Any:
    from .bare import BareLoop
    from .reference import SETTINGS
    from .speed import Ours, Recipe

    if kind == "bare loop":
        return BareLoop(data, config)
    if kind in ("ours", "planned"):
        return Ours(data, config, plan=plan)
    rows = SETTINGS["per_device_train_batch_size"]
    return Recipe(data, config, kind, gradient_accumulation_steps=max(1, config.step_examples // rows))


def _config(options: dict[str, Any], tokens: int | None, packing: str = "auto") -> Any:
    from snugtune.config import FitConfig

    more = {} if tokens is None else {"tokens_per_micro_batch": tokens}
    return FitConfig(
        train="", model=options["model"], max_length=options["max_length"], packing=packing,
        effective_batch_size=options["batch"], **more,
    )  # fmt: skip


def _cap(options: dict[str, Any]) -> None:
    """Let this process have ``cap_gib`` of the card, as if it were one of that size."""
    import torch

    if torch.cuda.is_available():
        cap_card(options["cap_gib"])
