"""The averaging layer: a stock model whose first token carries the mean of all."""

import json

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from snugtune.config import make_config
from snugtune.data.labels import LabelSet
from snugtune.errors import UserInputError
from snugtune.model.adapter import wrap
from snugtune.model.backbone import load_backbone, resolve
from snugtune.model.parameters import count_parameters, plan_parameters
from snugtune.model.pooling import append_mean_pooling, declares_mean_pooling, pooled_folder
from snugtune.train.rehearsal import model_shape

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "pad_token_id": 1,
}  # fmt: skip
KINDS = [(BertConfig, BertModel), (RobertaConfig, RobertaModel), (XLMRobertaConfig, XLMRobertaModel)]


def build(config_class, model_class):
    torch.manual_seed(0)
    return model_class(config_class(**SIZES)).eval()


def batch():
    ids = torch.randint(2, 60, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 12, [1] * 5 + [0] * 7, [1] + [0] * 11])
    return {"input_ids": torch.where(mask == 1, ids, 1), "attention_mask": mask}


def standardised_mean(model):
    inputs = batch()
    hidden = model(**inputs).last_hidden_state
    weights = inputs["attention_mask"][..., None].float()
    mean = (hidden * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.layer_norm(mean, mean.shape[1:])


@pytest.mark.parametrize(("config_class", "model_class"), KINDS)
@torch.no_grad()
def test_the_first_token_becomes_the_mean_of_the_real_tokens(config_class, model_class):
    model = build(config_class, model_class)
    expected = standardised_mean(model)
    append_mean_pooling(model)
    first = model(**batch()).last_hidden_state[:, 0]
    similarity = torch.cosine_similarity(first, expected)
    assert (similarity > 0.999).all(), similarity
    assert model.config.num_hidden_layers == 3


@torch.no_grad()
def test_padding_changes_nothing():
    model = build(*KINDS[0])
    append_mean_pooling(model)
    inputs = batch()
    padded = model(**inputs).last_hidden_state[1, 0]
    alone = model(**{k: v[1:2, :5] for k, v in inputs.items()}).last_hidden_state[0, 0]
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-4)


def test_other_architectures_are_refused():
    model = build(*KINDS[0])
    model.config.model_type = "deberta-v2"
    with pytest.raises(ValueError, match="model_type"):
        append_mean_pooling(model)


@torch.no_grad()
def test_the_folder_is_made_once_and_loads_with_stock_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("SNUGTUNE_CACHE", str(tmp_path / "cache"))
    model = build(*KINDS[0])
    model.save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "vocab.txt").write_text("[PAD]\n")
    folder = pooled_folder(tmp_path / "tiny")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert pooled_folder(tmp_path / "tiny") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
    assert (folder / "vocab.txt").exists()
    append_mean_pooling(model)
    again = AutoModel.from_pretrained(folder).eval()
    torch.testing.assert_close(
        again(**batch()).last_hidden_state, model(**batch()).last_hidden_state, rtol=0, atol=1e-6
    )


def test_only_a_model_that_says_so_is_pooled_unasked(tmp_path):
    assert declares_mean_pooling(resolve("minilm"))
    assert not declares_mean_pooling(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": False}))
    assert not declares_mean_pooling(tmp_path)


def test_the_bundled_model_has_the_layer_unless_told_otherwise():
    labels = LabelSet(("a", "b"))
    assert load_backbone("minilm", labels).model.config.num_hidden_layers == 7
    assert load_backbone("minilm", labels, pooling="first").model.config.num_hidden_layers == 6


def test_mean_pooling_of_a_name_without_a_folder_is_refused():
    with pytest.raises(UserInputError, match="as a folder"):
        load_backbone("nobody/nothing", LabelSet(("a", "b")), pooling="mean")


@pytest.mark.parametrize("pooling", ["auto", "first"])
def test_the_plan_counts_what_the_run_will_load(pooling):
    labels = LabelSet(("a", "b", "c"))
    config = make_config({"train": "", "pooling": pooling})
    model = load_backbone("minilm", labels, pooling=pooling).model
    assert plan_parameters(config, 3) == count_parameters(wrap(model, config))


def test_the_rehearsed_model_has_the_layer_once():
    assert model_shape(make_config({"train": ""}), 3).num_hidden_layers == 7
