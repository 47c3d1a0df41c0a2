"""Formulas for classes of different sizes, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from snugtune.evaluate.imbalance import class_weights, logit_shift, resampled, sampling_probabilities

COUNTS = arrays(np.int64, st.integers(1, 20), elements=st.integers(0, 10_000)).filter(
    lambda rows: rows.sum() > 0
)


@given(COUNTS, st.floats(0, 1))
def test_weights_average_one_over_the_rows(rows, strength) -> None:
    weights = class_weights(rows, strength)
    assert (weights @ rows) / rows.sum() == pytest.approx(1)
    np.testing.assert_allclose(
        weights * np.maximum(rows, 1) ** strength, weights[0] * max(rows[0], 1) ** strength
    )


def test_weights_by_hand() -> None:
    # 1 / n: balanced classes weigh the same in sum, n_k w_k = N / K.
    np.testing.assert_allclose(class_weights(np.array([10, 30]), 1.0) * [10, 30], [20, 20])
    np.testing.assert_allclose(class_weights(np.array([10, 30]), 0.0), [1, 1])
    assert class_weights(np.array([1, 0]), 0.5).tolist() == [1, 1]


def test_shift_is_the_logarithm_of_the_shares() -> None:
    np.testing.assert_allclose(logit_shift(np.array([10, 30])), np.log([0.25, 0.75]))
    np.testing.assert_allclose(logit_shift(np.array([10, 30]), 0.5), 0.5 * np.log([0.25, 0.75]))
    assert np.isfinite(logit_shift(np.array([10, 0]))).all()


def test_a_shifted_loss_teaches_the_balanced_posterior() -> None:
    # Two kinds of text, three classes: if softmax(z + log p) is P(y | x), softmax(z) is P(x | y), scaled.
    joint = np.array([[40, 9, 1], [20, 15, 15]])
    prior = joint.sum(0)
    z = np.log(joint / joint.sum(1, keepdims=True)) - logit_shift(prior)
    balanced = (joint / prior) / (joint / prior).sum(1, keepdims=True)
    np.testing.assert_allclose(softmax(z, axis=1), balanced)


def test_sampling_evens_out_by_the_square_root() -> None:
    y = np.repeat([0, 1], [900, 100])
    probabilities = sampling_probabilities(y, 2)
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities[y == 1].sum() == pytest.approx(0.25)  # sqrt(.1) / (sqrt(.1) + sqrt(.9))
    drawn = resampled(y, 2, seed=0)
    assert len(drawn) == 1000
    assert abs((y[drawn] == 1).sum() - 250) <= 1
    counts = np.bincount(drawn, minlength=1000)
    expected = probabilities * 1000
    assert (np.abs(counts - expected) < 1).all()


def test_sampling_is_seeded_and_shuffled() -> None:
    y = np.repeat([0, 1], [50, 50])
    one, two = resampled(y, 2, seed=1), resampled(y, 2, seed=2)
    np.testing.assert_array_equal(one, resampled(y, 2, seed=1))
    assert (one != two).any()
    assert (np.diff(y[one]) != 0).sum() > 10


def test_without_rows_there_is_nothing_to_weigh() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        class_weights(np.zeros(3, int))
