"""One loaded version of a run: texts to token ids, in any thread, and ids to answers, in one at a time."""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from snugtune.data.tokens import Tokens, Truncation, tokenize
from snugtune.errors import UserInputError
from snugtune.model.sharing import Copies, SharedParts, copies_of
from snugtune.predict.predictor import Dtype, Predictor
from snugtune.progress import Observer
from snugtune.serve.device import Device
from snugtune.serve.refusal import Refusal, failed, too_large
from snugtune.train.forward import INFERENCE_TOKENS

log = logging.getLogger("snugtune.serve")

CPU_BATCH_TOKENS = 2048
"""Padded tokens computed together on a CPU: past it two cores gain next to nothing, and others wait."""

CPU_PADDING_WORTH = 16
"""What a batch costs beside its tokens, in tokens: MiniLM on two cores takes some 3 ms more for each batch,
and a millisecond for 6 tokens; of larger models it is less."""

PROBE_TEXT = "This text is only there to see whether the model answers."

Direction = Literal["Left", "Right"]


@dataclass(frozen=True)
class Reading:
    """What a request says of texts longer than the model reads.

    Without ``truncate`` they are refused. ``Right`` is as the run reads them; ``Left`` cuts off the
    beginning.
    """

    truncate: bool = True
    direction: Direction = "Right"


@dataclass(frozen=True)
class Prepared:
    """A text as ``engine``'s model reads it: rows of token ids (several of a text in windows).

    ``scores`` (K,) are the baseline's, where the decision mixes them in.
    """

    engine: Engine
    rows: tuple[NDArray[np.int32], ...]
    scores: NDArray[np.float32] | None
    seconds: float

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(map(len, self.rows))

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.rows))


@dataclass(frozen=True)
class Answer:
    """What the run says of a text: the model's ``logits`` and calibrated ``probabilities``, (K,) both."""

    engine: Engine
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float64]


Answered = Answer | Refusal


