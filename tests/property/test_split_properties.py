import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snugtune.data.split import split_rows
from snugtune.errors import UserInputError


@st.composite
def labelled_groups(draw):
    n = draw(st.integers(2, 200))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    y = rng.integers(0, draw(st.integers(1, 20)), n)
    groups = rng.integers(0, draw(st.integers(1, 2 * n)), n)
    return y, groups


@given(
    labelled_groups(), st.sampled_from([0.0, 0.1, 0.4]), st.sampled_from([0.0, 0.2, 0.5]), st.integers(0, 9)
)
def test_groups_stay_whole_and_every_class_is_in_training(data, validation, test, seed):
    y, groups = data
    split = split_rows(y, groups, validation=validation, test=test, seed=seed)
    for group in set(groups):
        assert len(set(split.part[groups == group])) == 1
    assert set(y[split.indices("train")]) == set(y)
    again = split_rows(y, groups, validation=validation, test=test, seed=seed)
    assert np.array_equal(split.part, again.part)


def test_sizes_are_as_asked_and_stratified():
    rng = np.random.default_rng(0)
    y = rng.choice(5, 5000, p=[0.5, 0.3, 0.1, 0.07, 0.03])
    split = split_rows(y, np.arange(5000), validation=0.1, test=0.2)
    for name, share in (("validation", 0.1), ("test", 0.2)):
        for label in range(5):
            expected = share * (y == label).sum()
            assert abs((y[split.indices(name)] == label).sum() - expected) <= 1


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.1), (0.5, 0.5)])
def test_impossible_fractions(validation, test):
    with pytest.raises(UserInputError, match="nothing to train on"):
        split_rows(np.array([0, 1]), np.array([0, 1]), validation=validation, test=test)
