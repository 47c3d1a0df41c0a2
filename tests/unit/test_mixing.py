"""The mixture takes from the second model what helps, and nothing when the help is noise."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from snugtune.evaluate.calibration import softmax
from snugtune.evaluate.mixing import Metric, Mixture, fit_mixture

Pair = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def two_views(rows: int, seed: int, skill_a: float = 2.0, skill_b: float = 2.0, K: int = 6) -> Pair:
    """Logits of two models with errors of their own."""
    rng = np.random.default_rng(seed)
    y_true = rng.integers(0, K, rows)
    signal = np.eye(K)[y_true]
    return (
        signal * skill_a + rng.normal(size=(rows, K)),
        signal * skill_b + rng.normal(size=(rows, K)),
        y_true,
    )


def accuracy(probs: NDArray[np.float64], y_true: NDArray[np.int64]) -> float:
    return float((probs.argmax(axis=1) == y_true).mean())


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss"])
def test_models_that_err_differently_help_each_other(metric: Metric) -> None:
    mixture = fit_mixture(*two_views(1500, seed=0), metric=metric)
    logits_a, logits_b, y_true = two_views(1500, seed=1)
    assert 0.25 <= mixture.weight <= 0.75
    assert accuracy(mixture.apply(logits_a, logits_b), y_true) > accuracy(softmax(logits_a), y_true) + 0.03


def test_scale_of_the_second_model_does_not_matter() -> None:
    logits_a, logits_b, y_true = two_views(1500, seed=0)
    plain = fit_mixture(logits_a, logits_b, y_true)
    scaled = fit_mixture(logits_a, logits_b * 0.1, y_true)
    assert scaled.weight == plain.weight
    np.testing.assert_allclose(
        scaled.apply(logits_a, logits_b * 0.1), plain.apply(logits_a, logits_b), atol=1e-2
    )


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss"])
def test_a_useless_second_model_is_not_used(metric: Metric) -> None:
    weights = [fit_mixture(*two_views(300, seed, skill_b=0.0), metric=metric).weight for seed in range(10)]
    assert sum(weight > 0 for weight in weights) <= 2


def test_model_a_alone_is_only_recalibrated() -> None:
    logits_a, logits_b, y_true = two_views(300, seed=0, skill_b=0.0)
    mixture = fit_mixture(logits_a, logits_b, y_true)
    assert (mixture.weight, mixture.tau) == (0.0, 0.0)
    assert mixture.temperature == pytest.approx(1.0, abs=0.01)
    np.testing.assert_allclose(
        mixture.apply(logits_a, logits_b),
        softmax(logits_a, mixture.temperature_a * mixture.temperature),
        atol=1e-9,
    )


def test_rare_classes_are_lifted_for_macro_f1_only() -> None:
    rng, K = np.random.default_rng(0), 6
    prior = np.array([0.6, 0.25, 0.05, 0.04, 0.03, 0.03])
    y_true = rng.choice(K, 4000, p=prior)
    # The posterior of a Gaussian signal: its argmax is best for accuracy and hard on rare classes.
    logits = 1.2 * (1.2 * np.eye(K)[y_true] + rng.normal(size=(4000, K))) + np.log(prior)
    even = fit_mixture(logits, logits, y_true, metric="macro_f1", class_prior=prior)
    assert even.tau > 0
    assert even.apply(logits, logits)[:, 2:].sum() > softmax(logits)[:, 2:].sum()
    assert fit_mixture(logits, logits, y_true, metric="log_loss", class_prior=prior).tau == 0


def test_pooled_probabilities_are_by_the_formula() -> None:
    prior = (0.7, 0.2, 0.1)
    mixture = Mixture(0.25, 0.5, 1.0, temperature_a=2.0, temperature_b=0.1, class_prior=prior)
    logits_a, logits_b = np.array([[1.0, 2.0, 0.5]]), np.array([[0.1, 0.0, 0.2]])
    product = softmax(logits_a, 2.0) ** (0.75 / 0.5) * softmax(logits_b, 0.1) ** (0.25 / 0.5) / prior
    np.testing.assert_allclose(mixture.apply(logits_a, logits_b), product / product.sum())


def test_a_class_ruled_out_by_one_model_can_still_win() -> None:
    mixture = Mixture(weight=0.2)
    probs = mixture.apply(np.array([[9.0, 0.0]]), np.array([[-1e6, 0.0]]))
    assert probs.argmax() == 0


def test_unlabelled_rows_are_ignored() -> None:
    logits_a, logits_b, y_true = two_views(300, seed=3)
    padded = (np.concatenate([x, x[:5] * 7]) for x in (logits_a, logits_b))
    assert fit_mixture(*padded, np.append(y_true, np.full(5, -1))) == fit_mixture(logits_a, logits_b, y_true)
    assert fit_mixture(logits_a[:2], logits_b[:2], np.array([-1, -1])) == Mixture()


def test_classes_never_seen_in_training_get_a_finite_adjustment() -> None:
    logits_a, logits_b, y_true = two_views(300, seed=3, K=3)
    prior = np.array([0.8, 0.2, 0.0])
    mixture = fit_mixture(logits_a, logits_b, y_true, metric="macro_f1", class_prior=prior)
    assert np.isfinite(mixture.apply(logits_a, logits_b)).all()


@pytest.mark.parametrize("prior", [None, (0.5, 0.25, 0.25)])
def test_round_trip_through_json(prior: tuple[float, ...] | None) -> None:
    mixture = Mixture(0.35, 0.8, 0.5, 1.5, 0.1, prior)
    assert Mixture.from_dict(json.loads(json.dumps(mixture.as_dict()))) == mixture


@pytest.mark.parametrize(
    ("shape_b", "prior", "message"),
    [((4, 2), None, r"\(N, K\)"), ((4, 3), [0.5, 0.5], "3 shares"), ((4, 3), [1.5, -0.5, 0], "3 shares")],
)
def test_shapes_are_checked(shape_b: tuple[int, int], prior: list[float] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_mixture(
            np.zeros((4, 3)),
            np.zeros(shape_b),
            np.zeros(4, np.int64),
            class_prior=None if prior is None else np.array(prior),
        )
