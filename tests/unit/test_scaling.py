"""Calibration maps: recovered where they are the truth, left alone where they are not, and the order kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad

from snugtune.evaluate import scaling
from snugtune.evaluate.calibration import expected_calibration_error, log_softmax
from snugtune.evaluate.scaling import Calibration, choose_calibration, fit_calibration


def drawn(log_p, seed=0):
    """A class id for each row, drawn with these log-probabilities."""
    rng = np.random.default_rng(seed)
    return (
        (np.exp(log_p).cumsum(axis=1) < rng.random((len(log_p), 1))).sum(axis=1).clip(max=log_p.shape[1] - 1)
    )


def log_loss(log_p, y):
    return -log_p[np.arange(len(y)), y].mean()


def calibrated_rows(rows=3000, K=4, seed=0):
    truth = log_softmax(2 * np.random.default_rng(seed).normal(size=(rows, K)))
    return truth, drawn(truth, seed)


def test_calibrated_rows_keep_temperature_scaling() -> None:
    log_p, y = calibrated_rows()
    chosen = choose_calibration(log_p, y)
    assert chosen.calibration.method == "temperature"
    assert chosen.calibration.temperature == pytest.approx(1, abs=0.1)
    assert chosen.calibration.confidence is None


@pytest.mark.parametrize(("method", "prior"), [("vector", 1.0), ("dirichlet", 0.3)])
def test_a_distorted_map_is_found_and_mended(method, prior) -> None:
    truth, y = calibrated_rows(6000)
    scale = np.array([0.5, 1.0, 1.5, 2.0])
    distorted = log_softmax(truth * scale + np.array([1.0, 0, 0, -1.0]))
    fitted = fit_calibration(distorted[:3000], y[:3000], method, prior)
    plain = fit_calibration(distorted[:3000], y[:3000], "temperature")
    mended, scaled = (
        log_loss(calibration.apply(distorted[3000:]), y[3000:]) for calibration in (fitted, plain)
    )
    best = log_loss(truth[3000:], y[3000:])
    assert mended - best < 0.35 * (scaled - best)


def test_a_richer_map_wins_where_it_is_needed() -> None:
    truth, y = calibrated_rows(4000)
    chosen = choose_calibration(log_softmax(truth + np.array([2.0, 0, 0, -1.0])), y)
    assert chosen.calibration.method in ("vector", "dirichlet")
    assert min(chosen.log_losses, key=chosen.log_losses.__getitem__).startswith(chosen.calibration.method)


def test_order_is_kept_if_asked() -> None:
    truth, y = calibrated_rows(4000)
    shifted = log_softmax(truth + np.array([2.0, 0, 0, -1.0]))
    chosen = choose_calibration(shifted, y, keep_order=True)
    assert chosen.calibration.method == "temperature"
    np.testing.assert_array_equal(chosen.calibration.apply(shifted).argmax(1), shifted.argmax(1))


def test_labels_that_are_wrong_at_any_confidence_need_more_than_a_temperature() -> None:
    log_p = log_softmax(4 * np.random.default_rng(0).normal(size=(6000, 5)))
    y = drawn(log_p)
    flipped = np.random.default_rng(1).random(6000) < 0.2
    y = np.where(flipped, (y + 1) % 5, y)
    chosen = choose_calibration(log_p[:3000], y[:3000]).calibration
    assert chosen.confidence is not None
    plain = fit_calibration(log_p[:3000], y[:3000], "temperature")

    def error(calibration):
        probs = np.exp(calibration.apply(log_p[3000:]))
        return expected_calibration_error(probs.max(1), probs.argmax(1) == y[3000:])

    assert error(chosen) < 0.03 < error(plain)


def test_out_of_fold_rows_are_fitted_without_themselves() -> None:
    log_p, y = calibrated_rows(300, K=20)
    fitted = fit_calibration(log_p, y, "dirichlet", 1.0)
    folds = np.arange(300) % scaling.FOLDS
    held_out = scaling._out_of_fold(log_p, y, folds, "dirichlet", 1.0)
    assert log_loss(fitted.apply(log_p), y) < log_loss(held_out, y) - 0.1
    changed = y.copy()
    changed[folds == 0] = (changed[folds == 0] + 1) % 20
    again = scaling._out_of_fold(log_p, changed, folds, "dirichlet", 1.0)
    np.testing.assert_array_equal(again[folds == 0], held_out[folds == 0])


def test_rows_without_a_class_teach_nothing() -> None:
    log_p, y = calibrated_rows(400)
    more, without = np.concatenate([log_p, log_p[:50] * 3]), np.append(y, np.full(50, -1))
    for method in ("temperature", "vector", "dirichlet"):
        one = fit_calibration(log_p, y, method, with_confidence=True)
        assert one == fit_calibration(more, without, method, with_confidence=True)
    assert choose_calibration(more, without).out_of_fold.shape == more.shape


@pytest.mark.parametrize("rows", [0, 1, 3, 9])
def test_few_rows_are_no_reason_to_fail(rows) -> None:
    log_p, y = calibrated_rows(50)
    chosen = choose_calibration(log_p[:rows], y[:rows])
    assert chosen.calibration.method == "temperature"
    assert chosen.out_of_fold.shape == (rows, 4)
    assert choose_calibration(log_p[:rows], np.full(rows, -1)).calibration.temperature == 1


@pytest.mark.parametrize("method", ["temperature", "vector", "dirichlet"])
def test_it_survives_json(method) -> None:
    log_p, y = calibrated_rows(400)
    fitted = fit_calibration(log_p, y, method, with_confidence=True)
    again = Calibration.from_dict(json.loads(json.dumps(fitted.as_dict(), allow_nan=False)))
    assert again == fitted
    np.testing.assert_array_equal(again.apply(log_p), fitted.apply(log_p))


@given(
    st.integers(0, 2**32 - 1), st.floats(0.05, 5), st.floats(0.05, 5), st.floats(-5, 5), st.integers(2, 30)
)
@settings(deadline=None)
def test_a_corrected_confidence_keeps_the_label_and_sums_to_one(seed, a, b, c, K) -> None:
    rng = np.random.default_rng(seed)
    log_p = log_softmax(rng.normal(size=(50, K)) * rng.choice([0.01, 1, 10, 100]))
    probs = np.exp(Calibration(confidence=(a, b, c)).apply(log_p))
    np.testing.assert_allclose(probs.sum(1), 1)
    np.testing.assert_array_equal(probs.argmax(1), log_p.argmax(1))
    before, after = np.exp(log_p).max(1), probs.max(1)
    order = np.argsort(before)
    assert (np.diff(after[order]) >= -1e-9).all()


def test_gradients_are_right(monkeypatch) -> None:
    log_p, y = calibrated_rows(60)
    checked = []

    def probe(loss, start, **options):
        at = np.random.default_rng(0).normal(size=len(start)) * 0.3 + 1
        error = check_grad(lambda p: loss(p)[0], lambda p: loss(p)[1], at)
        checked.append(error)
        return type("Found", (), {"x": start})

    monkeypatch.setattr(scaling, "minimize", probe)
    fit_calibration(log_p, y, "vector", with_confidence=True)
    fit_calibration(log_p, y, "dirichlet")
    assert len(checked) == 3
    assert max(checked) < 1e-5
