"""4-bit frozen weights: what is rounded and by how much, what is not, and what is refused."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import LABELS, WIDE, texts_and_labels, write_family
from snugtune.config import make_config
from snugtune.data.labels import LabelSet
from snugtune.data.tokens import tokenize
from snugtune.errors import ConfigError, UserInputError
from snugtune.model import quantization
from snugtune.model.adapter import is_peft, load_trainable_state, trainable_state, wrap
from snugtune.model.artifact import Saved, check_reloads, compare_full_precision, load_model, save_model
from snugtune.model.backbone import load_for_fit
from snugtune.model.parameters import count_parameters
from snugtune.model.quantization import compute_as_trained, full_matrix, read_quantization
from snugtune.report.card import _adapter_loader
from snugtune.train.forward import autocast, collate, predict_logits

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
CPU = torch.device("cpu")
LABEL_SET = LabelSet(LABELS, {})
TEXTS, Y = texts_and_labels(24)

NF4_LEVELS = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
     1.0]
)  # fmt: skip
"""Dettmers et al. 2023 (arXiv:2305.14314), appendix E."""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    families = ("bert", "qwen3", "llama", "gpt2", "albert", "gemma3_text")
    return {f: write_family(tmp_path_factory.mktemp(f), f, **WIDE[f]) for f in families}


def settings(folder, **more):
    rank = {} if "method" in more else {"r": 4}
    return make_config({"train": "x", "model": str(folder), **rank, "load_in_4bit": True, **more})


def pair(folder, dtype=torch.float32, **more):
    """The 4-bit model of a folder and the plain one, with the same head."""
    config = settings(folder, **more)
    quantized = load_for_fit(config, LABEL_SET, dtype=dtype).model.eval()
    plain = load_for_fit(config.model_copy(update={"load_in_4bit": False}), LABEL_SET, dtype=dtype).model
    with torch.no_grad():
        for name, parameter in quantized.named_parameters():
            if not hasattr(parameter, "quant_state"):
                parameter.copy_(plain.get_parameter(name))
    return quantized, plain.eval()


def batch(folder):
    backbone = load_for_fit(settings(folder, load_in_4bit=False), LABEL_SET)
    tokens = tokenize(TEXTS, backbone.tokenizer, backbone.max_length)
    return collate(tokens, np.arange(len(TEXTS)), backbone.tokenizer.pad_token_id, CPU)


def in_4_bits(model):
    return {name: m for name, m in model.named_modules() if getattr(m, "quant_state", None) is not None}


@needs_bitsandbytes
@pytest.mark.parametrize("family", ["bert", "qwen3", "gpt2", "albert"])
def test_the_repeated_linear_layers_are_in_4_bits_and_nothing_else(published, family):
    quantized, plain = pair(published[family])
    names = in_4_bits(quantized)
    assert names
    lists = [name for name, m in plain.named_modules() if isinstance(m, nn.ModuleList)]
    linear = {n for n, m in plain.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    assert set(names) == {n for n in linear if any(n.startswith(f"{one}.") for one in lists)}
    assert all(
        m.weight.quant_state.quant_type == "nf4" and m.weight.quant_state.nested for m in names.values()
    )
    outside = [m.weight for n, m in quantized.named_modules() if n in linear - set(names)]
    assert outside
    assert all(weight.dtype == torch.float32 for weight in outside)
    assert count_parameters(quantized).all == count_parameters(plain).all


@needs_bitsandbytes
def test_a_layer_whose_blocks_would_span_two_outputs_stays_whole(tmp_path):
    folder = write_family(tmp_path, "qwen3", **WIDE["qwen3"] | {"intermediate_size": 96})
    names = in_4_bits(load_for_fit(settings(folder), LABEL_SET).model)
    assert any(name.endswith("up_proj") for name in names)
    assert not any(name.endswith("down_proj") for name in names)
    narrow = write_family(tmp_path / "narrow", "bert")
    assert "multiples of 64" in refusal(lambda: load_for_fit(settings(narrow), LABEL_SET))


@needs_bitsandbytes
def test_what_is_trained_in_full_is_not_rounded(published):
    quantized = load_for_fit(settings(published["bert"], modules_to_save=("layer.1",)), LABEL_SET).model
    assert in_4_bits(quantized)
    assert all(".layer.0." in name for name in in_4_bits(quantized))


@needs_bitsandbytes
def test_weights_are_rounded_to_the_nearest_level_of_their_block(published):
    quantized, plain = pair(published["qwen3"])
    for name, layer in in_4_bits(quantized).items():
        theirs = full_matrix(layer).double().numpy().reshape(-1, 64)
        weight = plain.get_submodule(name).weight.detach().double().numpy().reshape(-1, 64)
        scale = np.abs(weight).max(1, keepdims=True)
        nearest = np.abs(weight[..., None] / scale[..., None] - NF4_LEVELS).argmin(-1)
        ours = NF4_LEVELS[nearest] * scale
        # The scales are rounded to 8 bits around their mean.
        np.testing.assert_allclose(theirs, ours, atol=0.01 * scale.max())
        assert np.abs(theirs - weight).max() > 0.05 * scale.max()


@needs_bitsandbytes
@pytest.mark.parametrize("family", ["bert", "qwen3", "llama", "gpt2"])
def test_the_forward_pass_is_that_of_the_rounded_weights_in_full(published, family):
    quantized, plain = pair(published[family])
    inputs = batch(published[family])
    with torch.no_grad():
        found, before = quantized(**inputs).logits, plain(**inputs).logits
        for name, layer in in_4_bits(quantized).items():
            matrix = full_matrix(layer)
            plain.get_submodule(name).weight.copy_(matrix.T if family == "gpt2" else matrix)
        rounded = plain(**inputs).logits
    torch.testing.assert_close(found, rounded, rtol=1e-4, atol=1e-4)
    assert 0.01 < (found - before).abs().max() < 5 * before.std() + 5


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_learn_after_a_look_without_gradients_and_frozen_weights_stay(published, dtype):
    model = wrap(load_for_fit(settings(published["llama"]), LABEL_SET, dtype=dtype).model,
                 settings(published["llama"]))  # fmt: skip
    inputs = batch(published["llama"])
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    model.eval()
    with torch.inference_mode(), autocast(CPU, dtype):
        model(**inputs)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        with autocast(CPU, dtype):
            logits = model.train()(**inputs).logits
        loss = nn.functional.cross_entropy(logits.float(), torch.tensor(Y))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None and p.grad.any() for p in trained)
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


@needs_bitsandbytes
@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("family", ["gemma3_text", "gpt2"])
def test_a_decomposing_start_changes_no_logit(published, family, init):
    config = settings(published[family], init_lora_weights=init)
    base = load_for_fit(config, LABEL_SET).model.eval()
    inputs = batch(published[family])
    with torch.no_grad():
        before = base(**inputs).logits
        after = wrap(base, config).eval()(**inputs).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def finished(folder, out, **more):
    """A 4-bit model after one step, put on freshly loaded weights and saved as a run saves it."""
    config = settings(folder, **more)
    model = wrap(load_for_fit(config, LABEL_SET, dtype=torch.bfloat16).model, config)
    inputs = batch(folder)
    with autocast(CPU, torch.bfloat16):
        logits = model.train()(**inputs).logits
    nn.functional.cross_entropy(logits.float(), torch.tensor(Y)).backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2).step()
    fresh = load_for_fit(config, LABEL_SET)
    final = wrap(fresh.model, config)
    load_trainable_state(final, trainable_state(model))
    save_model(final, fresh.tokenizer, out, fresh.max_length)
    tokens = tokenize(TEXTS[:4], fresh.tokenizer, fresh.max_length)
    logits = predict_logits(final, tokens, pad_token_id=fresh.tokenizer.pad_token_id, device=CPU)
    return Saved(out, TEXTS[:4], logits, LABELS, fresh.max_length, is_peft(final))


@needs_bitsandbytes
def test_the_folder_says_how_its_base_was_quantised_and_that_the_published_weights_are_not(
    published, tmp_path
):
    saved = finished(published["qwen3"], tmp_path / "adapter")
    arguments = read_quantization(saved.folder)
    assert arguments["load_in_4bit"] is True
    assert arguments["bnb_4bit_quant_type"] == "nf4"
    assert arguments["llm_int8_skip_modules"] == ["^score"]
    assert "quantization_config" not in json.loads((saved.folder / "config.json").read_text(encoding="utf-8"))
    adapter = json.loads((saved.folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["base_model_name_or_path"] == str(published["qwen3"])
    model, tokenizer = load_model(saved.folder, dtype=torch.float32, attn_implementation="sdpa")
    tokens = tokenize(saved.texts, tokenizer, saved.max_length)
    again = predict_logits(model, tokens, pad_token_id=tokenizer.pad_token_id, device=CPU)
    np.testing.assert_allclose(again, saved.logits, atol=1e-5)
    loaded: dict = {}
    exec(_adapter_loader(str(saved.folder), quantized=True), loaded)  # what the model card tells its reader
    compute_as_trained(loaded["model"])
    again = predict_logits(loaded["model"].eval(), tokens, pad_token_id=tokenizer.pad_token_id, device=CPU)
    np.testing.assert_allclose(again, saved.logits, atol=1e-5)
    half, _ = load_model(saved.folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16, torch.uint8}


@needs_bitsandbytes
@pytest.mark.slow
def test_what_is_saved_reloads_with_stock_classes(published, tmp_path):
    variants = [
        ("qwen3", {}), ("llama", {"use_dora": True}), ("gpt2", {"init_lora_weights": "pissa"}),
        ("bert", {"target_modules": "all-linear"}), ("albert", {"method": "head"}),
    ]  # fmt: skip
    saved = [finished(published[f], tmp_path / f"{i}", **more) for i, (f, more) in enumerate(variants)]
    assert max(check_reloads(saved)) < 1e-4
    plain = compare_full_precision(saved[0], n_weights=10_000)
    assert plain is not None
    assert plain.rows == 4
    # On the published weights the same adapter gives other logits, and not by rounding of float32.
    assert plain.largest_logit_difference > 0.01
    assert compare_full_precision(saved[0], n_weights=10**15) is None
    assert compare_full_precision(saved[-1], n_weights=10_000) is None


@needs_bitsandbytes
def test_a_saved_4_bit_model_is_unpacked_for_exports(published, tmp_path):
    """A whole model in 4 bits (a head alone was trained) has no published weights to go back to."""
    saved = finished(published["bert"], tmp_path / "saved", method="head")
    options = {"dtype": torch.float32, "attn_implementation": "sdpa"}
    packed, tokenizer = load_model(saved.folder, **options)
    plain, _ = load_model(saved.folder, as_quantized=False, **options)
    assert in_4_bits(packed)
    assert not in_4_bits(plain)
    save_model(plain.to(torch.float32), tokenizer, tmp_path / "export", 32)
    exported, _ = load_model(tmp_path / "export", **options)
    inputs = batch(published["bert"])
    with torch.inference_mode():
        expected = packed(**inputs).logits
        for model in (plain, exported):
            torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-4)


def refusal(call):
    with pytest.raises(UserInputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_without_bitsandbytes_there_is_a_sentence_with_the_command(published, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    message = refusal(lambda: load_for_fit(settings(published["bert"]), LABEL_SET))
    assert "pip install 'snugtune[quantized]'" in message


def test_a_bitsandbytes_that_does_not_load_is_told(published, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "cannot be loaded" in refusal(lambda: load_for_fit(settings(published["bert"]), LABEL_SET))


def test_weights_that_are_published_quantised_are_refused(published, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((published["qwen3"] / "model.safetensors").read_bytes())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((published["qwen3"] / name).read_bytes())
    config = json.loads((published["qwen3"] / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    message = refusal(lambda: load_for_fit(settings(tmp_path, load_in_4bit=False), LABEL_SET))
    assert "published quantised" in message


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"method": "full"}, "load_in_4bit has no effect with method='full'"),
        ({"bias": "all"}, "bias='all' trains biases"),
    ],
)
def test_what_cannot_go_with_frozen_4_bit_weights(more, words):
    with pytest.raises(ConfigError) as caught:
        settings("minilm", **more)
    assert words in str(caught.value)
