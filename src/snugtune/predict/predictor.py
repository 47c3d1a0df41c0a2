"""A finished run, ready to classify texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import nn

from snugtune.data.columns import choose_columns, join_texts
from snugtune.data.labels import LabelSet
from snugtune.data.table import iter_tables
from snugtune.data.tokens import tokenize
from snugtune.errors import UserInputError
from snugtune.evaluate.calibration import softmax
from snugtune.model import attention
from snugtune.model.artifact import load_model
from snugtune.model.precision import pick_device
from snugtune.train.forward import predict_logits


@dataclass(frozen=True)
class Predictor:
    """The merged model of a run with its labels, calibration and review threshold."""

    model: nn.Module
    tokenizer: Any
    labels: LabelSet
    text_columns: tuple[str, ...]
    label_column: str
    max_length: int
    temperature: float
    confidence_threshold: float
    device: torch.device

    @classmethod
    def load(cls, run: str | Path) -> Predictor:
        """Load a run folder.

        Raises:
            UserInputError: ``run`` is not the folder of a finished run.
        """
        run = Path(run)
        try:
            record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserInputError(
                f"{run} is not a finished run (it has no readable run.json); check the path."
            ) from None
        device = pick_device()
        model, tokenizer = load_model(
            run / record["model"]["folder"], dtype=torch.float32, attn_implementation=attention.register()
        )
        return cls(
            model=model.to(device).eval(),
            tokenizer=tokenizer,
            labels=LabelSet(tuple(record["labels"]), record["label_aliases"]),
            text_columns=tuple(record["columns"]["text"]),
            label_column=record["columns"]["label"],
            max_length=record["model"]["max_length"],
            temperature=record["decision"]["temperature"],
            confidence_threshold=record["decision"]["confidence_threshold"],
            device=device,
        )

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Calibrated class probabilities (N, K), columns in the order of ``labels.names``."""
        if not len(texts):
            return np.empty((0, len(self.labels.names)))
        tokens = tokenize(texts, self.tokenizer, self.max_length)
        logits = predict_logits(
            self.model, tokens, pad_token_id=self.tokenizer.pad_token_id, device=self.device
        )
        return np.asarray(softmax(logits, self.temperature), dtype=np.float64)

    def columns(self, texts: Sequence[str]) -> pl.DataFrame:
        """The columns ``predict`` adds to a table, one row per text; an empty text always needs review."""
        probabilities = self.probabilities(texts)
        names = np.array(self.labels.names, dtype=object)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :3]
        confidence = probabilities.max(1, initial=0.0)
        empty = np.array([not text.strip() for text in texts], dtype=bool)

        def choice(k: int) -> list[str | None]:
            return names[order[:, k]].tolist() if k < order.shape[1] else [None] * len(texts)

        return pl.DataFrame(
            {
                "predicted_label": choice(0),
                "confidence": confidence,
                "needs_review": (confidence < self.confidence_threshold) | empty,
                "second_label": choice(1),
                "third_label": choice(2),
            },
            schema_overrides={"third_label": pl.String},
        )

    def tables(
        self,
        source: str | Path,
        *,
        text: Sequence[str] | None = None,
        rows_per_batch: int = 10_000,
        **reading: Any,
    ) -> Iterator[pl.DataFrame]:
        """The table ``source`` batch by batch, in its order, with the predicted columns added."""
        for frame in iter_tables(source, rows_per_batch=rows_per_batch, **reading):
            columns = choose_columns(
                frame, source=str(source), text=text or self.text_columns, label=None, need_label=False
            )
            added = self.columns(join_texts(frame, columns.text))
            yield frame.drop(added.columns, strict=False).hstack(added)
