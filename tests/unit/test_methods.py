"""Each method of fine-tuning: its settings, what it trains, and its gradients beside stock PEFT's."""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import LABELS, write_family
from snugtune.config import make_config
from snugtune.data.labels import LabelSet
from snugtune.errors import ConfigError, UserInputError
from snugtune.memory.guard import Guard, HostMemory
from snugtune.methods import METHOD_SETTINGS, METHODS
from snugtune.model.adapter import quiet_attaching, trainable_state, virtual_tokens, wrap
from snugtune.model.backbone import load_for_fit
from snugtune.model.checkpointing import checkpoint_layers
from snugtune.model.head import find_head
from snugtune.model.parameters import count_parameters, plan_parameters
from snugtune.model.peft_config import peft_config
from snugtune.train import eva
from snugtune.train.eva import start_from_data
from snugtune.train.forward import INFERENCE_TOKENS, collate
from snugtune.train.optim import learning_rates, make_optimizer
from snugtune.train.ranks import add_penalty_gradients, ranks_of, settle_ranks
from tiny_training import examples, tiny_model, train_tiny

CPU = torch.device("cpu")
LABEL_SET = LabelSet(LABELS, {})

SMALL = {
    "lora": {"r": 4},
    "adalora": {"init_r": 4, "target_r": 2},
    "vera": {"r": 8},
    "prefix": {"num_virtual_tokens": 5},
    "prompt": {"num_virtual_tokens": 5},
    "p-tuning": {"num_virtual_tokens": 5, "encoder_hidden_size": 16},
}
"""Settings with which a method is small."""

THROUGH_PEFT = [name for name in METHODS if name not in ("full", "head")]
IMPOSSIBLE = {
    ("gpt2", "oft"), ("gpt2", "boft"), ("gpt2", "prompt"), ("gpt2", "p-tuning"),
    ("llama", "prompt"), ("llama", "p-tuning"), ("llama", "bitfit"),
}  # fmt: skip


def settings(method, **more):
    return make_config({"train": "x", "method": method, **SMALL.get(method, {}), **more})


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    families = ("bert", "xlm-roberta", "distilbert", "gpt2", "llama")
    return {family: write_family(tmp_path_factory.mktemp(family), family) for family in families}


# Settings


def test_every_setting_of_a_method_exists_and_is_offered_by_name():
    assert set(type(make_config({"train": "x"})).model_fields) >= METHOD_SETTINGS


@pytest.mark.parametrize("method", METHODS)
def test_defaults_go_with_every_method(method):
    assert make_config({"train": "x", "method": method}).method == method


@pytest.mark.parametrize("method", METHODS)
def test_what_a_run_keeps_of_its_settings_can_be_given_again(method):
    config = settings(method)
    assert make_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "ia3", "r": 8}, "r has no effect with method='ia3'.*'lora' and 'vera'"),
        ({"oft_block_size": 8}, "oft_block_size has no effect with method='lora'.*'oft'"),
        ({"method": "full", "load_in_4bit": True}, "load_in_4bit has no effect with method='full'"),
        ({"method": "adalora", "target_r": 12}, "target_r=12 must be less than init_r=12"),
        ({"eva_rho": 1.5}, "eva_rho needs init_lora_weights='eva'"),
        ({"method": "prompt", "prompt_tuning_init": "TEXT"}, "give both or neither"),
        ({"method": "prefix", "encoder_hidden_size": 8}, "needs prefix_projection"),
        ({"loraplus_lr_ratio": 0.5}, "loraplus_lr_ratio"),
        ({"method": "lorra"}, "method"),
    ],
)
def test_settings_that_do_not_go_together(given, said):
    with pytest.raises(ConfigError, match=said):
        make_config({"train": "x", **given})


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError, match=r"(?s)boft_block_size.*num_virtual_tokens.*target_r"):
        make_config({"train": "x", "boft_block_size": 8, "num_virtual_tokens": 3, "init_r": 4, "target_r": 6})


def test_vera_has_a_rank_of_its_own():
    assert make_config({"train": "x", "method": "vera"}).r == 256
    assert make_config({"train": "x", "method": "vera", "r": 16}).r == 16


# Against stock PEFT


def ours_and_stock(folder, method):
    """Our model with its shortcuts, and PEFT's on stock Transformers, with the same numbers in both."""
    config = settings(method, model=str(folder))
    torch.manual_seed(0)
    backbone = load_for_fit(config, LABEL_SET)
    ours = wrap(backbone.model, config)
    stock = AutoModelForSequenceClassification.from_pretrained(
        folder, config=copy.deepcopy(backbone.model.config), attn_implementation="eager"
    )
    heads = find_head(stock).modules_to_save
    with quiet_attaching():
        theirs = get_peft_model(stock, peft_config(stock, config, heads))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    theirs.load_state_dict(ours.state_dict())
    return ours.train(), theirs.train(), backbone.tokenizer


