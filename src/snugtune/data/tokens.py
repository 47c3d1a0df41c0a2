"""Texts to token ids, once, with a count of what ``max_length`` cuts off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from snugtune.data.long_texts import Frame, LongTexts
from snugtune.errors import UserInputError, is_of_library

TEXTS_AT_A_TIME = 1024
"""Texts per call of the tokenizer: enough for its threads, while what it notes of each token soon goes."""


@dataclass(frozen=True)
class Truncation:
    """What ``max_length`` cuts off: rows and tokens, of how many."""

    max_length: int
    rows: int
    rows_cut: int
    tokens: int
    tokens_cut: int

    def sentence(self) -> str:
        """One line for the person at the keyboard."""
        if not self.rows_cut:
            return f"No text is longer than {self.max_length} tokens; nothing is cut off."
        share = 100 * self.tokens_cut / self.tokens
        return (
            f"max_length={self.max_length} cuts {self.rows_cut:,} of {self.rows:,} texts "
            f"and {share:.1f} % of all tokens."
        )


@dataclass(frozen=True)
class FlatRows(Sequence[NDArray[np.int32]]):
    """Rows of different lengths in one array: row i is ``flat[starts[i]:starts[i + 1]]``, a view of it."""

    flat: NDArray[np.int32]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, i: int) -> NDArray[np.int32]: ...
    @overload
    def __getitem__(self, i: slice) -> list[NDArray[np.int32]]: ...
    def __getitem__(self, i: int | slice) -> NDArray[np.int32] | list[NDArray[np.int32]]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        i = i % len(self)
        return self.flat[self.starts[i] : self.starts[i + 1]]


@dataclass(frozen=True)
class Tokens:
    """Token ids of N texts in R rows, each with the tokenizer's special tokens, none over ``max_length``.

    ``lengths`` (R,) are the rows', ``whole`` (N,) those of the texts before the cut (None where nobody
    counted). ``starts`` (N + 1,): the rows of text i are those from ``starts[i]`` up to ``starts[i + 1]``;
    None where every text is one row. ``long_texts`` says how texts longer than that were read.
    """

    ids: Sequence[NDArray[np.int32]]
    lengths: NDArray[np.int64]
    truncation: Truncation
    whole: NDArray[np.int64] | None = None
    starts: NDArray[np.int64] | None = None
    long_texts: LongTexts = "truncate"

    def __len__(self) -> int:
        return len(self.ids) if self.starts is None else len(self.starts) - 1

    @property
    def rows(self) -> int:
        """R, how many rows the model reads."""
        return len(self.ids)

    @cached_property
    def text_of_row(self) -> NDArray[np.int64]:
        """Which text each row is of: (R,), ascending."""
        if self.starts is None:
            return np.arange(len(self.ids))
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @property
    def text_lengths(self) -> NDArray[np.int64]:
        """Tokens that are read of each text, a window's overlap not counted twice: (N,)."""
        if self.starts is None:
            return self.lengths
        assert self.whole is not None
        return self.whole

    def rows_of(self, texts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of some ``texts`` (their indices), text by text; a text given twice has its rows twice."""
        if self.starts is None:
            return texts
        counts = self.starts[texts + 1] - self.starts[texts]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.asarray(np.repeat(self.starts[texts], counts) + within)

    def share_of_text(self, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """What each of ``rows`` counts: 1 / rows of its text, (B,); None where that is 1 for all."""
        if self.starts is None:
            return None
        return np.asarray(1 / np.diff(self.starts)[self.text_of_row[rows]], dtype=np.float32)

    def pooled(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """``values`` (R, X) averaged over each text's rows: (N, X). A single row stays as it is."""
        if self.starts is None or not len(values):
            return values
        counts = np.diff(self.starts).astype(np.float32)
        return np.asarray(np.add.reduceat(values, self.starts[:-1], axis=0) / counts[:, None])

    def first(self, texts: int) -> Tokens:
        """The same of the first ``texts`` texts alone."""
        if texts == len(self):
            return self
        assert self.whole is not None
        rows = texts if self.starts is None else int(self.starts[texts])
        lengths, whole = self.lengths[:rows], self.whole[:texts]
        return replace(
            self, ids=self.ids[:rows], lengths=lengths, whole=whole,
            truncation=_truncation(self.truncation.max_length, whole, lengths, self.long_texts),
            starts=None if self.starts is None else self.starts[: texts + 1],
        )  # fmt: skip

    @property
    def price(self) -> float:
        """Tokens read, in those of the texts cut off at ``max_length``: what this way costs in time."""
        if self.whole is None or not self.whole.sum():
            return 1.0
        return float(self.lengths.sum() / np.minimum(self.whole, self.truncation.max_length).sum())

    def sentence(self) -> str:
        """What becomes of texts that are too long, in one line for the person at the keyboard."""
        cut = self.truncation
        if self.starts is not None and self.rows > len(self):
            longer = int((np.diff(self.starts) > 1).sum())
            return (
                f"{longer:,} of {cut.rows:,} texts are longer than max_length={cut.max_length} and read in "
                f"windows: {self.price:.2f} times the tokens of texts cut off there."
            )
        told = cut.sentence()
        return f"{told[:-1]}, from the middle." if self.long_texts == "head_tail" and cut.rows_cut else told


def choose_rows(parts: Sequence[Tokens], rows: NDArray[np.int64]) -> Tokens:
    """The ``rows`` of tokenized ``parts`` counted one after another; ``truncation`` is the first part's."""
    starts = np.cumsum([0, *(part.rows for part in parts)])
    of = np.searchsorted(starts, rows, side="right") - 1
    places = list(zip(of.tolist(), (rows - starts[of]).tolist(), strict=True))
    lengths = np.concatenate([part.lengths for part in parts])[rows]
    return Tokens([parts[k].ids[i] for k, i in places], lengths, parts[0].truncation)


def tokenize(
    texts: Sequence[str], tokenizer: Any, max_length: int, long_texts: LongTexts = "truncate"
) -> Tokens:
    """Tokenize with a fast Transformers tokenizer. White space around a text is never read.

    Training rows come here stripped, a cell to predict does not; to a byte-level tokenizer the two would be
    different texts, and a decoder would pool a trailing line break.

    It runs on all cores by itself unless the environment says ``TOKENIZERS_PARALLELISM=false``, and takes
    some hundred bytes per token while it runs, so it is given few texts at a time. Texts longer than
    ``max_length`` are read as ``long_texts`` says; to cut them off, they alone are tokenized a second time,
    with truncation, so that what is cut off is known exactly and special tokens stay in place.

    Raises:
        UserInputError: ``max_length`` leaves no room beside the special tokens, or the tokenizer is damaged.
    """
    special = int(tokenizer.num_special_tokens_to_add(pair=False))
    if max_length <= special:
        # The tokenizer would cut nothing at all, without a word.
        raise UserInputError(
            f"max_length={max_length} leaves no room for text beside the model's {special} special tokens; "
            f"give at least {special + 1}."
        )
    flat = bytearray()  # grows in place, where joining arrays would hold all of them twice
    full, rows_of_text = np.empty((2, len(texts)), dtype=np.int64)
    lengths: list[int] = []
    for start in range(0, len(texts), TEXTS_AT_A_TIME):
        part = slice(start, min(start + TEXTS_AT_A_TIME, len(texts)))
        try:
            full[part], rows = _encode_part(texts[part], tokenizer, max_length, long_texts)
        except BaseException as error:
            # Of a tokenizer.json that does not fit together, the library raises and panics.
            if isinstance(error, (UserInputError, MemoryError)) or not is_of_library(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserInputError(f"The model's tokenizer cannot read these texts: {reason}.") from error
        rows_of_text[part] = [len(of_text) for of_text in rows]
        ids = list(chain.from_iterable(rows))
        lengths += map(len, ids)
        flat += np.fromiter(chain.from_iterable(ids), dtype=np.int32).tobytes()
    of_rows = np.array(lengths, dtype=np.int64)
    return Tokens(
        FlatRows(np.frombuffer(flat, dtype=np.int32), _starts(of_rows)), of_rows,
        _truncation(max_length, full, of_rows, long_texts), full,
        _starts(rows_of_text) if long_texts == "windows" else None, long_texts,
    )  # fmt: skip


def _starts(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of ``sizes`` (N,) begins if they lie one after the other, and the end of all: (N + 1,)."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])


def _truncation(
    max_length: int, full: NDArray[np.int64], lengths: NDArray[np.int64], long_texts: LongTexts
) -> Truncation:
    cuts = long_texts != "windows"
    return Truncation(
        max_length=max_length,
        rows=len(full),
        rows_cut=int((full > max_length).sum()) if cuts else 0,
        tokens=int(full.sum()),
        tokens_cut=int(full.sum() - lengths.sum()) if cuts else 0,
    )


def _encode_part(
    texts: Sequence[str], tokenizer: Any, max_length: int, long_texts: LongTexts
) -> tuple[list[int], list[list[list[int]]]]:
    """Full lengths of ``texts``, and the rows that are read of each."""
    texts = [text.strip() for text in texts]
    ids = _encode_whole(texts, tokenizer)
    full = [len(row) for row in ids]
    rows = [[row] for row in ids]
    too_long = [i for i, length in enumerate(full) if length > max_length]
    if not too_long:
        return full, rows
    if long_texts == "truncate":
        cut = tokenizer([texts[i] for i in too_long], truncation=True, max_length=max_length)["input_ids"]
        for i, row in zip(too_long, cut, strict=True):
            rows[i] = [row]
        return full, rows
    frame = Frame.of(tokenizer)
    for i in too_long:
        windows = long_texts == "windows"
        rows[i] = frame.windows(ids[i], max_length) if windows else [frame.head_and_tail(ids[i], max_length)]
    return full, rows


def _encode_whole(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """``tokenizer(texts)["input_ids"]``, without a note of each token's place in its text: a third sooner."""
    backend = tokenizer.backend_tokenizer
    # What the tokenizer's own call sets before each batch.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts))]
