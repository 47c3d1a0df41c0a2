"""Contestants of the prediction benchmark: from texts to labels, ours and Transformers' pipeline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .common import quiet_libraries, ratio_spread, synchronize
from .memory import PeakMemory

PIPELINE = "pipeline, batch size "


@dataclass(frozen=True)
class Turn:
    """Labels of all texts, and how long they took."""

    seconds: float
    tokens: int
    labels: list[str]

    @property
    def examples_per_s(self) -> float:
        return len(self.labels) / self.seconds

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


class Labels:
    """Our predictor; ``tokens`` are those of the texts, cut at the model's maximum."""

    def __init__(self, run: Path, texts: Sequence[str], dtype: Any = "auto") -> None:
        from snugtune.data.tokens import tokenize
        from snugtune.predict.predictor import Predictor

        self._predictor, self._texts = Predictor.load(run, dtype=dtype), list(texts)
        used = self._predictor
        self.tokens = int(tokenize(self._texts, used.tokenizer, used.max_length).lengths.sum())

    def turn(self, _phase: str) -> Turn:
        began = time.perf_counter()
        labels = self._predictor.columns(self._texts)["predicted_label"].to_list()
        return Turn(time.perf_counter() - began, self.tokens, labels)


class Pipeline:
    """``pipeline("text-classification")`` on the same model, cut at the same length."""

    def __init__(self, run: Path, texts: Sequence[str], size: int, dtype: str = "float32") -> None:
        from transformers import pipeline

        cuda = torch.cuda.is_available()
        self._classify = pipeline(
            "text-classification",
            model=str(run / "model"),
            dtype=getattr(torch, dtype),
            device=0 if cuda else -1,
        )
        self._device = torch.device("cuda" if cuda else "cpu")
        self._texts, self._size = list(texts), size
        self._max_length = int(self._classify.model.config.max_position_embeddings)
        tokenizer = self._classify.tokenizer
        self._max_length = min(self._max_length, int(tokenizer.model_max_length))
        cut = tokenizer(self._texts, truncation=True, max_length=self._max_length)["input_ids"]
        self._tokens = sum(len(row) for row in cut)

    def turn(self, _phase: str) -> Turn:
        began = time.perf_counter()
        found = self._classify(
            self._texts, batch_size=self._size, truncation=True, max_length=self._max_length
        )
        synchronize(self._device)
        return Turn(time.perf_counter() - began, self._tokens, [row["label"] for row in found])


def texts_like_complaints(folder: Path | None, run: Path, rows: int) -> tuple[list[str], str]:
    """``rows`` texts spread over the lengths of complaints, and what they are: real ones if they are here."""
    import numpy as np
    from transformers import AutoTokenizer

    from .datasets import cfpb
    from .lengths import cfpb_lengths, random_texts

    if folder is None:
        tokenizer = AutoTokenizer.from_pretrained(run / "model")
        return random_texts(cfpb_lengths(rows), tokenizer), "texts as long as complaints"
    texts = cfpb(folder).test
    by_length = sorted(texts, key=len)
    spread = [by_length[int(i)] for i in (np.arange(rows) + 0.5) / rows * len(texts)]
    return [spread[i] for i in np.random.default_rng(0).permutation(rows)], "complaints"


def best_batch_size(turns: dict[str, list[Turn]]) -> int:
    """The pipeline's batch size with the best median speed."""
    import statistics

    def speed(name: str) -> float:
        return statistics.median(turn.examples_per_s for turn in turns[name])

    plain = [name for name in turns if name.startswith(PIPELINE) and "," not in name[len(PIPELINE) :]]
    return int(max(plain, key=speed)[len(PIPELINE) :])


def same_labels(labels: Sequence[str], expected: Sequence[str]) -> float:
    """The share of rows with the expected label."""
    return sum(a == b for a, b in zip(labels, expected, strict=True)) / len(expected)


def ratios(turns: dict[str, list[Turn]]) -> dict[str, dict[str, Any]]:
    """How much faster ours is than the pipeline: by default, at its best, and in half precision.

    The last stands beside turns of ours that were taken in the same rounds (``..., beside``).
    """
    speeds = {name: [turn.examples_per_s for turn in taken] for name, taken in turns.items()}
    plain = [name for name in speeds if name.startswith(PIPELINE) and "," not in name[len(PIPELINE) :]]
    found: dict[str, dict[str, Any]] = {
        name: {other: ratio_spread(speeds[name], speeds[other]) for other in plain}
        for name in ("ours", "ours, bfloat16")
    }
    for name, taken in speeds.items():
        if name.startswith(PIPELINE) and name not in plain:
            found["ours, bfloat16"][name] = ratio_spread(speeds["ours, bfloat16, beside"], taken)
    return found


def peak(run: Path, texts: list[str], size: int | None, dtype: str, threads: int) -> dict[str, float]:
    """Peak memory of predicting all texts: ours, or the pipeline with batches of ``size``."""
    quiet_libraries()
    torch.set_num_threads(threads)
    contestant = Labels(run, texts, dtype) if size is None else Pipeline(run, texts, size, dtype)
    memory = PeakMemory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    memory.restart()
    contestant.turn("prediction")
    return memory.as_dict()
