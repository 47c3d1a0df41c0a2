"""A finished run, ready to classify texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from snugtune.data.columns import Columns, choose_columns, join_texts
from snugtune.data.label_sets import join_label_sets
from snugtune.data.labels import LabelSet
from snugtune.data.long_texts import LongTexts
from snugtune.data.table import iter_tables
from snugtune.data.tokens import Tokens, tokenize
from snugtune.errors import ArtifactError, UserInputError, one_line
from snugtune.evaluate.baseline import TfidfBaseline
from snugtune.evaluate.decision import Decision
from snugtune.evaluate.levels import Level
from snugtune.evaluate.multilabel.decision import LabelSetDecision
from snugtune.evaluate.multilabel.metrics import PredictedSets
from snugtune.memory.host import bound_primitive_caches
from snugtune.model import attention
from snugtune.model.artifact import load_model
from snugtune.model.first_token import read_first_token_only
from snugtune.model.folder import told_of
from snugtune.model.fused_linear import fuse_gelu, pack_linears
from snugtune.model.head import find_head
from snugtune.model.packing import plain
from snugtune.model.precision import pick_device
from snugtune.model.sharing import SharedParts
from snugtune.predict.record import read_record
from snugtune.progress import Observer
from snugtune.train.forward import predict_logits

ADDED_COLUMNS = ("predicted_label", "confidence", "needs_review", "second_label", "third_label")
"""The columns that ``predict`` adds to a table, in this order; ones of the same name are replaced."""

ADDED_SET_COLUMNS = ("predicted_label", "confidence", "needs_review", "label_confidences", "next_label")
"""The same where a text may carry several labels, which ``predicted_label`` holds in one cell.

