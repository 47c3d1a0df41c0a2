"""Formulas for classes of different sizes, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from snugtune.data.batches import drawn, epoch_steps, steps_per_epoch
from snugtune.evaluate.imbalance import (
    METHODS,
    Balance,
    class_weights,
    logit_shift,
    sampling_probabilities,
)

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
    rows = drawn(probabilities, np.random.default_rng(0))
    assert len(rows) == 1000
    assert abs((y[rows] == 1).sum() - 250) <= 1
    counts = np.bincount(rows, minlength=1000)
    expected = probabilities * 1000
    assert (np.abs(counts - expected) < 1).all()


def test_sampling_is_seeded_and_shuffled() -> None:
    y = np.repeat([0, 1], [50, 50])
    probabilities = sampling_probabilities(y, 2)
    one, two, again = (drawn(probabilities, np.random.default_rng(seed)) for seed in (1, 2, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != two).any()
    assert (np.diff(y[one]) != 0).sum() > 10


def test_without_rows_there_is_nothing_to_weigh() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        class_weights(np.zeros(3, int))


def test_sampled_steps_are_those_of_the_seed_and_as_many_as_ever() -> None:
    y = np.repeat([0, 1, 2], [80, 15, 5])
    lengths = np.random.default_rng(0).integers(1, 50, 100)
    balance = Balance("sampling", np.bincount(y))
    once, again = (
        list(epoch_steps(lengths, 8, np.random.default_rng(3), balance.probabilities(y))) for _ in range(2)
    )
    assert len(once) == steps_per_epoch(100, 8)
    for one, two in zip(once, again, strict=True):
        np.testing.assert_array_equal(one, two)
    shares = np.bincount(y[np.concatenate(once)]) / 100
    np.testing.assert_allclose(shares, balance.expected_weights * np.bincount(y) / 100, atol=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_natural_logits_tell_the_classes_as_they_are(method) -> None:
    # Two kinds of text, three classes; the balanced loss is least where its weighted posterior is met.
    joint = np.array([[40, 9, 1], [20, 15, 15]])
    balance = Balance(method, joint.sum(0))
    weights = 1 if balance.expected_weights is None else balance.expected_weights
    shift = 0 if balance.logit_shift is None else balance.logit_shift
    trained = np.log(joint * weights) - shift
    np.testing.assert_allclose(
        softmax(balance.natural(trained), axis=1), joint / joint.sum(1, keepdims=True), rtol=1e-6
    )