def gradients(model, batch, y):
    logits = model(**batch).logits
    torch.nn.functional.cross_entropy(logits, y).backward()
    return logits, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", THROUGH_PEFT)
@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "distilbert", "gpt2", "llama"])
def test_logits_and_gradients_are_those_of_stock_peft(published, family, method):
    if (family, method) in IMPOSSIBLE or (family, method) == ("distilbert", "prefix"):
        with pytest.raises(UserInputError, match=r"cannot|have none"):
            ours_and_stock(published[family], method)
        return
    ours, theirs, tokenizer = ours_and_stock(published[family], method)
    batch = dict(
        tokenizer(["my card was stolen", "fee", "loan rate about it"], padding=True, return_tensors="pt")
    )
    batch.pop("token_type_ids", None)
    y = torch.tensor([0, 1, 2])
    logits, found = gradients(ours, batch, y)
    expected_logits, expected = gradients(theirs, batch, y)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5)
    trained = {name for name, p in ours.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in theirs.named_parameters() if p.requires_grad}
    for name in trained & expected.keys():
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_counts_what_is_trained(published, method):
    config = settings(method, model=str(published["bert"]))
    backbone = load_for_fit(config, LABEL_SET)
    assert plan_parameters(config, len(LABELS)) == count_parameters(wrap(backbone.model, config))


@pytest.mark.parametrize("method", THROUGH_PEFT)
def test_half_precision_trains_in_full_precision(published, method):
    config = settings(method, model=str(published["bert"]))
    backbone = load_for_fit(config, LABEL_SET, dtype=torch.bfloat16)
    model = wrap(backbone.model, config).train()
    assert {t.dtype for t in trainable_state(model).values()} == {torch.float32}
    batch = dict(backbone.tokenizer(["my card", "fee about it"], padding=True, return_tensors="pt"))
    batch.pop("token_type_ids", None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(**batch).logits
    torch.nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1])).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert any(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_virtual_tokens_take_positions(published):
    config = settings("prompt", model=str(published["bert"]))
    assert load_for_fit(config, LABEL_SET).max_length == 61  # 66 positions
    with pytest.raises(UserInputError, match=r"61 tokens .* beside 5 virtual ones"):
        load_for_fit(config.model_copy(update={"max_length": 62}), LABEL_SET)
    with pytest.raises(UserInputError, match="leaves no room"):
        load_for_fit(config.model_copy(update={"num_virtual_tokens": 66}), LABEL_SET)


def test_an_oft_block_that_does_not_divide_is_told(published):
    config = settings("oft", oft_block_size=12, model=str(published["bert"]))
    with pytest.raises(UserInputError, match="oft_block_size=12 does not divide the 32 inputs"):
        wrap(load_for_fit(config, LABEL_SET).model, config)


def test_prefixed_layers_are_not_computed_twice():
    model = wrap(tiny_model(), settings("prefix"))
    assert checkpoint_layers(model, 2) == 0
    assert checkpoint_layers(wrap(tiny_model(), settings("prompt")), 2) == 2


# Training


CUTS = [{"tokens_per_micro_batch": 2048}, {"tokens_per_micro_batch": 64, "per_device_train_batch_size": 3}]


@pytest.mark.parametrize("method", ["adalora", "ia3", "prefix", "prompt", "bitfit"])
def test_the_cut_of_a_step_does_not_change_the_weights(method):
    steps = {"num_train_epochs": 3, "effective_batch_size": 12, "early_stopping_patience": None}
    common = {"method": method, **SMALL.get(method, {}), **steps, "bf16": False}
    found = [trainable_state(train_tiny({**common, **cut, "gradient_accumulation_steps": None})[1])
             for cut in (CUTS[0], {"tokens_per_micro_batch": 64})]  # fmt: skip
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_virtual_tokens_count_in_micro_batches():
    """A cut that did not count them would put far more into a pass than was planned."""
    seen = []
    plain = torch.nn.Embedding.forward

    def services(model):
        layer = model.get_base_model().bert.encoder.layer[0]
        layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[:2].numel()))
        from snugtune.train.engine import Services

        return Services()

    train_tiny(
        {"method": "prompt", "num_virtual_tokens": 20, "tokens_per_micro_batch": 128, "num_train_epochs": 1},
        services=services,
    )
    assert plain is torch.nn.Embedding.forward
    training = [n for n in seen if n]
    assert min(training) <= 128


def test_adalora_cuts_ranks_to_its_target():
    _, model = train_tiny(
        {"method": "adalora", "init_r": 4, "target_r": 2, "num_train_epochs": 8, "effective_batch_size": 8,
         "early_stopping_patience": None, "learning_rate": 1e-2}
    )  # fmt: skip
    kept = [int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name]
    assert len(kept) == 4
    assert sum(kept) <= 2 * len(kept)
    settle_ranks(model)
    pattern = model.peft_config["default"].rank_pattern
    assert [max(1, n) for n in kept] == [sum(mask) for mask in pattern.values()]


