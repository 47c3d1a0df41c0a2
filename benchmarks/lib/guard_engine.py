"""Trainings by the engine in one process, one after the other; the memory of each is cut at some moment."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from snugtune.config import FitConfig
from snugtune.data.labels import LabelSet
from snugtune.data.tokens import Tokens
from snugtune.errors import RestartNeededError
from snugtune.faults import is_out_of_memory
from snugtune.memory.guard import Guard, Limit
from snugtune.model.adapter import load_trainable_state, trainable_state, wrap
from snugtune.model.backbone import load_for_fit
from snugtune.model.checkpointing import checkpoint_layers
from snugtune.model.head import find_head
from snugtune.model.precision import compute_dtype, pick_device
from snugtune.progress import Observer, StepInfo
from snugtune.train.engine import Examples, Services, TrainResult, train
from snugtune.train.retreats import retreats
from snugtune.units import gib

from .capped_worker import cap_card
from .common import quiet_libraries
from .guard_cases import (
    CARD,
    NEW_PROCESS,
    PRECISIONS,
    EngineCase,
    counted,
    distance,
    judged,
    key_of,
    limit_of,
    losses_apart,
)
from .lengths import cfpb_lengths, random_tokens
from .ours import packs
from .scarcity import scarcity_of
from .turns import Report, WorkClock

CLASSES = 4
STEP_EXAMPLES = 16
CUTS = 4
"""A step is one micro-batch where there is memory; the undisturbed training to compare with has so many."""

LOST_AT = 4
"""The step whose first micro-batch a planted fault loses."""


def run(clock: WorkClock, report: Report, *, cases: list[EngineCase], options: dict[str, Any]) -> None:
    """All ``cases`` until ``options["deadline_at"]``; a contestant of ``turns.run_in_turns``.

    Points have ``undisturbed`` and ``planted`` by precision, and ``case`` by key.
    """
    quiet_libraries()
    cap_card(None)
    # Every recovery collects garbage; what was imported need not be looked through each time.
    gc.collect()
    gc.freeze()
    clock.restart()
    for precision in PRECISIONS:
        chosen = [case for case in cases if case.precision == precision]
        if chosen and time.time() < options["deadline_at"]:
            _run_precision(precision, chosen, options, report)


def _run_precision(
    precision: str, cases: Iterable[EngineCase], options: dict[str, Any], report: Report
) -> None:
    gc.collect()  # the trial before is gone, or it would be held beside this one
    trial = Trial(options, precision)
    report({"undisturbed": {precision: trial.undisturbed()}})
    report({"planted": {precision: trial.planted()}})
    for case in cases:
        if time.time() > options["deadline_at"]:
            return
        report({"case": {key_of(case): trial.disturbed(case)}})


@dataclass(frozen=True)
class Trained:
    """What one training gave: its result, the weights after the last step, seconds."""

    result: TrainResult
    weights: dict[str, Any]
    seconds: float

    @property
    def losses(self) -> list[float]:
        """Of every step."""
        return [row["loss"] for row in self.result.metrics if "loss" in row]


class Trial:
    """One model, one set of texts, trained again and again from the same weights.

    ``options`` name the ``model``, the number of ``rows`` and ``max_length``.
    """

    def __init__(self, options: dict[str, Any], precision: str) -> None:
        self._precision, self._device = precision, pick_device()
        self._tokens = STEP_EXAMPLES * options["max_length"]
        self._config = FitConfig(
            train="", model=options["model"], max_length=options["max_length"], num_train_epochs=1,
            effective_batch_size=STEP_EXAMPLES, tokens_per_micro_batch=self._tokens, probe_start=False,
            early_stopping_patience=None, bf16=precision == "bfloat16",
        )  # fmt: skip
        self._dtype = compute_dtype(self._config, self._device)
        self._memory = scarcity_of(self._device)
        self._load()
        self._start = trainable_state(self._model)
        self._training = self._examples(options["rows"], 0)
        self._validation = self._examples(max(CLASSES, options["rows"] // 8), 1)

    def undisturbed(self) -> dict[str, Any]:
        """Three trainings with enough memory: as planned, again, and in smaller micro-batches.

        What the two others are apart from the first is the noise of the card and of the cut.
        """
        self._expected = self._plenty(self._tokens)
        again: list[Trained] = []
        held_bytes, peak_bytes = self._memory.measured(lambda: again.append(self._plenty(self._tokens)))
        cut = self._plenty(self._tokens // CUTS)
        apart = {name: self._apart(of) for name, of in (("again", again[0]), ("cut", cut))}
        self._limits = [limit_of(self._precision, values) for values in zip(*apart.values(), strict=True)]
        self._seconds, self._held_bytes, self._peak_bytes = again[0].seconds, held_bytes, peak_bytes
        return {
            "seconds": self._seconds, "steps": self._expected.result.steps, "held_gib": gib(held_bytes),
            "peak_gib": gib(peak_bytes), "packed": self._expected.result.packed,
            "noise": {name: dict(zip(("weights", "losses"), of, strict=True)) for name, of in apart.items()},
            "limits": dict(zip(("weights", "losses"), self._limits, strict=True)),
        }  # fmt: skip

    def planted(self) -> dict[str, Any]:
        """A training whose guard loses a micro-batch of one step: beyond the limits if these are any good."""
        guard = _Loses(self._memory.guard_memory, Limit(self._tokens // CUTS))
        self._reset(guard)
        trained = self._train(guard)
        return self._judged({"level": "planted", "precision": self._precision, "ended": CARD}, trained)

    def disturbed(self, case: EngineCase) -> dict[str, Any]:
        """``case``: what happened, and how far what was trained is from the undisturbed training."""
        guard = self._guard(self._tokens)
        self._reset(guard)
        limit_bytes = round(self._held_bytes + case.room * (self._peak_bytes - self._held_bytes))
        until_s = None if case.until_share is None else case.until_share * self._seconds
        told = {"level": case.level, **asdict(case), "limit_gib": gib(max(0, limit_bytes))}
        trained = None
        began = time.perf_counter()
        try:
            with self._memory.cut(limit_bytes, case.from_share * self._seconds, until_s):
                trained = self._train(guard)
            told |= {"ended": CARD, "packed": trained.result.packed}
        except RestartNeededError as error:
            told |= {"ended": NEW_PROCESS, "why": str(error)[:300]}
        except Exception as error:
            unguarded = ", which nothing guarded" if is_out_of_memory(error) else ""
            told["failed"] = f"{type(error).__name__}{unguarded}: {error}"[:1000]
        told |= {"seconds": time.perf_counter() - began, "events": counted(guard.events)}
        self._mend(told)
        return self._judged(told, trained)

    def _judged(self, told: dict[str, Any], trained: Trained | None) -> dict[str, Any]:
        apart = (None, None) if trained is None else self._apart(trained)
        return judged(told, weights=(apart[0], self._limits[0]), losses=(apart[1], self._limits[1]))

    def _apart(self, trained: Trained) -> tuple[float, float]:
        return (
            distance(trained.weights, self._expected.weights),
            losses_apart(trained.losses, self._expected.losses),
        )

    def _plenty(self, tokens: int) -> Trained:
        """A training that nothing disturbs."""
        guard = self._guard(tokens)
        self._reset(guard)
        return self._train(guard)

    def _guard(self, tokens: int) -> Guard:
        return Guard(self._memory.guard_memory, Limit(tokens), Limit(tokens))

    def _reset(self, guard: Guard) -> None:
        """The model as it was, with what ``guard`` can give way with."""
        checkpoint_layers(self._model, 0)
        load_trainable_state(self._model, self._start)
        guard.retreats = retreats(self._model, 0)

    def _train(self, guard: Guard) -> Trained:
        last = _Last(lambda: trainable_state(self._model))
        began = time.perf_counter()
        result = train(
            self._model, self._training, self._validation, self._config, head_names=self._head_names,
            pad_token_id=self._pad_token_id, dtype=self._dtype, device=self._device,
            services=Services(last, guard),
            packed=packs(self._model_config, self._config, self._device, self._dtype),
        )  # fmt: skip
        seconds = time.perf_counter() - began
        return Trained(result, _as_arrays(last.weights), seconds)

    def _mend(self, told: dict[str, Any]) -> None:
        """After a retreat, or an end halfway, the next case gets a model that nothing was done to."""
        touched = any(event.startswith("retreat") for event in told["events"])
        if touched or told.get("ended") != CARD:
            del self._model
            gc.collect()
            self._load()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self) -> None:
        torch.manual_seed(self._config.seed)
        labels = LabelSet(tuple(f"class {i}" for i in range(CLASSES)))
        backbone = load_for_fit(self._config, labels, dtype=self._dtype)
        self._model_config = backbone.model.config
        self._pad_token_id = int(backbone.tokenizer.pad_token_id)
        ends = backbone.tokenizer("")["input_ids"]
        self._ends = ends[0], ends[-1]
        self._head_names = find_head(backbone.model).modules_to_save
        self._model = wrap(backbone.model.to(self._device), self._config)

    def _examples(self, rows: int, seed: int) -> Examples:
        """Texts as long as complaints, of ids of no meaning but for the second, which tells the class."""
        lengths = np.clip(cfpb_lengths(rows, seed), 3, self._config.max_length)
        vocabulary = self._model_config.vocab_size
        tokens: Tokens = random_tokens(lengths, vocabulary, self._ends, seed)
        y = np.random.default_rng(seed).integers(0, CLASSES, rows)
        for ids, label in zip(tokens.ids, y.tolist(), strict=True):
            ids[1] = vocabulary // 2 + label
        return Examples(tokens, y)


class _Last(Observer):
    """Keeps the weights that the last step left; the best are chosen by scores, which may be near ties."""

    def __init__(self, copy: Callable[[], dict[str, torch.Tensor]]) -> None:
        self._copy = copy
        self.weights: dict[str, torch.Tensor] = {}

    def on_step(self, info: StepInfo) -> None:
        """Copied after the last one."""
        if info.step == info.steps:
            self.weights = self._copy()


class _Loses(Guard):
    """Loses the first micro-batch of a step of training."""

    steps = 0

    def each(self, parts: Any, lengths: Any, work: Any, limit: Any, *, during: str, **options: Any) -> None:
        """As it should be, but for one step."""
        parts = list(parts)
        # What is tried before the first step is one micro-batch at a time.
        if during == "training" and len(parts) > 1:
            self.steps += 1
            parts = parts[self.steps == LOST_AT :]
        super().each(parts, lengths, work, limit, during=during, **options)


def _as_arrays(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: tensor.float().numpy() for name, tensor in weights.items()}
