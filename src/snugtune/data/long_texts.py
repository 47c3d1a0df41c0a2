"""What is read of a text that is longer than the model reads: its beginning, beginning and end, or all of it.

The special tokens of a tokenizer stand before and after a text, whatever the text is, so a row is cut from
the text's own tokens and framed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from snugtune.errors import UserInputError

LongTexts = Literal["truncate", "head_tail", "windows"]
"""``truncate``: what the tokenizer keeps, for most the first tokens. ``head_tail``: the first and the last.
``windows``: all of them, in overlapping rows."""

WAYS: tuple[LongTexts, ...] = ("truncate", "head_tail", "windows")
"""The cheapest first."""

HEAD_SHARE = 128 / 510
"""Of the tokens kept, those from the beginning: 128 of 510 in Sun et al. 2019 (arXiv:1905.05583, sec. 5.3.1),
where head and tail together did better than either."""

WINDOW_OVERLAP = 1 / 8
"""Of a window that the next one reads again, so that what a border cuts is whole in one of them: a sentence
or two of 512 tokens."""


@dataclass(frozen=True)
class Frame:
    """The special tokens ``before`` and ``after`` every text."""

    before: Sequence[int]
    after: Sequence[int]

    @classmethod
    def of(cls, tokenizer: Any) -> Frame:
        """Those of a fast Transformers tokenizer, read off a text.

        Raises:
            UserInputError: it puts special tokens elsewhere.
        """
        encoding = tokenizer.backend_tokenizer.encode("a")
        special = encoding.special_tokens_mask
        start = special.index(0) if 0 in special else len(special)
        stop = len(special) - (special[::-1].index(0) if 0 in special else 0)
        found = cls(encoding.ids[:start], encoding.ids[stop:])
        if 1 in special[start:stop] or found.size != tokenizer.num_special_tokens_to_add(pair=False):
            raise UserInputError(
                "This model's tokenizer puts special tokens elsewhere than before and after a text; "
                "use long_texts=truncate."
            )
        return found

    @property
    def size(self) -> int:
        """How many special tokens there are in a row."""
        return len(self.before) + len(self.after)

    def head_and_tail(self, ids: Sequence[int], max_length: int) -> list[int]:
        """The first and the last of a framed text that is longer than ``max_length``: so many tokens."""
        text, room = self._bare(ids), max_length - self.size
        head = round(room * HEAD_SHARE)
        return [*self.before, *text[:head], *text[len(text) - (room - head) :], *self.after]

    def windows(self, ids: Sequence[int], max_length: int) -> list[list[int]]:
        """A framed text in rows of at most ``max_length`` tokens; each but the first repeats the end of the
        one before by ``WINDOW_OVERLAP``.
        """
        text, room = self._bare(ids), max_length - self.size
        step = room - int(room * WINDOW_OVERLAP)
        starts = range(0, max(1, len(text) - room + step), step)
        return [[*self.before, *text[start : start + room], *self.after] for start in starts]

    def _bare(self, ids: Sequence[int]) -> Sequence[int]:
        return ids[len(self.before) : len(ids) - len(self.after)]
