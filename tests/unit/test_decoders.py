"""Decoders as classifiers: which token is read, what is padded with, and no cache of keys and values."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import DECODERS, LABELS, make_tokenizer, texts_and_labels, write_family
from snugtune.config import make_config
from snugtune.data.labels import LabelSet
from snugtune.data.tokens import Tokens, tokenize
from snugtune.memory.setup import Setup
from snugtune.model.adapter import is_peft, wrap
from snugtune.model.artifact import Saved, check_reloads, save_model
from snugtune.model.backbone import load_backbone
from snugtune.model.head import pooled_positions
from snugtune.train.forward import collate, layer_inputs, predict_logits
from snugtune.train.rehearsal import Rehearsal

CPU = torch.device("cpu")
LABEL_SET = LabelSet(LABELS, {})
TEXTS, _ = texts_and_labels(6)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return {family: write_family(tmp_path_factory.mktemp(family), family) for family in DECODERS}


def closing_every_text(folder, tmp_path, kind="llama"):
    """The folder with a tokenizer that ends every text in ``</s>`` (id 3) and pads with it, too."""
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    tokenizer = make_tokenizer(kind)
    tokenizer.pad_token = "</s>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 3)]
    )
    tokenizer.save_pretrained(copy)
    return copy


def test_a_published_pad_token_that_closes_every_text_is_replaced(published, tmp_path):
    # As the tokenizers of Qwen3's embedding models are published.
    folder = closing_every_text(published["llama"], tmp_path)
    backbone = load_backbone(str(folder), LABEL_SET)
    tokenizer, model = backbone.tokenizer, backbone.model.eval()
    assert tokenizer("card")["input_ids"][-1] == 3
    assert tokenizer.pad_token_id == model.config.pad_token_id != 3
    tokens = tokenize(TEXTS, tokenizer, backbone.max_length)
    batch = collate(tokens, np.arange(len(TEXTS)), tokenizer.pad_token_id, CPU)
    logits, hidden = model(**batch).logits, model.model(**batch).last_hidden_state
    last_real = batch["attention_mask"].sum(1) - 1
    assert (batch["input_ids"][torch.arange(len(TEXTS)), last_real] == 3).all()
    torch.testing.assert_close(logits, model.score(hidden[torch.arange(len(TEXTS)), last_real]))


def test_where_no_mark_is_free_another_special_token_pads(published, tmp_path):
    folder = closing_every_text(published["llama"], tmp_path, "qwen2")
    tokenizer = load_backbone(str(folder), LABEL_SET).tokenizer
    assert tokenizer("card")["input_ids"][-1] == 3
    assert tokenizer.unk_token is None
    assert tokenizer.bos_token is None
    assert tokenizer.pad_token in ("<unk>", "<pad>", "<s>")


@pytest.mark.parametrize("family", DECODERS)
def test_our_rule_names_the_token_that_the_stock_head_reads(published, family):
    backbone = load_backbone(str(published[family]), LABEL_SET)
    model, pad = backbone.model.eval(), backbone.tokenizer.pad_token_id
    # Texts that hold the pad token: in the middle, at the end, and nothing else.
    ids = [[7, 9, 11], [7, pad, 11, 12], [7, 9, pad], [pad, pad], [7]]
    tokens = Tokens([np.array(row) for row in ids], np.array([len(row) for row in ids]), None)
    batch = collate(tokens, np.arange(len(ids)), pad, CPU)
    read = pooled_positions(batch["input_ids"], pad)
    assert read.tolist() == [2, 3, 1, 0, 0]
    with torch.no_grad():
        hidden = model.base_model(**batch).last_hidden_state
        expected = model.score(hidden[torch.arange(len(ids)), read])
        torch.testing.assert_close(model(**batch).logits, expected)
        features = layer_inputs(model, model.score, tokens, pad_token_id=pad, device=CPU)
        torch.testing.assert_close(model.score(torch.from_numpy(features)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", DECODERS)
def test_no_keys_and_values_are_kept(published, family):
    model = load_backbone(str(published[family]), LABEL_SET).model
    ids = torch.tensor([[7, 9, 11]])
    for mode in (model.train(), model.eval()):
        assert mode(input_ids=ids).past_key_values is None
    config = make_config({"train": "x", "model": str(published[family]), "r": 4})
    rehearsed = Rehearsal(config, len(LABELS), Setup("cpu", "float32", "float32")).model
    assert rehearsed.config.use_cache is False


@pytest.mark.slow
def test_an_adapter_on_weights_published_in_bfloat16_reloads_as_measured_in_float32(published, tmp_path):
    saved = []
    for family in ("qwen3", "llama"):
        folder = Path(shutil.copytree(published[family], tmp_path / f"{family}-bf16"))
        AutoModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
        backbone = load_backbone(str(folder), LABEL_SET)
        model = wrap(backbone.model, make_config({"train": "x", "r": 4}))
        save_model(model, backbone.tokenizer, tmp_path / family, backbone.max_length)
        tokens = tokenize(TEXTS, backbone.tokenizer, backbone.max_length)
        logits = predict_logits(model, tokens, pad_token_id=backbone.tokenizer.pad_token_id, device=CPU)
        saved.append(Saved(tmp_path / family, TEXTS, logits, LABELS, backbone.max_length, is_peft(model)))
    assert max(check_reloads(saved)) < 1e-4
