import numpy as np
import pytest

from snugtune.data.split import split_rows
from snugtune.data.stratify import split_label_sets
from snugtune.errors import UserInputError


def test_the_smallest_table_has_a_validation_row():
    y = np.repeat([0, 1], 5)
    for seed in range(100):
        assert len(split_rows(y, np.arange(10), seed=seed).indices("validation")) == 1


def test_totals_are_right_over_many_classes():
    y = np.random.default_rng(0).integers(0, 100, 3000)
    for seed in range(10):
        split = split_rows(y, np.arange(3000), seed=seed)
        assert abs(len(split.indices("validation")) - 300) <= 1
        assert abs(len(split.indices("test")) - 300) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_rare_classes_are_kept_for_training(seed):
    y = np.array([0] * 50 + [1] * 4 + [2] * 2)
    groups = np.array([*range(50), 50, 50, 50, 50, 51, 52])  # class 1: one group; class 2: two
    split = split_rows(y, groups, validation=0.4, test=0.4, seed=seed)
    assert (split.part[y == 1] == "train").all()
    assert (split.part[y == 2] == "train").any()


def test_a_template_with_a_row_of_a_rare_class_does_not_fill_a_part():
    """The rare class is dealt first; its group must fit the common one's share, too."""
    y = np.array([0] * 2000 + [1] * 10)
    groups = np.arange(2010)
    groups[:500] = groups[2000] = 5000  # a quarter of the common class, and one rare row
    for seed in range(40):
        split = split_rows(y, groups, seed=seed)
        assert split.part[0] == "train"
        for name in ("validation", "test"):
            held = split.indices(name)
            assert len(np.unique(groups[held])) == len(held)
            assert abs((y[held] == 0).sum() - 200) <= 1
            assert (y[held] == 1).sum() == 1


def test_a_template_of_several_labels_a_text_does_not_fill_a_part():
    y = np.zeros((1000, 3), dtype=np.int8)
    y[np.arange(1000), np.arange(1000) % 2] = 1
    y[::97, 2] = 1
    groups = np.arange(1000)
    groups[:300] = 0
    for seed in range(20):
        split = split_label_sets(y, groups, validation=0.1, test=0.1, seed=seed)
        assert split.part[0] == "train"
        assert 80 <= len(split.indices("validation")) <= 120


def test_no_test_part_when_none_is_asked_for():
    split = split_rows(np.repeat([0, 1], 50), np.arange(100), test=0.0)
    assert len(split.indices("test")) == 0
    assert len(split.indices("validation")) == 10


def test_seeds_differ_and_are_recorded():
    y, groups = np.repeat([0, 1], 100), np.arange(200)
    one, two = split_rows(y, groups, seed=1), split_rows(y, groups, seed=2)
    assert not np.array_equal(one.part, two.part)
    assert (one.seed, one.groups is groups) == (1, True)


def test_validation_is_capped_in_rows():
    split = split_rows(np.repeat([0, 1], 500), np.arange(1000), validation=0.3, max_validation=20)
    assert len(split.indices("validation")) == 20
    assert len(split.indices("test")) == 100


def test_given_parts_are_kept_and_their_groups_follow():
    y = np.repeat([0, 1], 50)
    groups = np.arange(100)
    groups[60] = groups[10]
    fixed = np.full(100, "", dtype="<U10")
    fixed[[10, 11]] = "test"
    fixed[12] = "train"
    split = split_rows(y, groups, fixed=fixed)
    assert split.part[[10, 11, 12, 60]].tolist() == ["test", "test", "train", "test"]
    assert abs(len(split.indices("test")) - 10) <= 1


def test_a_wholly_given_split_is_returned_as_it_is():
    fixed = np.array(["train", "test", "train", "validation"])
    assert split_rows(np.array([0, 0, 1, 1]), np.zeros(4, int), fixed=fixed).part.tolist() == fixed.tolist()


@pytest.mark.parametrize(
    ("fixed", "words"),
    [(["train", "dev", "", ""], "Row 1 .*'dev'"), (["", "", "test", "test"], "1 classes .*class 1")],
)
def test_given_parts_that_cannot_be_used(fixed, words):
    with pytest.raises(UserInputError, match=words):
        split_rows(np.array([0, 0, 1, 1]), np.arange(4), fixed=np.array(fixed))


def test_a_common_class_does_not_take_more_of_a_rare_one_it_shares_groups_with():
    y = np.array([0] * 20 + [1] * 60)
    groups = np.array([*range(20), *range(60)])  # each rare row shares its group with a common one
    for seed in range(20):
        split = split_rows(y, groups, seed=seed)
        assert (y[split.indices("validation")] == 0).sum() == 2
        assert (y[split.indices("test")] == 0).sum() == 2


def test_small_classes_take_turns_in_validation():
    y = np.repeat(np.arange(4), 5)
    taken = np.zeros(4)
    for seed in range(200):
        taken += np.bincount(y[split_rows(y, np.arange(20), seed=seed).indices("validation")], minlength=4)
    assert taken.sum() == 400
    # Binomial(200, .5) has a standard deviation of 7: four of them either side.
    assert (abs(taken - 100) < 28).all()
