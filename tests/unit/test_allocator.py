import numpy as np
import pytest

from snugtune.memory.allocator import (
    LARGE_BUFFER,
    SMALL_BUFFER,
    CachingAllocator,
    allocation_size,
    replay,
    round_size,
)
from snugtune.memory.trace import Storage, Trace

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize(("asked", "rounded"), [(1, 512), (512, 512), (513, 1024), (MIB, MIB)])
def test_rounding(asked, rounded):
    assert round_size(asked) == rounded


@pytest.mark.parametrize(
    ("size", "segment"),
    [(512, 2 * MIB), (MIB, 2 * MIB), (MIB + 512, 20 * MIB), (10 * MIB - 512, 20 * MIB), (10 * MIB, 10 * MIB),
     (11 * MIB, 12 * MIB), (21 * MIB, 22 * MIB)],
)  # fmt: skip
def test_segments_come_in_the_allocator_s_three_sizes(size, segment):
    assert allocation_size(size) == segment


def test_small_blocks_share_one_segment():
    allocator = CachingAllocator()
    for _ in range(4):
        allocator.allocate(512 * KIB)
    assert (allocator.reserved, allocator.allocated) == (SMALL_BUFFER, 2 * MIB)
    allocator.allocate(1)
    assert allocator.reserved == 2 * SMALL_BUFFER


def test_a_large_remainder_below_one_mebibyte_is_not_split():
    allocator = CachingAllocator()
    block = allocator.allocate(LARGE_BUFFER - MIB)
    # 19 MiB is asked of the driver as 20 MiB, and the block keeps the odd mebibyte.
    assert block.size == LARGE_BUFFER
    assert allocator.allocated == LARGE_BUFFER


def test_freed_memory_is_used_again_and_best_fit_wins():
    allocator = CachingAllocator()
    large, small = allocator.allocate(40 * MIB), allocator.allocate(12 * MIB)
    allocator.free(large)
    allocator.free(small)
    assert allocator.allocate(12 * MIB) is small
    assert allocator.reserved == 52 * MIB


def test_neighbours_merge():
    allocator = CachingAllocator()
    blocks = [allocator.allocate(5 * MIB) for _ in range(4)]
    assert allocator.reserved == LARGE_BUFFER
    for block in (blocks[0], blocks[2], blocks[1], blocks[3]):
        allocator.free(block)
    assert [block.size for block in allocator.blocks()] == [LARGE_BUFFER]


def test_expandable_segments_grow_where_the_others_fragment():
    def grow(allocator):
        held = None
        for size in range(30, 90, 10):
            if held is not None:
                allocator.free(held)
            held = allocator.allocate(size * MIB)
        return allocator.reserved

    # Each larger block needs a new segment, while an expandable one only grows by what is missing.
    assert grow(CachingAllocator()) == sum(range(30, 90, 10)) * MIB
    assert grow(CachingAllocator(expandable_segments=True)) == 80 * MIB


def test_replay_of_a_trace_by_hand():
    storages = [Storage(n * MIB, "", "", "") for n in (30, 10, 15)]
    trace = Trace(storages, np.array([1, 2, -1, 3, -2, -3]))
    assert trace.peak_bytes == 40 * MIB
    result = replay(trace, expandable_segments=False)
    # The 15 MiB fit into what the 30 MiB left.
    assert (result.peak_allocated, result.peak_reserved) == (40 * MIB, 40 * MIB)
    doubled = replay(trace, 2 * trace.sizes, expandable_segments=False)
    assert doubled.peak_reserved == 80 * MIB