@pytest.mark.parametrize("steps", range(1, 9))
def test_adalora_goes_with_any_number_of_steps(steps):
    result, _ = train_tiny(
        {"method": "adalora", "init_r": 4, "target_r": 2, "num_train_epochs": 1, "effective_batch_size": 8},
        rows=8 * steps,
    )
    assert result.steps == steps


def test_a_step_that_overflows_says_nothing_of_adaloras_ranks():
    """In float16 the scaler skips it; PEFT's running means would stay no numbers for ever."""
    config = settings("adalora")
    model = wrap(tiny_model(), config)
    ranks = ranks_of(model, config, steps=100)
    batch = {"input_ids": torch.tensor([[1, 11, 30], [1, 12, 40]]), "labels": torch.tensor([1, 2])}
    for step in range(1, 6):
        model.zero_grad()
        model(**batch).loss.backward()
        if step == 2:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(torch.inf if step % 2 else torch.nan)
        ranks.allocate(step, Guard(HostMemory()))
    importance = [tensor for name, tensor in ranks.state().items() if ".exp_avg_" in name]
    assert importance
    assert all(tensor.isfinite().all() for tensor in importance)
    assert any(tensor.any() for tensor in importance)


def test_adaloras_penalty_is_pefts():
    config = settings("adalora")
    ours, theirs = wrap(tiny_model(), config), wrap(tiny_model(), config)
    theirs.load_state_dict(ours.state_dict())
    batch = {"input_ids": torch.tensor([[1, 11, 30], [1, 12, 40]]), "labels": torch.tensor([1, 2])}
    theirs(**batch).loss.backward()
    torch.nn.functional.cross_entropy(ours(input_ids=batch["input_ids"]).logits, batch["labels"]).backward()
    add_penalty_gradients(ours)
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for name, parameter in ours.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_loraplus_gives_b_a_rate_of_its_own():
    config = settings("lora", loraplus_lr_ratio=16.0, learning_rate=1e-4)
    model = wrap(tiny_model(), config)
    heads = find_head(tiny_model()).modules_to_save
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {
        names[id(p)]: g["lr"] for g in make_optimizer(model, config, heads).param_groups for p in g["params"]
    }
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {16e-4}
    assert {rate for name, rate in rates.items() if "lora_A" in name} == {1e-4}
    assert {rate for name, rate in rates.items() if "classifier" in name} == {5e-4}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_its_learning_rate(method):
    body, head = learning_rates(settings(method))
    assert body == METHODS[method].learning_rate
    assert head == 5e-4
    assert learning_rates(settings(method, learning_rate=0.1))[0] == 0.1


# On the model that is trained by default, with its layer that makes a mean

