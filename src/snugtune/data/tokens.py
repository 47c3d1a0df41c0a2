"""Texts to token ids, once, with a count of what ``max_length`` cuts off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.errors import UserInputError


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
class Tokens:
    """Token ids of N texts, each with the tokenizer's special tokens and at most ``max_length`` long.

    ``lengths`` (N,) are theirs, ``whole`` (N,) those of the texts before the cut (None where nobody counted).
    """

    ids: list[NDArray[np.int32]]
    lengths: NDArray[np.int64]
    truncation: Truncation
    whole: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)


def tokenize(texts: Sequence[str], tokenizer: Any, max_length: int) -> Tokens:
    """Tokenize with a fast Transformers tokenizer (it runs in parallel by itself).

    Only the texts that are too long are tokenized a second time, with truncation, so that what is cut
    off is known exactly and special tokens stay in place.

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
    ids = _encode(texts, tokenizer)
    full = np.array([len(row) for row in ids], dtype=np.int64)
    too_long = np.flatnonzero(full > max_length)
    cut = _encode([texts[int(i)] for i in too_long], tokenizer, truncation=True, max_length=max_length)
    for i, row in zip(too_long, cut, strict=True):
        ids[i] = row
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    truncation = Truncation(
        max_length=max_length,
        rows=len(ids),
        rows_cut=len(too_long),
        tokens=int(full.sum()),
        tokens_cut=int((full - lengths).sum()),
    )
    return Tokens(ids, lengths, truncation, full)


def _encode(texts: Sequence[str], tokenizer: Any, **options: Any) -> list[NDArray[np.int32]]:
    if not len(texts):
        return []
    rows = tokenizer(list(texts), verbose=False, return_attention_mask=False, **options)["input_ids"]
    return [np.asarray(row, dtype=np.int32) for row in rows]
