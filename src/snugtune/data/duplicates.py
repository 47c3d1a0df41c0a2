"""Near-duplicate texts by MinHash and banding (Broder 1997).

Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, ch. 3, gives the banding. Shingles of all texts
lie in one array, and bands are made one after the other: a million texts take a few bytes per word.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 64
BANDS = 16
"""16 bands of 4 rows: a pair at Jaccard .8 shares a band with probability .9998, at .5 .64, at .3 .12."""

SHINGLE_WORDS = 3
_WORD = re.compile(r"\b(?![x\d]+\b)\w+")  # no numbers, and no XXXX redactions once case is folded
_TEXTS_AT_A_TIME = 4096
_SHINGLES_AT_A_TIME = 1 << 16  # as uint64 they stay in a processor's second-level cache


def near_duplicate_groups(
    texts: Sequence[str], *, threshold: float = 0.8, seed: int = 0
) -> NDArray[np.int64]:
    """Group ids (N,): texts whose word 3-shingles overlap by Jaccard >= ``threshold`` share one.

    A group's id is the index of its first text. Case, digits and XXXX redactions are ignored. Within a bucket
    each text is compared with the first only, so that a template sent ten thousand times costs linear time.
    Words are runs of letters: in scripts written without spaces only equal phrases are found.
    """
    shingles = _Shingles.of(texts)
    parent = np.arange(len(texts))
    for signatures in _bands(shingles, seed):
        later, first = _bucket_pairs(signatures)
        parent = _roots(parent)
        apart = parent[later] != parent[first]
        later, first = later[apart], first[apart]
        alike = shingles.jaccard(later, first) >= threshold
        for i, j in zip(later[alike].tolist(), first[alike].tolist(), strict=True):
            a, b = _root(parent, i), _root(parent, j)
            parent[max(a, b)] = min(a, b)
    return _roots(parent)


@dataclass(frozen=True)
class _Shingles:
    """The distinct shingles of N texts: those of text i, rising, are ``values[starts[i]:starts[i + 1]]``."""

    values: NDArray[np.uint32]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> _Shingles:
        values, counts = bytearray(), [np.zeros(1, dtype=np.int64)]
        for start in range(0, len(texts), _TEXTS_AT_A_TIME):
            hashed = [_hashed(text) for text in texts[start : start + _TEXTS_AT_A_TIME]]
            lengths = np.fromiter(map(len, hashed), dtype=np.int64, count=len(hashed))
            flat = np.fromiter(chain.from_iterable(hashed), dtype=np.uint64, count=int(lengths.sum()))
            distinct = np.unique(_numbered(flat, lengths))
            values += distinct.astype(np.uint32).tobytes()
            counts.append(np.bincount((distinct >> np.uint64(32)).astype(np.int64), minlength=len(hashed)))
        return cls(np.frombuffer(values, dtype=np.uint32), np.cumsum(np.concatenate(counts)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Distinct shingles of each text (N,), at least 1."""
        return np.diff(self.starts)

    def jaccard(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
        """Overlap of the texts ``a[k]`` and ``b[k]``, for each k."""
        lengths = self.lengths
        shared = np.empty(len(a), dtype=np.int64)
        for part in _slices(lengths[a] + lengths[b], _SHINGLES_AT_A_TIME):
            shared[part] = self._shared(a[part], b[part])
        return np.asarray(shared / (lengths[a] + lengths[b] - shared))

    def _shared(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
        ours, theirs = self._of(a), self._of(b)
        at = np.minimum(np.searchsorted(ours, theirs), len(ours) - 1)
        found = theirs[ours[at] == theirs] >> np.uint64(32)
        return np.bincount(found.astype(np.int64), minlength=len(a))

    def _of(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Shingles of ``rows`` with the place in ``rows`` in the upper half: rising throughout."""
        lengths = self.lengths[rows]
        before = np.cumsum(lengths) - lengths
        where = np.arange(lengths.sum()) + np.repeat(self.starts[rows] - before, lengths)
        return _numbered(self.values[where].astype(np.uint64), lengths)


def _hashed(text: str) -> list[int]:
    """CRC-32 of each run of ``SHINGLE_WORDS`` words; of all words where there are fewer."""
    folded = text.casefold()
    # A text of nothing but digits or signs is its own word, or all such texts would be one group.
    words = _WORD.findall(folded) or [folded.strip()]
    if len(words) < SHINGLE_WORDS:
        return [zlib.crc32(" ".join(words).encode())]
    runs = zip(*(words[k:] for k in range(SHINGLE_WORDS)), strict=False)  # the shifted lists end earlier
    return list(map(zlib.crc32, map(str.encode, map(" ".join, runs))))


def _numbered(values: NDArray[np.uint64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """32-bit ``values``, ``lengths[k]`` of them for the k-th text, with k in the upper half."""
    return values | np.repeat(np.arange(len(lengths), dtype=np.uint64) << np.uint64(32), lengths)


def _bands(shingles: _Shingles, seed: int) -> Iterator[NDArray[np.uint64]]:
    """MinHash signatures of each band (N, 2), two permutations' minima in each number.

    By multiply-shift hashing (Dietzfelbinger et al. 1997) of 32-bit shingles.
    """
    rng = np.random.default_rng(seed)
    multipliers = rng.integers(1, 2**63, PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
    offsets = rng.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)
    for chosen in np.arange(PERMUTATIONS).reshape(BANDS, -1):
        minima = _minima(shingles, multipliers[chosen], offsets[chosen])
        yield (minima[:, ::2] << np.uint64(32)) | minima[:, 1::2]


def _minima(
    shingles: _Shingles, multipliers: NDArray[np.uint64], offsets: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """The smallest 32-bit hash of each text under each of P permutations (N, P)."""
    minima = np.empty((len(shingles.lengths), len(multipliers)), dtype=np.uint64)
    for part in _slices(shingles.lengths, _SHINGLES_AT_A_TIME):
        begin, end = shingles.starts[part.start], shingles.starts[part.stop]
        values = shingles.values[begin:end].astype(np.uint64)
        firsts = shingles.starts[part] - begin
        for p, (multiplier, offset) in enumerate(zip(multipliers, offsets, strict=True)):
            minima[part, p] = np.minimum.reduceat(values * multiplier + offset, firsts)
    # Shifted last: the smallest of all has the smallest upper half.
    return minima >> np.uint64(32)


def _bucket_pairs(signatures: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each text whose signature an earlier one has, and the first text that has it."""
    order = np.lexsort(signatures.T)  # stable: the first of a bucket is its earliest
    ranked = signatures[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    first = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    return order[~begins], first[~begins]


def _slices(sizes: NDArray[np.int64], budget: int) -> Iterator[slice]:
    """Consecutive items whose sizes sum to at most ``budget``; one larger than that is alone."""
    ends = np.cumsum(sizes)
    start = done = 0
    while start < len(sizes):
        stop = max(start + 1, int(np.searchsorted(ends, done + budget, side="right")))
        yield slice(start, stop)
        start, done = stop, int(ends[stop - 1])


def _roots(parent: NDArray[np.int64]) -> NDArray[np.int64]:
    """The root of every text (N,)."""
    while not np.array_equal(above := parent[parent], parent):
        parent = above
    return parent


def _root(parent: NDArray[np.int64], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return i