``confidence`` is that of all of them being right and no other applying, ``label_confidences`` are those of
each, in the same order, ``next_label`` is the most probable one that was not given.
"""

ROWS_PER_BATCH = 10_000

Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]
_DTYPES = {
    "auto": torch.float32,  # what was calibrated and measured: decision 3
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}


@dataclass(frozen=True)
class Batch:
    """Some rows of a table in its order: ``frame`` as read, one joined text and K probabilities a row."""

    frame: pl.DataFrame
    columns: Columns
    texts: list[str]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class Predictor:
    """The merged model of a run with its labels and its decision; the baseline where that needs it."""

    model: nn.Module
    tokenizer: Any
    labels: LabelSet
    text_columns: tuple[str, ...]
    label_column: str | tuple[str, ...]
    max_length: int
    long_texts: LongTexts
    decision: Decision | LabelSetDecision
    baseline: TfidfBaseline | None
    device: torch.device
    levels: tuple[Level, ...] = ()

    @property
    def confidence_threshold(self) -> float:
        """At or above it a prediction needs no review."""
        return self.decision.confidence_threshold

    @property
    def several(self) -> bool:
        """Whether a text may carry several labels, or none."""
        return self.labels.separator is not None

    @property
    def added_names(self) -> tuple[str, ...]:
        """The columns that ``predict`` adds."""
        return ADDED_SET_COLUMNS if self.several else ADDED_COLUMNS

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        dtype: Dtype = "auto",
        observer: Observer | None = None,
        shared: SharedParts | None = None,
    ) -> Predictor:
        """Load a run folder.

        Args:
            run: the folder that ``fit`` wrote.
            dtype: of the weights and activations. ``auto`` is float32, in which the run was calibrated
                and measured. ``bfloat16`` is several times faster where the processor multiplies in it,
                ``float16`` on GPUs; both move probabilities in the second or third digit and so may
                change the labels of rows that were in doubt. ``int8`` is for CPUs, through ONNX Runtime; what
                it does to the run's held-out rows is measured at the first call (``predict/int8.py``). The
                last layer stays in float32.
            observer: is told whether ``int8`` keeps the run's accuracy.
            shared: what other models consist of, which this one then has in common with them where it is
                the same; the adapter stays beside its model and is computed with each text. Not for
                ``int8``.

        Raises:
            UserInputError: ``run`` is not the folder of a finished run, its model cannot be loaded, or
                ``dtype`` is not one of those, or float16 on a CPU; or what int8 needs is missing.
        """
        bound_primitive_caches()
        run, device = Path(run), torch.device("cpu") if dtype == "int8" else pick_device()
        number = _number_format(dtype, device)
        if number == torch.int8 and shared is not None:
            raise UserInputError("Models in int8 have no weights in common; choose another --dtype.")
        record = read_record(run)
        # Runs of version 0.1 have one label for each text, and no separator.
        separator = record.get("label_separator")
        labels = LabelSet(tuple(record["labels"]), record["label_aliases"], separator)
        settings: dict[str, Any] = {
            "labels": labels,
            "text_columns": tuple(record["columns"]["text"]),
            "label_column": _one_or_several(record["columns"]["label"]),
            "levels": tuple(
                Level(column, tuple(implied)) for column, implied in record.get("label_levels", {}).items()
            ),
            "max_length": record["model"]["max_length"],
            # Runs of version 0.1 do not tell it.
            "long_texts": record.get("long_texts", {}).get("chosen", "truncate"),
            "decision": checked_decision(run, record),
        }
        if number == torch.int8:
            model, tokenizer = _load_int8(run, record, observer or Observer())
        else:
            model, tokenizer = _load(run / record["model"]["folder"], number, device, shared)
        check_classes(run, model, len(labels.names))
        uses_baseline = settings["decision"].uses_baseline
        baseline = _baseline(run / "baseline", len(labels.names)) if uses_baseline else None
        model = model.to(device).eval()
        if shared is not None:
            shared.share(model)
            tokenizer = shared.tokenizer(run / record["model"]["folder"], tokenizer)
        return cls(model=model, tokenizer=tokenizer, device=device, baseline=baseline, **settings)

    def probabilities(
        self, texts: Sequence[str], *, on_rows: Callable[[int], None] | None = None
    ) -> NDArray[np.float64]:
        """Calibrated class probabilities (N, K), columns in the order of ``labels.names``.

        The one place where texts become probabilities. ``on_rows`` is told of rows as they are done.

        Raises:
            ArtifactError: one of them is no number.
        """
        if not len(texts):
            return np.empty((0, len(self.labels.names)))
        logits = self.logits(self.tokens(texts), on_rows=on_rows)
        probabilities = self.decision.probabilities(logits, self.baseline_scores(texts))
        if not np.isfinite(probabilities).all():
            raise ArtifactError(
                "The model gives answers that are no numbers: its weights are damaged, or its --dtype is too "
                "small for them; try --dtype float32, else copy the run anew."
            )
        return probabilities

    def tokens(self, texts: Sequence[str], tokenizer: Any = None) -> Tokens:
        """``texts`` as the model reads them; ``tokenizer`` is a copy of the run's, for a thread of its own.

        Raises:
            UserInputError: as ``tokenize``.
        """
        return tokenize(texts, tokenizer or self.tokenizer, self.max_length, self.long_texts)

    def logits(self, tokens: Tokens, *, on_rows: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """The model's logits (N, K) of N tokenized texts; ``on_rows`` is told of texts as they are done."""
        return predict_logits(
            self.model,
            tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            device=self.device,
            on_rows=on_rows and _by_texts(on_rows, tokens),
        )

    def baseline_scores(self, texts: Sequence[str]) -> NDArray[np.float32] | None:
        """What the decision mixes with the logits: (N, K), or None where the model decides alone."""
        return None if self.baseline is None else self.baseline.decision(texts)

    def columns(self, texts: Sequence[str]) -> pl.DataFrame:
        """The columns ``predict`` adds to a table, one row per text; an empty text always needs review."""
        return self.added_columns(texts, self.probabilities(texts))

    def label_sets(self, probabilities: NDArray[np.float64]) -> PredictedSets:
        """The labels given to each row of ``probabilities`` (N, K), where a text may carry several.

        Raises:
            TypeError: each text of this run carries one label.
        """
        if not isinstance(self.decision, LabelSetDecision):
            raise TypeError("This run gives one label to each text; take the most probable one.")
        return self.decision.predict(probabilities)

    def added_columns(self, texts: Sequence[str], probabilities: NDArray[np.float64]) -> pl.DataFrame:
        """``columns``, from probabilities (N, K) that are already known."""
        empty = np.array([not text.strip() for text in texts], dtype=bool)
        if self.several:
            predicted = self.label_sets(probabilities)
            review = (predicted.confidence < self.confidence_threshold) | empty
            return set_columns(self.labels, predicted, review)
        names = np.array(self.labels.names, dtype=object)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :3]
        confidence = probabilities.max(1, initial=0.0)

        def choice(k: int) -> list[str | None]:
            return names[order[:, k]].tolist() if k < order.shape[1] else [None] * len(texts)

        values = (
            choice(0),
            confidence,
            (confidence < self.confidence_threshold) | empty,
            choice(1),
            choice(2),
        )
        types = (pl.String, pl.Float64, pl.Boolean, pl.String, pl.String)
        return pl.DataFrame(
            dict(zip(ADDED_COLUMNS, values, strict=True)),
            schema=dict(zip(ADDED_COLUMNS, types, strict=True)),
        )

    def batches(
        self,
        source: str | Path,
        *,
        text: Sequence[str] | None = None,
        label: str | Sequence[str] | None = None,
        rows_per_batch: int = ROWS_PER_BATCH,
        observer: Observer | None = None,
        **reading: Any,
    ) -> Iterator[Batch]:
        """The table ``source`` batch by batch, in its order, with the probabilities of each row.

        ``text`` defaults to the columns trained on. The columns are chosen on the first batch and hold for
        all of them; ``reading`` is what ``iter_tables`` takes.

        Raises:
            UserInputError: the table cannot be read or has no such columns.
        """
        observer = observer or Observer()
        columns: Columns | None = None
        for frame in iter_tables(source, rows_per_batch=rows_per_batch, **reading):
            columns = columns or choose_columns(
                frame,
                source=str(source),
                text=text or self.text_columns,
                label=label,
                need_label=False,
                several=self.several,
            )
            texts = join_texts(frame, columns.text)
            yield Batch(frame, columns, texts, self.probabilities(texts, on_rows=observer.advance))

    def tables(
        self,
        source: str | Path,
        *,
        text: Sequence[str] | None = None,
        rows_per_batch: int = ROWS_PER_BATCH,
        observer: Observer | None = None,
        on_batch: Callable[[Batch], None] | None = None,
        **reading: Any,
    ) -> Iterator[pl.DataFrame]:
        """The table ``source`` batch by batch, in its order, with the predicted columns added.

        ``on_batch`` is given each batch with its probabilities, too.

        Raises:
            UserInputError: as ``batches``.
        """
        for batch in self.batches(
            source, text=text, rows_per_batch=rows_per_batch, observer=observer, **reading
        ):
            if on_batch is not None:
                on_batch(batch)
            yield replace_columns(batch.frame, self.added_columns(batch.texts, batch.probabilities))


