"""Every usual architecture from a published folder to a saved one that stock classes load."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import DECODERS, FAMILIES, LABELS, WITHOUT_PAD_TOKEN, texts_and_labels, write_family
from snugtune.config import make_config
from snugtune.data.labels import LabelSet
from snugtune.data.tokens import tokenize
from snugtune.model.adapter import is_peft, load_trainable_state, trainable_state, wrap
from snugtune.model.artifact import Saved, check_reloads, load_model, save_model
from snugtune.model.backbone import load_backbone
from snugtune.model.head import find_head, write_probe
from snugtune.train.forward import autocast, collate, layer_inputs, predict_logits
from snugtune.train.probe import fit_probes
from snugtune.train.ranks import settle_ranks

CPU = torch.device("cpu")
LABEL_SET = LabelSet(LABELS, {})
TEXTS, Y = texts_and_labels(48)
CHECKED = TEXTS[:6]

VARIANTS = [
    *((family, {}) for family in FAMILIES),
    ("bert", {"method": "full"}),
    ("gpt2", {"method": "full"}),
    ("distilbert", {"method": "head"}),
    ("albert", {"method": "head"}),
    ("llama", {"method": "head"}),
    # A layer that loading drew at random is saved even where only the last one is named.
    ("distilbert", {"modules_to_save": ("classifier",)}),
    ("bert", {"modules_to_save": ("classifier",)}),
    ("bert", {"init_lora_weights": "pissa"}),
    ("gpt2", {"init_lora_weights": "pissa"}),
    ("bert", {"init_lora_weights": "olora", "use_rslora": True}),
    ("bert", {"init_lora_weights": "orthogonal"}),
    ("bert", {"init_lora_weights": "gaussian"}),
    ("llama", {"use_dora": True}),
    ("roberta", {"use_rslora": True}),
    ("bert", {"bias": "all", "layers_to_transform": (0,)}),
    ("mistral", {"target_modules": "all-linear"}),
    ("bert", {"method": "adalora"}),
    ("xlm-roberta", {"method": "adalora"}),
    ("llama", {"method": "vera"}),
    ("bert", {"method": "oft"}),
    ("qwen3", {"method": "boft"}),
    ("xlm-roberta", {"method": "ia3"}),
    ("gpt2", {"method": "ia3"}),
    ("bert", {"method": "bitfit"}),
    ("gpt2", {"method": "bitfit"}),
    ("bert", {"method": "prefix"}),
    ("gpt2", {"method": "prefix"}),
    ("llama", {"method": "prefix", "prefix_projection": True}),
    ("xlm-roberta", {"method": "prompt"}),
    ("modernbert", {"method": "prompt"}),
    ("bert", {"method": "prompt", "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "my card"}),
    ("distilbert", {"method": "p-tuning", "encoder_reparameterization_type": "LSTM"}),
]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return {family: write_family(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def started(folder, dtype, **settings):
    """The wrapped model after the probe start, its tokens, pad token and the probe's own logits."""
    rank = {"r": 4} if settings.get("method", "lora") == "lora" else {}
    config = make_config({"train": "x", **rank, **settings})
    backbone = load_backbone(str(folder), LABEL_SET, dtype=dtype, virtual_tokens=config.virtual_tokens)
    tokens = tokenize(TEXTS, backbone.tokenizer, backbone.max_length)
    pad = backbone.tokenizer.pad_token_id
    head = find_head(backbone.model, config.modules_to_save)
    features = layer_inputs(
        backbone.model, head.feature_layer, tokens, pad_token_id=pad, device=CPU, dtype=dtype
    )
    probe, _ = fit_probes(features, np.array(Y), len(LABELS), head)
    write_probe(head, probe)
    model = wrap(backbone.model, config)
    return config, backbone, model, tokens, probe.logits(torch.from_numpy(features), head.activation).numpy()


def train_one_step(model, tokens, pad, dtype):
    batch = collate(tokens, np.arange(len(TEXTS)), pad, CPU)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    with autocast(CPU, dtype):
        logits = model.train()(**batch).logits
    torch.nn.functional.cross_entropy(logits.float(), torch.tensor(Y)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in trained)
    optimizer.step()


def trained_and_saved(folder, out, dtype, **settings):
    config, backbone, model, tokens, _ = started(folder, dtype, **settings)
    train_one_step(model, tokens, backbone.tokenizer.pad_token_id, dtype)
    fresh = load_backbone(str(folder), LABEL_SET, virtual_tokens=config.virtual_tokens)
    final = wrap(fresh.model, config, like=model)
    load_trainable_state(final, trainable_state(model))
    settle_ranks(final)
    save_model(final, fresh.tokenizer, out, fresh.max_length)
    few = tokenize(CHECKED, fresh.tokenizer, fresh.max_length)
    logits = predict_logits(final, few, pad_token_id=fresh.tokenizer.pad_token_id, device=CPU)
    return Saved(out, CHECKED, logits, LABELS, fresh.max_length, is_peft(final))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_starts_as_the_probe(published, family, dtype):
    _, backbone, model, tokens, expected = started(published[family], dtype)
    pad = backbone.tokenizer.pad_token_id
    logits = predict_logits(model, tokens, pad_token_id=pad, device=CPU, dtype=dtype)
    # ModernBERT's probe follows layers of the head that are computed in float32 only once they are trained.
    rounding = 0.1 if (family, dtype) == ("modernbert", torch.bfloat16) else 2e-3
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=rounding)
    assert (logits.argmax(1) == Y).mean() > 0.6


@pytest.mark.slow
def test_what_is_saved_reloads_with_stock_classes(published, tmp_path):
    dtypes = (torch.bfloat16, torch.float32)
    saved = [
        trained_and_saved(published[family], tmp_path / f"{i}-{family}", dtypes[i % 2], **settings)
        for i, (family, settings) in enumerate(VARIANTS)
    ]
    differences = check_reloads(saved)
    assert max(differences) < 1e-4


OWN_LOADING = [
    ("bert", {}), ("distilbert", {}), ("gpt2", {}), ("bert", {"method": "adalora"}),
    ("bert", {"method": "prefix"}), ("xlm-roberta", {"method": "prompt"}), ("bert", {"method": "bitfit"}),
    ("llama", {"method": "boft"}), ("bert", {"method": "oft"}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "settings"), OWN_LOADING)
def test_our_own_loading_gives_the_same_logits(published, tmp_path, family, settings):
    saved = trained_and_saved(published[family], tmp_path / "run", torch.float32, **settings)
    model, tokenizer = load_model(saved.folder, dtype=torch.float32, attn_implementation="sdpa")
    tokens = tokenize(CHECKED, tokenizer, saved.max_length)
    again = predict_logits(model, tokens, pad_token_id=tokenizer.pad_token_id, device=CPU)
    np.testing.assert_allclose(again, saved.logits, atol=1e-4)


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_reads_the_last_real_token(published, family):
    backbone = load_backbone(str(published[family]), LABEL_SET)
    tokenizer, model = backbone.tokenizer, backbone.model.eval()
    assert model.config.pad_token_id == tokenizer.pad_token_id == (3 if family in WITHOUT_PAD_TOKEN else 1)
    tokens = tokenize(TEXTS[:4], tokenizer, backbone.max_length)
    assert len(set(tokens.lengths)) > 1
    together = model(**collate(tokens, np.arange(4), tokenizer.pad_token_id, CPU)).logits
    alone = [model(**collate(tokens, np.array([i]), tokenizer.pad_token_id, CPU)).logits[0] for i in range(4)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-4)
