"""The contestants of the time-to-quality benchmark; each runs in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .turns import Report, WorkClock


def ours(clock: WorkClock, report: Report, *, options: dict[str, Any]) -> None:
    """Our whole job from token ids, or ``from_texts``, with the package's default settings."""
    from snugtune.data.tokens import tokenize

    from . import ours as our_parts

    data, config, texts = _prepare(options)
    clock.restart()
    if options.get("from_texts"):  # once more, to be counted
        tokenize(texts.train, data.backbone.tokenizer, data.backbone.max_length)
    our_parts.fit_until(
        data,
        config,
        clock,
        _look(clock, report, data, options["target"]),
        look_every=options["look_every"],
        on_step=_step(clock, options["limit_s"]),
    )


def reference(
    clock: WorkClock, report: Report, *, options: dict[str, Any], learning_rate: float, padding: str
) -> None:
    """The recipe on the same training rows."""
    from .reference import train_reference

    data, config, _ = _prepare(options)
    train_reference(
        data.backbone.source,
        data.train,
        len(data.labels.names),
        _look(clock, report, data, options["target"]),
        look_every=options["look_every"],
        on_step=_step(clock, options["limit_s"]),
        on_begin=clock.restart,
        dtype=data.dtype,
        device=data.device,
        padding=padding,
        max_length=data.backbone.max_length,
        seed=config.seed,
        learning_rate=learning_rate,
    )


def _prepare(options: dict[str, Any]) -> tuple[Any, Any, Any]:
    import torch

    from snugtune.config import FitConfig

    from .common import quiet_libraries
    from .datasets import banking77, token_data

    quiet_libraries()
    torch.set_num_threads(options["threads"])
    config = FitConfig(train="", seed=options["seed"], max_length=options["max_length"])
    texts = banking77(Path(options["folder"]))
    return token_data(texts, config), config, texts


def _look(clock: WorkClock, report: Report, data: Any, target: float) -> Callable[[Any, int], bool]:
    """Measure on the test file with the clock stopped, the same way for everyone."""
    from snugtune.train.forward import predict_logits

    def look(model: Any, step: int) -> bool:
        with clock.paused():
            logits = predict_logits(
                model, data.test.tokens, pad_token_id=data.backbone.tokenizer.pad_token_id,
                device=data.device, dtype=data.dtype,
            )  # fmt: skip
            accuracy = float((logits.argmax(1) == data.test.y).mean())
            report({"work_s": clock.work_s, "step": step, "accuracy": accuracy})
        clock.offer_turn()
        return accuracy >= target

    return look


def _step(clock: WorkClock, limit_s: float) -> Callable[[], bool]:
    def on_step() -> bool:
        clock.offer_turn()
        return clock.work_s >= limit_s

    return on_step
