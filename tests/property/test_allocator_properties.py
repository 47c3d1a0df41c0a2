from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from snugtune.memory.allocator import LARGE_BUFFER, CachingAllocator, round_size

SIZES = st.one_of(st.integers(1, 4096), st.integers(1, 3 << 20), st.integers(1, 64 << 20))
ACTIONS = st.lists(st.tuples(SIZES, st.booleans(), st.integers(0, 10**6)), max_size=60)


@given(ACTIONS, st.booleans())
def test_blocks_tile_the_reserved_memory(actions, expandable):
    allocator = CachingAllocator(expandable_segments=expandable)
    held, asked = [], []
    for size, frees, which in actions:
        if frees and held:
            at = which % len(held)
            allocator.free(held.pop(at))
            asked.pop(at)
        else:
            held.append(allocator.allocate(size))
            asked.append(size)
        check(allocator, held, asked)
    for block in held:
        allocator.free(block)
    assert allocator.allocated == 0
    # Everything merged again: one free block in each segment.
    blocks = allocator.blocks()
    assert len(blocks) == len({block.segment for block in blocks})


def check(allocator, held, asked):
    blocks = allocator.blocks()
    assert sum(block.size for block in blocks) == allocator.reserved
    assert sum(block.size for block in blocks if not block.is_free) == allocator.allocated
    assert allocator.allocated <= allocator.reserved <= allocator.peak_reserved
    assert allocator.allocated <= allocator.peak_allocated <= allocator.peak_reserved
    for first, second in pairwise(blocks):
        if first.segment == second.segment:
            assert first.address + first.size == second.address
            assert not (first.is_free and second.is_free)
            assert first.next is second
            assert second.previous is first
    assert [block.is_free for block in held] == [False] * len(held)
    assert len({(block.segment, block.address) for block in held}) == len(held)
    assert all(block.size >= round_size(size) for block, size in zip(held, asked, strict=True))
    free = {(block.segment, block.address) for block in blocks if block.is_free}
    listed = {(segment, address) for pool in allocator.free_blocks.values() for _, segment, address in pool}
    assert free == listed


@given(st.lists(SIZES, min_size=1, max_size=40))
def test_without_frees_expandable_segments_waste_less_than_one_unit_a_pool(sizes):
    allocator = CachingAllocator(expandable_segments=True)
    for size in sizes:
        allocator.allocate(size)
    assert allocator.reserved - sum(map(round_size, sizes)) < 2 * LARGE_BUFFER