class Engine:
    """A run as it was when it was loaded; it never changes."""

    def __init__(
        self, predictor: Predictor, *, sha: str, dtype: str = "float32", tokenizers: Copies | None = None
    ) -> None:
        self.predictor, self.sha, self.dtype = predictor, sha, dtype
        self.loaded_at = time.time()
        self.tokens_per_s: float | None = None
        self._tokenizers = tokenizers or copies_of(predictor.tokenizer, 1)

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        device: Device,
        dtype: Dtype = "auto",
        workers: int = 1,
        observer: Observer | None = None,
        shared: SharedParts | None = None,
    ) -> Engine:
        """Load a run folder and have it classify a text on ``device``; the rest as for ``Predictor.load``.

        Raises:
            UserInputError: as ``Predictor.load``, or its first answer is not a distribution.
        """
        # Read before the model: a folder that is replaced in between is loaded once more, not overlooked.
        sha = run_sha(run)
        predictor = Predictor.load(run, dtype=dtype, observer=observer, shared=shared)
        copies = shared.copies if shared else copies_of
        tokenizers = copies(predictor.tokenizer, max(1, workers))
        number = "float32" if dtype == "auto" else dtype
        engine = cls(predictor, sha=sha, dtype=number, tokenizers=tokenizers)
        if not device.submit(engine.works).result():
            raise UserInputError(f"The model in {run} loads and does not classify; train it again.")
        return engine

    @property
    def max_input_length(self) -> int:
        """Tokens of a text of which nothing is cut off; of windows, see ``Limits.max_text_tokens``."""
        return self.predictor.max_length

    @property
    def batch_tokens(self) -> int:
        """Tokens, padding included, that are best computed together."""
        return CPU_BATCH_TOKENS if self._on_cpu else INFERENCE_TOKENS

    @property
    def padding_worth(self) -> int | None:
        """Tokens of padding that a text may add to a batch rather than being computed by itself.

        None: any number, for a full batch takes hardly longer than a small one.
        """
        return CPU_PADDING_WORTH if self._on_cpu else None

    @property
    def _on_cpu(self) -> bool:
        return self.predictor.device.type == "cpu"

    def works(self) -> bool:
        """Whether a text known to be good is answered; measures the speed, too. For the device's thread."""
        try:
            (prepared,) = self.prepare([PROBE_TEXT * 40], Reading(), max_text_tokens=sys.maxsize)
            if isinstance(prepared, Refusal):
                return False
            self.answers([prepared])
            began = time.perf_counter()
            (answer,) = self.answers([prepared])
            self.tokens_per_s = prepared.tokens / max(time.perf_counter() - began, 1e-6)
        except Exception as error:
            log.error("The model does not answer: %s", type(error).__name__)
            return False
        # A record whose labels are not those of the model would name the wrong ones.
        return isinstance(answer, Answer) and len(answer.logits) == len(self.predictor.labels.names)

    def prepare(
        self, texts: Sequence[str], reading: Reading, *, max_text_tokens: int
    ) -> list[Prepared | Refusal]:
        """Each of ``texts`` as the model reads it, or why it cannot: one never spoils another."""
        tokenizer = self._tokenizers.get()
        try:
            return self._prepare(texts, reading, max_text_tokens, tokenizer)
        except BaseException as error:  # the tokenizer's library raises panics past Exception
            if len(texts) == 1:
                log.warning("A text could not be tokenized: %s", type(error).__name__)
                return [Refusal(422, "Tokenizer", "This text cannot be tokenized.")]
        finally:
            self._tokenizers.put(tokenizer)
        return [
            found
            for text in texts
            for found in self.prepare([text], reading, max_text_tokens=max_text_tokens)
        ]

    def _prepare(
        self, texts: Sequence[str], reading: Reading, max_text_tokens: int, tokenizer: Any
    ) -> list[Prepared | Refusal]:
        began = time.perf_counter()
        predictor = self.predictor
        tokenizer.truncation_side = "left" if reading.direction == "Left" else "right"
        if reading.direction == "Left":
            tokens = tokenize(texts, tokenizer, predictor.max_length, "truncate")
        else:
            tokens = predictor.tokens(texts, tokenizer)
        scores = predictor.baseline_scores(texts)
        seconds = (time.perf_counter() - began) / len(texts)
        assert tokens.whole is not None
        windows = tokens.long_texts == "windows"
        longest = max_text_tokens if windows else predictor.max_length
        found: list[Prepared | Refusal] = []
        for i, length in enumerate(tokens.whole.tolist()):
            if length > longest and (windows or not reading.truncate):
                sentence = f"`inputs` must have at most {longest} tokens. Given: {length}"
                found.append(too_large(sentence))
                continue
            rows = tokens.rows_of(np.array([i])).tolist()
            ids = tuple(tokens.ids[row] for row in rows)
            found.append(Prepared(self, ids, None if scores is None else scores[i], seconds))
        return found

    def answers(self, texts: Sequence[Prepared]) -> list[Answered]:
        """What the run says of each of ``texts``, which were computed together."""
        predictor = self.predictor
        logits = predictor.logits(_together(texts, predictor.max_length))
        scores = None
        if predictor.decision.uses_baseline:
            scores = np.stack([text.scores for text in texts if text.scores is not None])
        probabilities = predictor.decision.probabilities(logits, scores)
        finite = np.isfinite(logits).all(1) & np.isfinite(probabilities).all(1)
        return [
            Answer(self, logits[i], probabilities[i]) if good else failed("A score is not a number.")
            for i, good in enumerate(np.atleast_1d(finite).tolist())
        ]


def _together(texts: Sequence[Prepared], max_length: int) -> Tokens:
    rows = [row for text in texts for row in text.rows]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    starts = None
    if len(rows) > len(texts):
        starts = np.cumsum([0, *(len(text.rows) for text in texts)])
    nothing_cut = Truncation(max_length, len(texts), 0, int(lengths.sum()), 0)
    return Tokens(rows, lengths, nothing_cut, starts=starts)


def run_sha(run: str | Path) -> str:
    """SHA-256 of the run's record: it changes with every fit.

    Raises:
        UserInputError: there is none.
    """
    try:
        return hashlib.sha256((Path(run) / "run.json").read_bytes()).hexdigest()
    except OSError:
        raise UserInputError(
            f"{run} is not a finished run (it has no readable run.json); check the path."
        ) from None
