"""Rows of one part of the data: what training, validation and test are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Part:
    """Rows of one part: where they stand in their file, their texts and labels ``y``.

    ``rows`` (N,) count the file's rows below its header from 0, blank lines of a text file too.
    Where each text has one label, ``y`` (N,) are class ids, and -1 marks a label unseen in training. Where it
    may have several, ``y`` (N, K) is 1 for each that applies and else 0; a row of -1 has unseen labels only.
    ``levels`` are the cells of columns above the label, blank where they are empty. The last ``reviewed``
    rows are texts that people reviewed and no table has: their ``rows`` are -1.
    """

    rows: NDArray[np.int64]
    texts: list[str]
    y: NDArray[Any]
    levels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reviewed: int = 0

    def __len__(self) -> int:
        return len(self.y)
