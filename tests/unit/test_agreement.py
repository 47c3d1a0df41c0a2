"""What the comparison of an export with its run lets pass, and what not."""

import numpy as np
import pytest

from snugtune.predict.agreement import EXACT, ROUNDED, agreement, set_agreement

rng = np.random.default_rng(0)
REFERENCE = (3 * rng.standard_normal((100, 4))).astype(np.float32)
Y = [int(row.argmax()) for row in REFERENCE]


def compared(given, y=Y):
    return agreement(given.astype(np.float32), REFERENCE, y)


def test_the_same_logits_pass_everywhere():
    found = compared(REFERENCE)
    assert found.within(EXACT)
    assert found.within(ROUNDED)
    assert (found.changed_labels, found.accuracy, found.reference_accuracy) == (0, 1.0, 1.0)
    assert "100 of 100 held-out rows keep their label, accuracy 1.0000" in found.sentence()


def test_one_logit_that_is_off_is_no_longer_exact():
    given = REFERENCE.copy()
    given[7, 2] += 2e-3
    found = compared(given)
    assert not found.within(EXACT)
    assert found.within(ROUNDED)
    assert found.largest_logit_difference == pytest.approx(2e-3, rel=1e-3)


def test_labels_that_change():
    given = REFERENCE.copy()
    given[:2] = np.roll(given[:2], 1, axis=1)
    assert compared(given).within(ROUNDED)  # 2 of 100 is 2 %
    given[:3] = np.roll(REFERENCE[:3], 1, axis=1)
    found = compared(given)
    assert found.changed_labels == 3
    assert not found.within(ROUNDED)
    assert found.accuracy == 0.97


def test_one_label_may_change_on_few_rows():
    given = REFERENCE[:10].copy()
    top = np.sort(given[0])[-2:]
    given[0, given[0].argmax()] -= top[1] - top[0] + 1e-3
    found = agreement(given, REFERENCE[:10], Y[:10])
    assert found.changed_labels == 1
    assert found.within(ROUNDED) == (found.mean_difference <= 0.02)


def test_distributions_that_are_off_although_labels_stay():
    found = compared(REFERENCE * 1.5)
    assert found.changed_labels == 0
    assert not found.within(ROUNDED)


def test_numbers_that_are_none_never_pass():
    given = REFERENCE.copy()
    given[0, 0] = np.nan
    found = compared(given)
    assert not found.within(EXACT)
    assert not found.within(ROUNDED)
    assert found.as_dict()["largest_logit_difference"] is None


def test_rows_without_a_known_label_are_not_scored():
    assert compared(REFERENCE, [None] * 100).accuracy is None
    assert compared(REFERENCE, [0, *[None] * 99]).accuracy == float(Y[0] == 0)


def test_other_classes_cannot_be_compared():
    with pytest.raises(ValueError, match="shape"):
        compared(REFERENCE[:, :3])


def sets_compared(given, thresholds=(0.5,) * 4):
    y = (REFERENCE > 0).astype(np.int8)
    y[0] = -1  # a row of labels that training never saw
    return set_agreement(given.astype(np.float32), REFERENCE, y, thresholds)


def test_label_sets_change_where_a_label_crosses_its_threshold():
    same = sets_compared(REFERENCE)
    assert same.within(EXACT)
    assert (same.changed_labels, same.accuracy, same.mean_difference) == (0, 1.0, 0.0)
    assert "100 of 100 held-out rows keep their labels" in same.sentence()
    given = REFERENCE.copy()
    given[3, 1] = -given[3, 1]
    given[4] += np.sign(given[4])  # surer, and the same labels
    found = sets_compared(given)
    assert found.changed_labels == 1
    assert found.accuracy == pytest.approx(98 / 99)
    assert found.mean_difference > 0
    # Another threshold, other labels: the same logits may or may not cross it.
    assert sets_compared(REFERENCE + 0.5).changed_labels > 0
    assert sets_compared(REFERENCE + 0.5, (1e-9,) * 4).changed_labels == 0


def test_the_mean_difference_of_label_sets_is_that_of_the_worst_label():
    given = REFERENCE.copy()
    given[:, 2] = -30
    expected = (1 / (1 + np.exp(-REFERENCE[:, 2].astype(float)))).mean()
    assert sets_compared(given).mean_difference == pytest.approx(expected, abs=1e-6)
