import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import FAMILIES, HIDDEN
from snugtune.errors import UserInputError
from snugtune.model.head import (
    ACTIVATIONS,
    GELU,
    NEW_PARAMETERS,
    RELU,
    TANH,
    Probe,
    find_head,
    write_probe,
)
from snugtune.train.probe import ABSENT_CLASS_BIAS, HeldOut, fit_probes

K = 5
MODULES = {
    "bert": ("pooler", "classifier"),
    "roberta": ("classifier",),
    "distilbert": ("pre_classifier", "classifier"),
    "deberta-v2": ("pooler", "classifier"),
    "electra": ("classifier",),
    "albert": ("pooler", "classifier"),
    "mpnet": ("classifier",),
    "modernbert": ("head", "classifier"),
    "gpt2": ("score",),
    "qwen3": ("score",),
}


def make(family):
    torch.manual_seed(0)
    settings = {**FAMILIES[family], "pad_token_id": 1, "num_labels": K}
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **settings)).eval()


@pytest.mark.parametrize(("family", "modules"), MODULES.items())
def test_all_that_the_backbone_lacks_is_saved(family, modules):
    head = find_head(make(family))
    assert head.modules_to_save == modules
    assert head.final.out_features == K


@pytest.mark.parametrize("family", sorted(ACTIVATIONS.keys() & FAMILIES.keys()))
def test_the_activation_is_what_lies_between_dense_and_final(family):
    model = make(family)
    head = find_head(model)
    seen = {}
    head.dense.register_forward_hook(lambda _module, _inputs, output: seen.update(dense=output))
    head.final.register_forward_pre_hook(lambda _module, inputs: seen.update(final=inputs[0]))
    with torch.no_grad():
        model(torch.tensor([[2, 7, 9, 3], [2, 8, 3, 1]]))
    torch.testing.assert_close(head.activation.function(seen["dense"]), seen["final"])


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - ACTIVATIONS.keys()))
def test_other_heads_take_what_goes_into_the_last_linear(family):
    head = find_head(make(family))
    assert head.dense is None
    assert head.feature_layer is head.final


def test_deberta_with_another_activation_uses_its_last_linear():
    model = make("deberta-v2")
    model.config.pooler_hidden_act = "relu"
    assert find_head(model).dense is None


def test_named_modules_are_kept_and_a_frozen_dense_is_not_overwritten():
    head = find_head(make("bert"), ("classifier",))
    assert head.modules_to_save == ("classifier",)
    assert head.dense is None


def test_the_last_linear_and_whatever_is_random_are_always_saved():
    model = make("distilbert")
    setattr(model, NEW_PARAMETERS, frozenset({"pre_classifier.weight", "classifier.weight"}))
    head = find_head(model, ("classifier",))
    assert set(head.modules_to_save) == {"pre_classifier", "classifier"}
    assert head.dense is model.pre_classifier
    assert find_head(make("bert"), ("pooler",)).modules_to_save == ("pooler", "classifier")


def test_modules_to_save_must_exist():
    with pytest.raises(UserInputError, match=r"modules_to_save names clasifier.*bert, classifier"):
        find_head(make("bert"), ("clasifier",))


@pytest.mark.parametrize("activation", [None, TANH, RELU, GELU])
def test_a_probe_written_into_layers_gives_its_logits(activation):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50, HIDDEN, generator=generator) * 3 + 2
    probe = Probe(torch.randn(K, HIDDEN, generator=generator), torch.arange(K) * 1.0, x.mean(0), x.std(0))
    head = find_head(make("bert" if activation else "modernbert"))
    head = type(head)(head.dense if activation else None, activation, head.final, head.modules_to_save)
    write_probe(head, probe)
    hidden = activation.function(head.dense(x)) if activation else x
    torch.testing.assert_close(head.final(hidden), probe.logits(x, activation), rtol=1e-4, atol=1e-4)


def test_a_half_precision_head_is_written_in_float32():
    model = make("bert").to(torch.bfloat16)
    head = find_head(model)
    write_probe(head, Probe(torch.rand(K, HIDDEN), torch.rand(K), torch.rand(HIDDEN), torch.ones(HIDDEN)))
    assert head.dense.weight.dtype == head.final.weight.dtype == torch.float32
    assert model.bert.embeddings.word_embeddings.weight.dtype == torch.bfloat16


def test_a_head_without_a_bias_refuses_a_constant():
    head = find_head(make("gpt2"))
    with pytest.raises(ValueError, match="no bias"):
        write_probe(
            head, Probe(torch.rand(K, HIDDEN), torch.ones(K), torch.zeros(HIDDEN), torch.ones(HIDDEN))
        )


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "gpt2"])
def test_a_class_without_rows_is_never_predicted(family):
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 3], 20)
    features = (rng.normal(size=(60, HIDDEN)) + 3 * np.eye(HIDDEN)[y] + 2).astype(np.float32)
    head = find_head(make(family))
    probe, _ = fit_probes(features, y, K, head)
    logits = probe.logits(torch.from_numpy(features), head.activation)
    assert (logits.argmax(1).numpy() == y).mean() > 0.9
    assert logits[:, [2, 4]].mean().item() == pytest.approx(ABSENT_CLASS_BIAS, rel=0.01)


def test_training_begins_from_the_next_stronger_penalty_than_held_out_rows_like():
    rng = np.random.default_rng(0)
    head = find_head(make("roberta"))
    y = rng.integers(0, K, 120)
    features = (
        rng.normal(size=(120, HIDDEN)).astype(np.float32) + 0.7 * np.eye(K, HIDDEN, dtype=np.float32)[y]
    )
    held_out = HeldOut(features[:60], y[:60])
    best, stronger = fit_probes(features[60:], y[60:], K, head, held_out)
    assert stronger.weight.norm() < best.weight.norm()
    x = torch.from_numpy(held_out.features)
    losses = [
        torch.nn.functional.cross_entropy(probe.logits(x, head.activation), torch.from_numpy(y[:60]))
        for probe in (best, stronger)
    ]
    assert losses[0] < losses[1]