def _by_texts(on_texts: Callable[[int], None], tokens: Tokens) -> Callable[[int], None]:
    """``on_texts`` for a pass over rows, of which a long text may have several."""
    rows = 0

    def on_rows(done: int) -> None:
        nonlocal rows
        before, rows = rows, rows + done
        on_texts(rows * len(tokens) // tokens.rows - before * len(tokens) // tokens.rows)

    return on_rows


def set_columns(labels: LabelSet, predicted: PredictedSets, review: NDArray[np.bool_]) -> pl.DataFrame:
    """`ADDED_SET_COLUMNS` of N rows; ``review`` (N,) says whether a person must look."""
    assert labels.separator is not None
    sets = labels.decode_sets(predicted.labels)
    each = [
        [f"{p:.3f}" for p in row[given]]
        for row, given in zip(predicted.probabilities, predicted.labels, strict=True)
    ]
    left_out = np.where(predicted.labels, -1.0, predicted.probabilities)
    following = [
        labels.names[k] if row[k] >= 0 else None
        for row, k in zip(left_out, left_out.argmax(axis=1).tolist(), strict=True)
    ]
    values = (
        join_label_sets(sets, labels.separator),
        np.asarray(predicted.confidence, np.float64),
        review,
        join_label_sets(each, labels.separator),
        following,
    )
    types = (pl.String, pl.Float64, pl.Boolean, pl.String, pl.String)
    return pl.DataFrame(
        dict(zip(ADDED_SET_COLUMNS, values, strict=True)),
        schema=dict(zip(ADDED_SET_COLUMNS, types, strict=True)),
    )


def replace_columns(frame: pl.DataFrame, added: pl.DataFrame) -> pl.DataFrame:
    """``added`` at the right of ``frame``, whose columns of the same names go."""
    return frame.drop(added.columns, strict=False).hstack(added)


def _one_or_several(label: str | list[str]) -> str | tuple[str, ...]:
    return tuple(label) if isinstance(label, list) else label


def _number_format(dtype: str, device: torch.device) -> torch.dtype:
    if dtype not in _DTYPES:
        raise UserInputError(f"The dtype must be one of {', '.join(_DTYPES)}, not {dtype!r}.")
    if dtype == "float16" and device.type == "cpu":
        raise UserInputError("float16 needs a GPU (on a CPU it is several times slower); use bfloat16.")
    return _DTYPES[dtype]


def _load_int8(run: Path, record: dict[str, Any], observer: Observer) -> tuple[nn.Module, Any]:
    """The run's model in 8-bit integers, and the tokenizer."""
    from transformers import AutoTokenizer

    from snugtune.predict.int8 import int8_model

    model = int8_model(run, record, observer.say)
    return model, AutoTokenizer.from_pretrained(run / record["model"]["folder"], trust_remote_code=False)


def _load(
    folder: Path, dtype: torch.dtype, device: torch.device, shared: SharedParts | None
) -> tuple[nn.Module, Any]:
    """The model in ``dtype``, but for its last layer, and the tokenizer; merged, unless it shares weights."""
    model, tokenizer = load_model(
        folder, dtype=dtype, attn_implementation=attention.register(), merge=shared is None
    )
    inner = plain(model)
    assert isinstance(inner, PreTrainedModel)
    read_first_token_only(inner)
    if dtype != torch.float32:
        # A logit of 8 has steps of 1/16 in bfloat16: classes would tie that are well apart.
        final = find_head(inner).final.float()
        final.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(),))
    if dtype == torch.bfloat16 and device.type == "cpu":
        fuse_gelu(inner)
        if shared is None:  # packed weights are copies
            pack_linears(inner)
    return model, tokenizer


