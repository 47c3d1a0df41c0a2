"""The split of label sets: every row once, groups whole, every label in training, shares as asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snugtune.data.split import PARTS
from snugtune.data.stratify import split_label_sets
from snugtune.errors import UserInputError


@st.composite
def tables(draw):
    rows, labels = draw(st.integers(1, 60)), draw(st.integers(1, 5))
    cells = draw(st.lists(st.integers(0, 1), min_size=rows * labels, max_size=rows * labels))
    groups = draw(st.lists(st.integers(0, rows), min_size=rows, max_size=rows))
    return np.array(cells, dtype=np.int8).reshape(rows, labels), np.array(groups)


@settings(max_examples=150, deadline=None)
@given(tables(), st.integers(0, 5), st.sampled_from([0.0, 0.1, 0.3]))
def test_groups_stay_whole_and_no_label_leaves_training(table, seed, test):
    y, groups = table
    split = split_label_sets(y, groups, seed=seed, validation=0.1, test=test)
    assert set(split.part) <= set(PARTS)
    for group in np.unique(groups):
        assert len(set(split.part[groups == group])) == 1
    train = y[split.indices("train")]
    assert (train.any(axis=0) == y.any(axis=0)).all()
    if not test:
        assert not len(split.indices("test"))


def test_each_label_is_spread_as_asked():
    rng = np.random.default_rng(0)
    y = (rng.random((5000, 12)) < np.geomspace(0.01, 0.5, 12)).astype(np.int8)
    split = split_label_sets(y, np.arange(5000), validation=0.1, test=0.2, seed=1)
    for name, share in (("validation", 0.1), ("test", 0.2)):
        rows = split.indices(name)
        assert abs(len(rows) - share * 5000) <= 5
        assert np.abs(y[rows].sum(axis=0) - share * y.sum(axis=0)).max() <= 3


def test_a_random_split_is_not_as_even():
    """Guards the test above: what it demands, chance does not give."""
    rng = np.random.default_rng(0)
    y = (rng.random((5000, 12)) < np.geomspace(0.01, 0.5, 12)).astype(np.int8)
    rows = rng.permutation(5000)[:500]
    assert np.abs(y[rows].sum(axis=0) - 0.1 * y.sum(axis=0)).max() > 3


def test_the_seed_decides():
    y = (np.random.default_rng(0).random((200, 4)) < 0.3).astype(np.int8)
    parts = [split_label_sets(y, np.arange(200), seed=seed).part for seed in (1, 1, 2)]
    assert (parts[0] == parts[1]).all()
    assert (parts[0] != parts[2]).any()


def test_validation_is_capped():
    y = (np.random.default_rng(0).random((1000, 3)) < 0.4).astype(np.int8)
    split = split_label_sets(y, np.arange(1000), max_validation=30)
    assert abs(len(split.indices("validation")) - 30) <= 2


def test_fractions_that_leave_nothing_are_refused():
    with pytest.raises(UserInputError, match="leave nothing to train on"):
        split_label_sets(np.ones((3, 2), np.int8), np.arange(3), validation=0.6, test=0.4)
