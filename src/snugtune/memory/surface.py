"""Peak memory at any micro-batch and length, from few traces.

The code of a step allocates the same storages in the same order whatever the batch; only their sizes change.
Each storage is affine in the micro-batch (it has a batch dimension or none) and at most quadratic in the
length (attention's masks and scores). So two traces give every size at one length exactly, three lengths
give the rest, and the peak follows by adding up or replaying the same events, never by fitting peaks. What
kernels take beside results has thresholds: there the numbers it hangs on are affine, and its rule is asked.

Texts that are packed need not be of one length: a row of as many tokens takes more memory the more texts it
holds. Each storage is affine in the texts, in the tokens, or grows with both; two more traces tell which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from snugtune.memory.allocator import replay
from snugtune.memory.trace import BEST, STATE, WEIGHTS, Storage, Trace, Work
from snugtune.memory.workspaces import CUBLAS_BYTES, Demand

LASTING = (WEIGHTS, STATE, BEST)
"""Categories of tensors that stay from the first step to the last."""

MICRO_BATCHES = (2, 3)
"""Two sizes above one: with a single example, copies of transposed tensors can fall away."""

NEGLIGIBLE = 0.02
"""Share of a reserved peak that may come after the tensors' own before it is told where it comes."""

ALIGNMENT = 32
"""Attention kernels pad to multiples of 32, so interpolation runs through lengths of that grid."""


class Rehearses(Protocol):
    """Something that can trace a step at a micro-batch and length."""

    def trace(self, micro_batch: int, length: int, *, work: bool = False, tokens: int | None = None) -> Trace:
        """The trace of one step; ``tokens`` are those of all packed texts, if these are of other lengths."""


@dataclass(frozen=True)
class Column:
    """One length: every size is affine between ``few`` and ``more``, the traces at ``MICRO_BATCHES``."""

    few: Trace
    more: Trace


@dataclass(frozen=True)
class Row:
    """Packed texts of one longest length: the traces at ``MICRO_BATCHES`` texts of as many lengths' tokens.

    ``corners`` are those of few texts with few tokens, few with more, more with few, more with more.
    """

    corners: tuple[Trace, Trace, Trace, Trace]


