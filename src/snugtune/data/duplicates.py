"""Near-duplicate texts by MinHash and banding (Broder 1997).

Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, ch. 3, gives the banding.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 64
BANDS = 16
"""16 bands of 4 rows: a pair at Jaccard .8 shares a band with probability .9998, at .5 .64, at .3 .12."""

SHINGLE_WORDS = 3
_WORD = re.compile(r"\w+")
_MASKED = re.compile(r"\b[x\d]+\b")


def near_duplicate_groups(
    texts: Sequence[str], *, threshold: float = 0.8, seed: int = 0
) -> NDArray[np.int64]:
    """Group ids (N,): texts whose word 3-shingles overlap by Jaccard >= ``threshold`` share one.

    Case, digits and XXXX redactions are ignored. Within a bucket each text is compared with the first
    only, so that a template sent ten thousand times costs linear time. Words are runs of letters: in scripts
    written without spaces only equal phrases are found.
    """
    shingles = [_shingles(text) for text in texts]
    signatures = _signatures(shingles, seed)
    parent = np.arange(len(texts))
    rows_per_band = PERMUTATIONS // BANDS
    for band in range(BANDS):
        keys = np.ascontiguousarray(signatures[:, band * rows_per_band : (band + 1) * rows_per_band])
        first: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            j = first.setdefault(key.tobytes(), i)
            a, b = _root(parent, i), _root(parent, j)
            if a != b and _jaccard(shingles[i], shingles[j]) >= threshold:
                parent[max(a, b)] = min(a, b)
    return np.array([_root(parent, i) for i in range(len(texts))], dtype=np.int64)


def _shingles(text: str) -> NDArray[np.uint32]:
    folded = text.casefold()
    # A text of nothing but digits or signs is its own word, or all such texts would be one group.
    words = _WORD.findall(_MASKED.sub("#", folded)) or [folded.strip()]
    size = min(SHINGLE_WORDS, max(1, len(words)))
    pieces = (" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1)))
    return np.unique(np.fromiter((zlib.crc32(piece.encode()) for piece in pieces), dtype=np.uint32))


def _signatures(shingles: Sequence[NDArray[np.uint32]], seed: int) -> NDArray[np.uint32]:
    """MinHash by multiply-shift hashing (Dietzfelbinger et al. 1997) of 32-bit shingles."""
    rng = np.random.default_rng(seed)
    multiplier = rng.integers(1, 2**63, PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
    offset = rng.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)
    out = np.empty((len(shingles), PERMUTATIONS), dtype=np.uint32)
    for i, row in enumerate(shingles):
        hashed = (row.astype(np.uint64)[:, None] * multiplier + offset) >> np.uint64(32)
        out[i] = hashed.min(axis=0)
    return out


def _jaccard(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _root(parent: NDArray[np.int64], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return i