def check_classes(run: Path, model: nn.Module, K: int) -> None:
    """Refuse a model of another number of classes than the run has labels.

    Raises:
        UserInputError: both numbers.
    """
    classes = getattr(getattr(model, "config", None), "num_labels", K)
    if classes != K:
        raise UserInputError(
            f"The model in {run} knows {classes:,} classes where its run.json names {K:,} labels; copy the "
            "run anew."
        )


def checked_decision(run: Path, record: dict[str, Any]) -> Decision | LabelSetDecision:
    """The decision that ``record`` (of ``run.json``) describes, tried on logits of nothing.

    Raises:
        UserInputError: it describes none.
    """
    fields, K = record["decision"], len(record["labels"])
    made = Decision if record.get("label_separator") is None else LabelSetDecision
    try:
        with np.errstate(all="ignore"):
            decision = made.from_dict(fields)
            blank = np.zeros((1, K), np.float32)
            found = decision.probabilities(blank, blank if decision.uses_baseline else None)
            if (
                found.shape != (1, K)
                or not np.isfinite(found).all()
                or found.min() < 0
                or found.max() > 1 + 1e-6
            ):
                raise ValueError("it gives no probabilities")
            if isinstance(decision, LabelSetDecision):
                decision.predict(found)
        if not isinstance(decision.confidence_threshold, (int, float)):
            raise TypeError("its confidence_threshold is no number")
    except Exception as error:  # of values of any kind, whatever computing with them raises
        reason = f"{error} is missing" if isinstance(error, KeyError) else one_line(error, 120)
        raise UserInputError(
            f"{run / 'run.json'} is not of a finished fit: its decision cannot be used ({reason})."
        ) from None
    return decision


def _baseline(folder: Path, K: int) -> TfidfBaseline:
    with told_of(f"The baseline in {folder}"):
        baseline = TfidfBaseline.load(folder)
        if baseline.decision([""]).shape != (1, K):
            raise UserInputError(f"The baseline in {folder} is one of other labels; copy the run anew.")
    return baseline