class Surface:
    """Peak bytes over (micro_batch, length).

    Args:
        rehearsal: traces steps.
        allocator: False adds up tensors only, as on a CPU.
        expandable_segments: how the card's allocator is set.
        library_bytes: of one workspace of cuBLAS on the card.
    """

    def __init__(
        self, rehearsal: Rehearses, *, allocator: bool = True, expandable_segments: bool = True,
        library_bytes: int = CUBLAS_BYTES,
    ) -> None:  # fmt: skip
        self.rehearsal, self.allocator, self.expandable = rehearsal, allocator, expandable_segments
        self.library_bytes = library_bytes
        self._columns: dict[int, Column | None] = {}
        self._rows: dict[int, Row | None] = {}
        self._peaks: dict[tuple[int, int], int] = {}

    def peak_bytes(self, micro_batch: int, length: int) -> int:
        """Predicted peak: reserved bytes on a card, tensors' bytes on a CPU."""
        key = micro_batch, length
        if key not in self._peaks:
            self._peaks[key] = self._peak_bytes(micro_batch, length)
        return self._peaks[key]

    def _peak_bytes(self, micro_batch: int, length: int) -> int:
        if micro_batch < min(MICRO_BATCHES) or (column := self.column(length)) is None:
            return self.exact_peak_bytes(micro_batch, length)
        return self._peak(column.few, self._sizes(column, micro_batch))

    def lasting_bytes(self, length: int) -> int:
        """What is there throughout: weights, optimiser state, the best weights so far."""
        trace = self.rehearsal.trace(MICRO_BATCHES[0], length, work=True)
        return sum(s.n_bytes for s in trace.storages if s.category in LASTING)

    def trace(self, micro_batch: int, length: int) -> Trace:
        """The trace at this point with its work: put together where two traces give it exactly, else made."""
        small = micro_batch < min(MICRO_BATCHES)
        if small or (column := self.column(length)) is None or not _same_work(column):
            return self.exact_trace(micro_batch, length)
        storages = _resized(column.few, self._sizes(column, micro_batch))
        few, more = column.few.work, column.more.work
        share = _share(micro_batch)
        work = Work(
            few.flops + share * (more.flops - few.flops),
            few.n_bytes + share * (more.n_bytes - few.n_bytes),
            few.phase,
        )
        return Trace(storages, column.few.events, work)

    def exact_trace(self, micro_batch: int, length: int) -> Trace:
        """The same, made at this very shape."""
        return self._with_library(self.rehearsal.trace(micro_batch, length, work=True))

    def exact_peak_bytes(self, micro_batch: int, length: int) -> int:
        """The same from a trace of this very shape."""
        return self._peak_of(self.rehearsal.trace(micro_batch, length, work=True))

    def packed_peak_bytes(self, texts: int, tokens: int, length: int) -> int:
        """The peak with so many packed ``texts`` of so many ``tokens`` in all, the longest of ``length``."""
        row = self.row(length)
        if row is None or texts < min(MICRO_BATCHES):
            return self._peak_of(self.rehearsal.trace(texts, length, work=True, tokens=tokens))
        return self._peak(row.corners[0], self._packed_sizes(row, texts, tokens / length))

    def packed_trace(self, texts: int, tokens: int, length: int) -> Trace:
        """The trace of such a step, without its work."""
        row = self.row(length)
        if row is None or texts < min(MICRO_BATCHES):
            return self._with_library(self.rehearsal.trace(texts, length, work=True, tokens=tokens))
        few = row.corners[0]
        return Trace(_resized(few, self._packed_sizes(row, texts, tokens / length)), few.events)

    def heaviest(self, packed: Sequence[tuple[int, int]], length: int) -> tuple[int, int]:
        """Which of the micro-batches ``packed``, (texts, tokens) of at most ``length``, has the most bytes
        of tensors at its peak; of those with no fewer texts and tokens than another only.
        """
        row, candidates = self.row(length), _outermost(packed)
        if row is None:
            return candidates[-1]
        few = row.corners[0]

        def bytes_of(shape: tuple[int, int]) -> int:
            texts, tokens = shape
            return int(few.running_bytes(self._packed_sizes(row, texts, tokens / length)).max(initial=0))

        return max(candidates, key=bytes_of)

    def peak_event(self, trace: Trace) -> int:
        """Which event of a ``trace`` makes its peak: the tensors' own or, if the reserved one comes later for
        want of a hole that is large enough, that.
        """
        if not self.allocator:
            return trace.peak_event
        replayed = replay(trace, expandable_segments=self.expandable)
        enough = (1 - NEGLIGIBLE) * replayed.peak_reserved
        if replayed.reserved[trace.peak_event] >= enough:
            return trace.peak_event
        return int(np.argmax(replayed.reserved >= enough))

    def interpolated_peak_bytes(self, micro_batch: int, length: int, lengths: tuple[int, int, int]) -> int:
        """The peak at a length that is not traced, through three that are.

        Only with ``chunked_evaluation``: the usual validation batch is a division by the length.

        Raises:
            ValueError: the step's code differs between the lengths, so that storages do not correspond.
        """
        columns = [self.column(grid) for grid in lengths]
        first = columns[0]
        if first is None or any(c is None or not _same_events(first.few, c.few) for c in columns):
            raise ValueError(f"the steps at lengths {lengths} do not allocate alike")
        values = [self._sizes(c, micro_batch) for c in columns if c is not None]
        weights = _lagrange(length, lengths)
        sizes = np.rint(sum(w * v for w, v in zip(weights, values, strict=True))).astype(np.int64)
        share = _share(micro_batch)
        corners = [corner for c in columns if c is not None for corner in (c.few, c.more)]
        shares = [w * s for w in weights for s in (1 - share, share)]
        sizes = _with_demands(sizes, corners, shares)
        return self._peak(first.few, sizes)

    def max_micro_batch(self, budget_bytes: int, length: int, limit: int) -> int:
        """The largest micro-batch up to ``limit`` whose peak is within the budget; 0 if not even one is."""
        return largest(lambda b: self.peak_bytes(b, length) <= budget_bytes, limit)

    def column(self, length: int) -> Column | None:
        """Sizes at ``length`` as functions of the micro-batch; None if the events differ between two."""
        if length not in self._columns:
            few, more = (self.rehearsal.trace(b, length, work=True) for b in MICRO_BATCHES)
            self._columns[length] = Column(few, more) if _same_events(few, more) else None
        return self._columns[length]

    def row(self, length: int) -> Row | None:
        """Sizes of packed texts of up to ``length`` as functions of their number and tokens; None if the
        events differ.
        """
        if length not in self._rows:
            few, more = MICRO_BATCHES
            corners = tuple(
                self.rehearsal.trace(texts, length, work=True, tokens=times * length)
                for texts in (few, more)
                for times in (few, more)
            )
            alike = all(_same_events(corners[0], other) for other in corners[1:])
            self._rows[length] = Row(corners) if alike else None  # type: ignore[arg-type]
        return self._rows[length]

    def _sizes(self, column: Column, micro_batch: int) -> NDArray[np.int64]:
        share = _share(micro_batch)
        return self._mixed((column.few, column.more), (1 - share, share))

    def _packed_sizes(self, row: Row, texts: int, lengths: float) -> NDArray[np.int64]:
        """Sizes of so many ``texts`` with the tokens of so many ``lengths``."""
        more_texts, more_tokens = _share(texts), _share(lengths)
        shares = [t * n for t in (1 - more_texts, more_texts) for n in (1 - more_tokens, more_tokens)]
        return self._mixed(row.corners, shares)

    def _mixed(self, corners: Sequence[Trace], shares: Sequence[float]) -> NDArray[np.int64]:
        """Sizes between (or beyond) the ``corners``, of each its share."""
        mixed = sum(share * corner.sizes for share, corner in zip(shares, corners, strict=True))
        sizes = np.rint(np.maximum(mixed, 1)).astype(np.int64)
        return corners[0].sized(_with_demands(sizes, corners, shares), self.library_bytes)

    def _with_library(self, trace: Trace) -> Trace:
        return replace(trace, storages=_resized(trace, trace.sized(trace.sizes, self.library_bytes)))

    def _peak_of(self, trace: Trace) -> int:
        return self._peak(trace, trace.sized(trace.sizes, self.library_bytes))

    def _peak(self, trace: Trace, sizes: NDArray[np.int64]) -> int:
        if self.allocator:
            return replay(trace, sizes, expandable_segments=self.expandable).peak_reserved
        return int(trace.running_bytes(sizes).max(initial=0))


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number from 1 to ``limit`` that fits, where all smaller ones do; 0 if not even 1 does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def aligned(length: int) -> int:
    """``length`` rounded up to the kernels' grid."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def _share(micro_batch: float) -> float:
    """What the second of ``MICRO_BATCHES`` counts in a straight line through both."""
    few, more = MICRO_BATCHES
    return (micro_batch - few) / (more - few)


def _with_demands(
    sizes: NDArray[np.int64], corners: Sequence[Trace], shares: Sequence[float]
) -> NDArray[np.int64]:
    """``sizes`` with those of the operators' demands by their rules, at numbers between the ``corners``."""
    demands: list[Mapping[int, Demand]] = [corner.demands for corner in corners]
    for i, demand in demands[0].items():
        numbers = np.rint(np.dot(shares, [other[i].sizes for other in demands])).astype(int).tolist()
        sizes[i] = replace(demand, sizes=tuple(numbers)).n_bytes
    return sizes


def _outermost(packed: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of (texts, tokens) those of which no other has as many of both, by texts, the most of them last."""
    found: list[tuple[int, int]] = []
    for texts, tokens in sorted(set(packed), reverse=True):
        if not found or tokens > found[-1][1]:
            found.append((texts, tokens))
    return found[::-1]


def _same_events(one: Trace, other: Trace) -> bool:
    return len(one.storages) == len(other.storages) and np.array_equal(one.events, other.events)


def _same_work(column: Column) -> bool:
    return len(column.few.work.flops) == len(column.more.work.flops)


def _resized(trace: Trace, sizes: NDArray[np.int64]) -> list[Storage]:
    return [replace(s, n_bytes=n) for s, n in zip(trace.storages, sizes.tolist(), strict=True)]


def _lagrange(x: float, points: tuple[int, int, int]) -> list[float]:
    weights = []
    for i, xi in enumerate(points):
        others = [xj for j, xj in enumerate(points) if j != i]
        weights.append(float(np.prod([(x - xj) / (xi - xj) for xj in others])))
    return weights
