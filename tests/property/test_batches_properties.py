import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from snugtune.data.batches import epoch_steps, micro_batches, steps_per_epoch

lengths_lists = st.lists(st.integers(1, 512), min_size=1, max_size=300)


@given(lengths_lists, st.integers(1, 64), st.integers(0, 5))
def test_an_epoch_visits_every_example_once(lengths, step_examples, seed):
    lengths = np.array(lengths)
    steps = list(epoch_steps(lengths, step_examples, np.random.default_rng(seed)))
    assert sorted(np.concatenate(steps)) == list(range(len(lengths)))
    assert len(steps) == steps_per_epoch(len(lengths), step_examples)
    assert all(len(step) <= step_examples for step in steps)


@given(
    lengths_lists, st.integers(1, 4096), st.none() | st.integers(1, 8), st.none() | st.integers(0, 600)
)  # fmt: skip
def test_micro_batches_cut_a_step_within_the_budget(lengths, budget, max_examples, max_padding):
    lengths = np.array(lengths)
    parts = micro_batches(np.arange(len(lengths)), lengths, budget, max_examples, max_padding)
    assert sorted(np.concatenate(parts)) == list(range(len(lengths)))
    for part, following in itertools.zip_longest(parts, parts[1:]):
        padded = len(part) * lengths[part].max()
        assert len(part) == 1 or padded <= budget
        assert max_examples is None or len(part) <= max_examples
        assert max_padding is None or padded - lengths[part].sum() <= max_padding
        if following is None:
            continue
        # The next text would have broken one of the limits.
        more = np.append(part, following[0])
        padded = len(more) * lengths[more].max()
        assert (
            padded > budget
            or (max_examples is not None and len(more) > max_examples)
            or (max_padding is not None and padded - lengths[more].sum() > max_padding)
        )


@given(lengths_lists, st.integers(0, 5))
def test_order_depends_on_the_seed_alone(lengths, seed):
    lengths = np.array(lengths)
    once, again = (list(epoch_steps(lengths, 8, np.random.default_rng(seed))) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
