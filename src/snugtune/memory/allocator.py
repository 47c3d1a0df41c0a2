"""PyTorch's caching allocator replayed: from allocations and frees to bytes reserved on the card.

Constants and rules are those of ``c10/cuda/CUDACachingAllocator.cpp`` and ``c10/core/AllocatorConfig.h``
(PyTorch 2.13): ``kMinBlockSize``, ``kSmallSize``, ``kSmallBuffer``, ``kMinLargeAlloc``, ``kLargeBuffer``,
``kRoundLarge``; functions ``round_size``, ``get_allocation_size``, ``get_free_block``, ``should_split``,
``free_block`` and ``try_merge_blocks``. One stream; nothing is returned to the driver.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snugtune.memory.trace import Trace

MIN_BLOCK = 512
SMALL_SIZE = 1 << 20
SMALL_BUFFER = 2 << 20
MIN_LARGE = 10 << 20
LARGE_BUFFER = 20 << 20
ROUND_LARGE = 2 << 20


@dataclass
class Block:
    """A piece of a segment; ``previous`` and ``next`` are its neighbours there."""

    segment: int
    address: int
    size: int
    is_free: bool
    previous: Block | None = None
    next: Block | None = None


@dataclass(frozen=True)
class Replay:
    """Peaks in bytes: ``allocated`` counts whole blocks, as ``torch.cuda.memory_allocated`` does.

    ``reserved`` (N,) is what is reserved after each event.
    """

    peak_allocated: int
    peak_reserved: int
    reserved: NDArray[np.int64]


class CachingAllocator:
    """The rules for one stream, with or without ``expandable_segments``."""

    def __init__(self, *, expandable_segments: bool = False) -> None:
        self.expandable = expandable_segments
        self.allocated = self.reserved = 0
        self.peak_allocated = self.peak_reserved = 0
        self.segments = 0
        # Free blocks of the small and of the large pool, ordered by size, then address.
        self.free_blocks: dict[bool, list[tuple[int, int, int]]] = {True: [], False: []}
        self._by_place: dict[tuple[int, int], Block] = {}
        self._tails: dict[bool, Block | None] = {True: None, False: None}

    def allocate(self, n_bytes: int) -> Block:
        """A block of at least ``n_bytes``."""
        size = round_size(n_bytes)
        is_small = size <= SMALL_SIZE
        block = self._best_fit(size, is_small)
        if block is None:
            block = self._grow(size, is_small) if self.expandable else self._new_segment(size, is_small)
        if self._should_split(block, size, is_small):
            self._split(block, size, is_small)
        block.is_free = False
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def free(self, block: Block) -> None:
        """Give a block back and merge it with free neighbours."""
        is_small = self._pool_of(block)
        self.allocated -= block.size
        block.is_free = True
        for neighbour in (block.previous, block.next):
            if neighbour is not None and neighbour.is_free:
                self._drop(neighbour, is_small)
                block = self._merge(block, neighbour, is_small)
        self._keep(block, is_small)

    def blocks(self) -> list[Block]:
        """Every block, by segment and address."""
        return [self._by_place[place] for place in sorted(self._by_place)]

    def _best_fit(self, size: int, is_small: bool) -> Block | None:
        candidates = self.free_blocks[is_small]
        at = bisect_left(candidates, (size, -1, -1))
        tail = self._tails[is_small]
        for found in range(at, len(candidates)):
            block = self._by_place[candidates[found][1:]]
            # The last block of an expandable segment counts as large as it can grow, so it comes last.
            if not (self.expandable and block is tail and found + 1 < len(candidates)):
                del candidates[found]
                return block
        return None

    def _new_segment(self, size: int, is_small: bool) -> Block:
        total = allocation_size(size)
        block = Block(self.segments * 2 + is_small, 0, total, True)
        self.segments += 1
        self._register(block)
        self._reserve(total)
        return block

    def _grow(self, size: int, is_small: bool) -> Block:
        """Map more of the pool's one expandable segment, in units of 2 or 20 MiB."""
        unit = SMALL_BUFFER if is_small else LARGE_BUFFER
        tail = self._tails[is_small]
        if tail is not None and tail.is_free:
            self._drop(tail, is_small)
            missing = size - tail.size
            added = -(-missing // unit) * unit
            tail.size += added
            self._reserve(added)
            return tail
        added = -(-size // unit) * unit
        start = tail.address + tail.size if tail is not None else 0
        block = Block(int(is_small), start, added, True, previous=tail)
        if tail is not None:
            tail.next = block
        self._register(block)
        self._tails[is_small] = block
        self._reserve(added)
        return block

    def _should_split(self, block: Block, size: int, is_small: bool) -> bool:
        remaining = block.size - size
        return remaining >= MIN_BLOCK if is_small or self.expandable else remaining > SMALL_SIZE

    def _split(self, block: Block, size: int, is_small: bool) -> None:
        rest = Block(
            block.segment, block.address + size, block.size - size, True, previous=block, next=block.next
        )
        if rest.next is not None:
            rest.next.previous = rest
        block.next, block.size = rest, size
        if self._tails[is_small] is block:
            self._tails[is_small] = rest
        self._register(rest)
        self._keep(rest, is_small)

    def _merge(self, block: Block, neighbour: Block, is_small: bool) -> Block:
        first, second = (neighbour, block) if neighbour is block.previous else (block, neighbour)
        first.size += second.size
        first.next = second.next
        if second.next is not None:
            second.next.previous = first
        if self._tails[is_small] is second:
            self._tails[is_small] = first
        del self._by_place[second.segment, second.address]
        return first

    def _pool_of(self, block: Block) -> bool:
        return bool(block.segment % 2)

    def _register(self, block: Block) -> None:
        self._by_place[block.segment, block.address] = block

    def _keep(self, block: Block, is_small: bool) -> None:
        insort(self.free_blocks[is_small], (block.size, block.segment, block.address))

    def _drop(self, block: Block, is_small: bool) -> None:
        candidates = self.free_blocks[is_small]
        del candidates[bisect_left(candidates, (block.size, block.segment, block.address))]

    def _reserve(self, n_bytes: int) -> None:
        self.reserved += n_bytes
        self.peak_reserved = max(self.peak_reserved, self.reserved)


def round_size(n_bytes: int) -> int:
    """Bytes rounded up to whole blocks of 512."""
    return max(MIN_BLOCK, -(-n_bytes // MIN_BLOCK) * MIN_BLOCK)


def allocation_size(size: int) -> int:
    """Bytes asked of the driver for a block of ``size``."""
    if size <= SMALL_SIZE:
        return SMALL_BUFFER
    if size < MIN_LARGE:
        return LARGE_BUFFER
    return -(-size // ROUND_LARGE) * ROUND_LARGE


def replay(trace: Trace, sizes: NDArray[np.int64] | None = None, *, expandable_segments: bool) -> Replay:
    """Run the trace's events through the allocator, with its own sizes or others for the same storages.

    Storages of no bytes are passed over.
    """
    allocator = CachingAllocator(expandable_segments=expandable_segments)
    n_bytes = (trace.sizes if sizes is None else sizes).tolist()
    held: dict[int, Block] = {}
    reserved = np.zeros(len(trace.events), dtype=np.int64)
    for i, event in enumerate(trace.events.tolist()):
        if not n_bytes[abs(event) - 1]:
            pass
        elif event > 0:
            held[event] = allocator.allocate(n_bytes[event - 1])
        else:
            allocator.free(held.pop(-event))
        reserved[i] = allocator.reserved
    return Replay(allocator.peak_allocated, allocator.peak_reserved, reserved)
