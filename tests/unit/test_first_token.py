"""The last layer computed for the first token only gives what the whole layer gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification

from families import FAMILIES, LABELS
from snugtune.config import make_config
from snugtune.model import attention
from snugtune.model.adapter import wrap
from snugtune.model.backbone import set_dropout, supported_attention
from snugtune.model.checkpointing import checkpoint_layers, encoder_layers
from snugtune.model.first_token import FIRST_TOKEN_TYPES, read_first_token_only

READING_ONE = sorted(FIRST_TOKEN_TYPES & set(FAMILIES))
OTHERS = sorted(set(FAMILIES) - FIRST_TOKEN_TYPES)


def make(family, kernel=None):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, num_labels=len(LABELS), **FAMILIES[family])
    config.pad_token_id = 1
    set_dropout(config, 0.0)
    chosen = kernel or supported_attention(config, attention.register())
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=chosen).eval()


def batch(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(5, 200, (len(lengths), longest), generator=generator)
    mask = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
    return {"input_ids": torch.where(mask, ids, 1), "attention_mask": mask.long()}


def adapted(family):
    """All linear layers adapted, and the adapters not at nothing."""
    model = wrap(make(family), make_config({"train": "", "r": 4, "target_modules": "all-linear"}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("family", READING_ONE)
def test_logits_and_gradients_are_those_of_the_whole_layer(family):
    whole, short = adapted(family), adapted(family)
    assert read_first_token_only(short.get_base_model())
    inputs, y = batch([9, 3, 17, 2]), torch.tensor([0, 2, 1, 1])
    outputs = []
    for model in (whole, short):
        logits = model(**inputs).logits
        torch.nn.functional.cross_entropy(logits, y).backward()
        outputs.append((logits, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (logits, gradients), (ours, our_gradients) = outputs
    assert torch.allclose(ours, logits, atol=1e-6)
    assert gradients.keys() == our_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(our_gradients[name], gradient, atol=1e-6), name


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_any_lengths(lengths, seed):
    model = make("xlm-roberta")
    with torch.inference_mode():
        expected = model(**batch(lengths, seed)).logits
        read_first_token_only(model)
        assert torch.allclose(model(**batch(lengths, seed)).logits, expected, atol=1e-6)


def test_one_position_leaves_the_last_layer():
    model = make("bert")
    read_first_token_only(model)
    seen = []
    encoder_layers(model)[-1].register_forward_hook(lambda *args: seen.append(args[2].shape))
    model(**batch([7, 5]))
    assert seen == [(2, 1, FAMILIES["bert"]["hidden_size"])]


def test_with_activation_checkpointing_gradients_are_the_same_bits():
    model = wrap(make("bert"), make_config({"train": "", "r": 4})).train()
    read_first_token_only(model.get_base_model())
    found = []
    for k in (0, 2):
        checkpoint_layers(model, k)
        model.zero_grad()
        model(**batch([7, 5])).logits.sum().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("family", OTHERS)
def test_models_whose_head_reads_otherwise_stay_as_they_are(family):
    model = make(family)
    assert not read_first_token_only(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_model_with_attention_written_out_stays_as_it_is():
    assert not read_first_token_only(make("bert", kernel="eager"))


def test_nothing_of_it_is_saved(tmp_path):
    model = make("bert")
    read_first_token_only(model)
    model.save_pretrained(tmp_path)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path, use_safetensors=True).eval()
    assert torch.allclose(stock(**batch([7, 5])).logits, model(**batch([7, 5])).logits, atol=1e-6)
