"""Rare classes favoured in training: the loss, a step's examples, the probe, the choice, the decision."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_engine import _EveryStep

from snugtune.config import make_config
from snugtune.data.tokens import Tokens, Truncation
from snugtune.errors import ConfigError
from snugtune.evaluate.calibration import softmax
from snugtune.evaluate.decision import decide
from snugtune.evaluate.imbalance import METHODS, Balance
from snugtune.evaluate.mixing import Mixture, fit_mixture
from snugtune.model.adapter import trainable_state
from snugtune.model.head import Head
from snugtune.train.engine import Services
from snugtune.train.forward import predict_logits
from snugtune.train.imbalance import balance_with_probe, balance_without_probe
from snugtune.train.probe import HeldOut
from tiny_training import CPU, examples, tiny_model, train_on

CLASS_ROWS = np.array([40, 20, 10, 2])
NAMES = ("a", "b", "c", "d")


def trained(method, services=None, **settings):
    settings = {"num_train_epochs": 2, "effective_batch_size": 8, **settings}
    return train_on(
        examples(40, 1), examples(20, 2), settings, balance=Balance(method, CLASS_ROWS), services=services
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [16, 100])
def test_the_cut_changes_nothing_however_rare_classes_are_favoured(method, budget):
    whole, model = trained(method, tokens_per_micro_batch=100_000)
    cut, cut_model = trained(method, tokens_per_micro_batch=budget)
    losses = [[m["loss"] for m in r.metrics if "loss" in m] for r in (whole, cut)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-6)
    for name, tensor in trainable_state(model).items():
        torch.testing.assert_close(trainable_state(cut_model)[name], tensor, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("method", ["none", "weights", "logit_adjustment"])
def test_the_first_loss_is_that_of_the_published_formula(method):
    part = examples(40, 1)
    result, _ = trained(method, effective_batch_size=40)
    logits = predict_logits(tiny_model().eval(), part.tokens, pad_token_id=0, device=CPU)
    balance = Balance(method, CLASS_ROWS)
    shares = CLASS_ROWS / CLASS_ROWS.sum()
    if method == "logit_adjustment":
        logits = logits + np.log(shares)  # Menon et al. 2021, eq. 10 at tau = 1
    losses = cross_entropy(torch.from_numpy(logits), torch.from_numpy(part.y), reduction="none").numpy()
    if method == "weights":
        inverse_roots = CLASS_ROWS**-0.5
        losses = losses * inverse_roots[part.y] / (inverse_roots @ shares)
        np.testing.assert_allclose(balance.loss_weights, inverse_roots / (inverse_roots @ shares))
    assert result.metrics[1]["loss"] == pytest.approx(losses.mean(), abs=1e-5)


def test_each_way_is_another_training():
    losses = {method: trained(method)[0].metrics[-2]["loss"] for method in METHODS}
    assert len({round(loss, 6) for loss in losses.values()}) == len(METHODS)


@pytest.mark.parametrize("method", ["weights", "sampling"])
def test_a_run_that_died_goes_on_with_the_same_examples(tmp_path, method):
    straight, model = trained(method)
    with pytest.raises(SystemError, match="killed"):
        trained(method, services=Services(checkpoints=_EveryStep(tmp_path, 4)))
    resumed, again = trained(method, services=Services(checkpoints=_EveryStep(tmp_path)))
    assert [m.get("loss") for m in resumed.metrics] == [m.get("loss") for m in straight.metrics]
    for name, tensor in trainable_state(model).items():
        assert torch.equal(trainable_state(again)[name], tensor), name


H, K = 6, 4


def texts(n, seed, *, signal=1.0, shares=(0.7, 0.2, 0.08, 0.02)):
    """Features (n, H) of overlapping classes of very different sizes, their ids, one row for each text."""
    rng = np.random.default_rng(seed)
    y = rng.choice(K, n, p=shares)
    y[:K] = np.arange(K)
    features = (rng.normal(size=(n, H)) + signal * np.eye(K, H)[y]).astype(np.float32)
    rows = [np.array([1, 2], dtype=np.int32)] * n
    return features, y, Tokens(rows, np.full(n, 2), Truncation(2, n, 0, 2 * n, 0))


def balanced(asked, metric="f1_macro", *, bias=True, signal=1.5, shares=(0.7, 0.2, 0.08, 0.02)):
    features, y, tokens = texts(1500, 0, signal=signal, shares=shares)
    held_out = texts(1500, 1, signal=signal, shares=shares)
    head = Head(None, None, torch.nn.Linear(H, K, bias=bias), ("classifier",))
    chooser = HeldOut(held_out[0], held_out[1])
    return balance_with_probe(
        asked, features, tokens, y, head, chooser, label_names=NAMES, metric=metric
    ), chooser, head  # fmt: skip


def test_evidence_speaks_for_macro_f1_and_not_for_accuracy():
    for_f1, _, _ = balanced("auto", signal=1.0)
    told = for_f1.as_dict()
    assert told["chosen"] in ("weights", "logit_adjustment")
    assert told["trained_tau"] in (0.5, 1.0)
    assert set(told["candidates"]) == {"none", "weights", "logit_adjustment"}
    figures = {way: (one["accuracy"], one["f1_macro"]) for way, one in told["candidates"].items()}
    assert figures[told["chosen"]][1] == max(f1 for _, f1 in figures.values())
    assert "by the evidence" in for_f1.sentence()
    for_accuracy, _, _ = balanced("auto", "accuracy", signal=1.0)
    assert for_accuracy.balance.method == "none"
    assert for_accuracy.sentence() is None


def test_even_classes_are_left_alone():
    assert balanced("auto", shares=(0.25,) * 4)[0].balance.method == "none"


@pytest.mark.parametrize("bias", [True, False])
def test_an_adjusted_probe_is_the_plain_one_less_what_the_loss_adds(bias):
    plain, chooser, head = balanced("none", bias=bias)
    shifted, _, _ = balanced("logit_adjustment", bias=bias)
    added = shifted.balance.logit_shift
    for one, other in zip(plain.probes, shifted.probes, strict=True):
        difference = chooser.logits(one, head) - chooser.logits(other, head)
        if bias:
            np.testing.assert_allclose(difference, np.tile(added, (1500, 1)), rtol=1e-4, atol=1e-4)
        else:
            np.testing.assert_allclose(difference.mean(0) / added, 1, atol=0.2)


@pytest.mark.parametrize("asked", ["weights", "sampling"])
def test_weights_and_sampling_start_from_the_probe_of_their_expected_loss(asked):
    plain, chooser, head = balanced("none")
    favoured, _, _ = balanced(asked)
    predicted = [chooser.logits(one.probes[0], head).argmax(1) for one in (plain, favoured)]
    rare = chooser.y == 3
    assert (predicted[1][rare] == 3).mean() > (predicted[0][rare] == 3).mean()
    assert favoured.as_dict()["candidates"] is None


@pytest.mark.parametrize(("asked", "method"), [("auto", "none"), ("none", "none"), ("sampling", "sampling")])
def test_without_a_probe_there_is_no_evidence(asked, method):
    found = balance_without_probe(asked, CLASS_ROWS)
    assert found.balance.method == method
    assert found.probes is found.candidates is None
    assert (found.class_rows is None) == (asked == "none")


def held_out_logits(seed=0, n=2000):
    """Natural logits of overlapping classes, and classes that follow them."""
    rng = np.random.default_rng(seed)
    prior = np.array([0.7, 0.2, 0.08, 0.02])
    logits = np.log(prior) + rng.normal(scale=1.2, size=(n, K))
    y = np.array([rng.choice(K, p=row) for row in softmax(logits)])
    return logits, y, np.round(prior * 5000).astype(int)


@pytest.mark.parametrize("method", ["weights", "logit_adjustment", "sampling"])
def test_what_is_asked_for_is_predicted_and_its_confidence_holds(method):
    natural, y, class_rows = held_out_logits()
    balance = Balance(method, class_rows)
    trained_logits = natural - balance.tau * np.log(class_rows / class_rows.sum())
    decided = decide(
        trained_logits, None, y, precision=0.9, class_rows=class_rows, trained_tau=balance.tau,
        search_tau=False,
    )  # fmt: skip
    mixture = decided.decision.mixture
    assert mixture.tau == mixture.trained_tau == balance.tau
    probabilities = decided.decision.probabilities(trained_logits)
    assert (probabilities.argmax(1) == trained_logits.argmax(1)).mean() > 0.99
    assert abs(probabilities.max(1).mean() - (probabilities.argmax(1) == y).mean()) < 0.02


def test_auto_goes_back_to_the_classes_as_they_are_where_accuracy_counts():
    natural, y, class_rows = held_out_logits()
    prior = class_rows / class_rows.sum()
    options = {"class_prior": prior, "trained_tau": 1.0}
    trained_logits = natural - np.log(prior)
    found = fit_mixture(trained_logits, np.zeros_like(natural), y, adjust_for="accuracy", **options)
    assert found.tau < 0.5
    assert (found.apply(trained_logits, natural).argmax(1) == natural.argmax(1)).mean() > 0.9
    for_f1 = fit_mixture(trained_logits, np.zeros_like(natural), y, adjust_for="macro_f1", **options)
    assert for_f1.tau > 0
    assert Mixture.from_dict(for_f1.as_dict()) == for_f1


def test_a_pool_is_taken_of_what_both_members_say_of_the_classes_as_they_are():
    natural, y, class_rows = held_out_logits()
    prior = class_rows / class_rows.sum()
    plain = fit_mixture(natural, natural, y)
    pooled = fit_mixture(
        natural - np.log(prior), natural, y, class_prior=prior, trained_tau=1.0, search_tau=False
    )
    assert pooled.weight == plain.weight
    assert pooled.temperature_a == pytest.approx(plain.temperature_a, rel=1e-3)


def test_other_words_are_refused():
    with pytest.raises(ConfigError, match="imbalance='focal'"):
        make_config({"train": "x", "imbalance": "focal"})