VARIANTS = {
    **{method: {"method": method} for method in METHODS},
    "dora": {"use_dora": True}, "rslora": {"use_rslora": True}, "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"}, "orthogonal": {"init_lora_weights": "orthogonal"},
    "dora, pissa": {"use_dora": True, "init_lora_weights": "pissa"},
    "dora, olora": {"use_dora": True, "init_lora_weights": "olora"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_method_trains_the_default_model(name, dtype):
    config = make_config({"train": "x", **VARIANTS[name]})
    torch.manual_seed(0)
    backbone = load_for_fit(config, LABEL_SET, dtype=dtype)
    batch = dict(backbone.tokenizer(["my card", "a fee for it"], padding=True, return_tensors="pt"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        before = backbone.model.eval()(**batch).logits.float()
    model = wrap(backbone.model, config).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        logits, found = gradients(model, batch, torch.tensor([0, 1]))
    assert found
    assert all(gradient.isfinite().all() for gradient in found.values())
    if not virtual_tokens(model):
        torch.testing.assert_close(
            logits.float(), before, rtol=0, atol=1e-3 if dtype == torch.float32 else 2e-2
        )


# DoRA


@pytest.mark.parametrize("init", [True, "gaussian", "eva", "olora"])
def test_dora_trains_weights_with_rows_of_zeros(init, tmp_path):
    """Mean pooling as a layer has them; stock PEFT divides by their norms."""
    config = settings("lora", r=4, use_dora=True, init_lora_weights=init)
    plain = tiny_model()
    for name, parameter in plain.named_parameters():
        if name.endswith(("query.weight", "value.weight")):
            parameter.data[[0, 3]] = 0.0
    batch = {"input_ids": torch.tensor([[1, 11, 30], [1, 12, 40]])}
    before = plain.eval()(**batch).logits
    published = copy.deepcopy(plain)
    model = wrap(plain, config)
    if init == "eva":
        tokens = examples(64, 1).tokens
        start_from_data(model, config, tokens, pad_token_id=0, device=CPU, dtype=torch.float32)
    torch.testing.assert_close(model.eval()(**batch).logits, before, rtol=0, atol=2e-4)
    _, found = gradients(model.train(), batch, torch.tensor([1, 2]))
    assert all(gradient.isfinite().all() for gradient in found.values())
    moved = [g for name, g in found.items() if "lora_B" in name]
    assert moved
    assert all(gradient[[0, 3]].any() for gradient in moved)
    # Stock PEFT reads what is saved.
    model.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(published, tmp_path).eval()
    torch.testing.assert_close(stock(**batch).logits, model.eval()(**batch).logits)
    torch.testing.assert_close(stock.merge_and_unload()(**batch).logits, before.detach(), rtol=0, atol=2e-4)


def test_rows_that_have_weights_begin_as_ever():
    config = settings("lora", r=4, use_dora=True)
    model = wrap(tiny_model(), config)
    assert not any(t.any() for name, t in trainable_state(model).items() if "lora_B" in name)


# EVA


def eva_model(seed=0):
    config = settings("lora", r=4, init_lora_weights="eva", seed=seed)
    model = wrap(tiny_model(), config)
    start_from_data(model, config, examples(64, 1).tokens, pad_token_id=0, device=CPU, dtype=torch.float32)
    return model


def test_eva_begins_from_the_data_and_the_seed_alone():
    first, second = trainable_state(eva_model()), trainable_state(eva_model())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    a = [tensor for name, tensor in first.items() if "lora_A" in name]
    assert all(torch.allclose(t @ t.T, torch.eye(len(t)), atol=1e-4) for t in a)
    assert all(not tensor.any() for name, tensor in first.items() if "lora_B" in name)


def test_evas_ranks_are_found_again_on_published_weights():
    model = eva_model()
    again = wrap(tiny_model(), settings("lora", r=4, init_lora_weights="eva"), like=model)
    assert {n: t.shape for n, t in trainable_state(again).items()} == {
        n: t.shape for n, t in trainable_state(model).items()
    }


def test_eva_needs_enough_tokens():
    config = settings("lora", r=4, init_lora_weights="eva")
    few = examples(2, 1).tokens
    few = replace(few, ids=[ids[:2] for ids in few.ids], lengths=np.array([2, 2]))
    with pytest.raises(UserInputError, match=r"8 directions .* 4 tokens"):
        start_from_data(
            wrap(tiny_model(), config), config, few, pad_token_id=0, device=CPU, dtype=torch.float32
        )


def test_eva_reads_texts_of_any_length_and_makes_few_batches(monkeypatch):
    lengths = np.random.default_rng(0).integers(3, 60, 400)
    lengths[[5, 50]] = 3000
    batches = eva._batches(lengths, 64, seed=0)
    assert all(len(rows) for rows in batches)
    assert len(np.unique(np.concatenate(batches))) == sum(len(rows) for rows in batches)
    assert all(lengths[rows].sum() >= 64 for rows in batches)
    # One long text goes with no more short ones than its batch had before it.
    assert all(len(rows) * lengths[rows].max() <= 2 * INFERENCE_TOKENS for rows in batches[:-1])
    made = []
    monkeypatch.setattr(eva, "collate", lambda *given: made.append(given[1]) or collate(*given))
    monkeypatch.setattr(eva, "BATCH_TOKENS", 50)
    config = settings("lora", r=2, init_lora_weights="eva")
    tokens = examples(600, 1).tokens
    start_from_data(
        wrap(tiny_model(), config), config, tokens, pad_token_id=0, device=CPU, dtype=torch.float32
    )
    assert 0 < len(made) < len(eva._batches(tokens.lengths, 8, 0))


def test_layers_that_eva_left_out_are_no_mistake_afterwards():
    config = settings("lora", r=4, init_lora_weights="eva", layers_to_transform=(0, 1))
    model = wrap(tiny_model(), config)
    start_from_data(model, config, examples(64, 1).tokens, pad_token_id=0, device=CPU, dtype=torch.float32)
    # As PEFT leaves a model in which a layer got no rank.
    kept = {name for name in model.peft_config["default"].target_modules if ".1." not in name}
    model.peft_config["default"].target_modules = kept
    model.peft_config["default"].layers_to_transform = None
    again = wrap(tiny_model(), config, like=model)
    assert all(".layer.0." in name for name in trainable_state(again) if "lora_" in name)


def test_virtual_tokens_of_a_model():
    assert virtual_tokens(wrap(tiny_model(), settings("prefix"))) == 5
    assert virtual_tokens(wrap(tiny_model(), settings("ia3"))) == 0
    assert virtual_tokens(tiny_model()) == 0
