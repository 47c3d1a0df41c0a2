"""Texts to token ids, once, with a count of what ``max_length`` cuts off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from snugtune.errors import UserInputError

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
    """Token ids of N texts, each with the tokenizer's special tokens and at most ``max_length`` long.

    ``lengths`` (N,) are theirs, ``whole`` (N,) those of the texts before the cut (None where nobody counted).
    """

    ids: Sequence[NDArray[np.int32]]
    lengths: NDArray[np.int64]
    truncation: Truncation
    whole: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)


def choose_rows(parts: Sequence[Tokens], rows: NDArray[np.int64]) -> Tokens:
    """The ``rows`` of tokenized ``parts`` counted one after another; ``truncation`` is the first part's."""
    starts = np.cumsum([0, *map(len, parts)])
    of = np.searchsorted(starts, rows, side="right") - 1
    places = list(zip(of.tolist(), (rows - starts[of]).tolist(), strict=True))
    lengths = np.concatenate([part.lengths for part in parts])[rows]
    return Tokens([parts[k].ids[i] for k, i in places], lengths, parts[0].truncation)


def tokenize(texts: Sequence[str], tokenizer: Any, max_length: int) -> Tokens:
    """Tokenize with a fast Transformers tokenizer.

    It runs on all cores by itself unless the environment says ``TOKENIZERS_PARALLELISM=false``, and takes
    some hundred bytes per token while it runs, so it is given few texts at a time. Only the texts that are
    too long are tokenized a second time, with truncation, so that what is cut off is known exactly and
    special tokens stay in place.

    Raises:
        UserInputError: ``max_length`` leaves no room beside the special tokens.
    """
    special = int(tokenizer.num_special_tokens_to_add(pair=False))
    if max_length <= special:
        # The tokenizer would cut nothing at all, without a word.
        raise UserInputError(
            f"max_length={max_length} leaves no room for text beside the model's {special} special tokens; "
            f"give at least {special + 1}."
        )
    flat = bytearray()  # grows in place, where joining arrays would hold all of them twice
    full, lengths = np.empty((2, len(texts)), dtype=np.int64)
    for start in range(0, len(texts), TEXTS_AT_A_TIME):
        part = slice(start, min(start + TEXTS_AT_A_TIME, len(texts)))
        full[part], ids = _encode_part(texts[part], tokenizer, max_length)
        lengths[part] = [len(row) for row in ids]
        flat += np.fromiter(chain.from_iterable(ids), dtype=np.int32).tobytes()
    starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    truncation = Truncation(
        max_length=max_length,
        rows=len(texts),
        rows_cut=int((full > max_length).sum()),
        tokens=int(full.sum()),
        tokens_cut=int((full - lengths).sum()),
    )
    return Tokens(FlatRows(np.frombuffer(flat, dtype=np.int32), starts), lengths, truncation, full)


def _encode_part(texts: Sequence[str], tokenizer: Any, max_length: int) -> tuple[list[int], list[list[int]]]:
    """Full lengths of ``texts`` and their ids, cut to ``max_length``."""
    ids = _encode_whole(texts, tokenizer)
    full = [len(row) for row in ids]
    too_long = [i for i, length in enumerate(full) if length > max_length]
    if too_long:
        cut = tokenizer([texts[i] for i in too_long], truncation=True, max_length=max_length)["input_ids"]
        for i, row in zip(too_long, cut, strict=True):
            ids[i] = row
    return full, ids


def _encode_whole(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """``tokenizer(texts)["input_ids"]``, without a note of each token's place in its text: a third sooner."""
    backend = tokenizer.backend_tokenizer
    # What the tokenizer's own call sets before each batch.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts))]
