import json
import socket

import pytest
import torch
import transformers
from transformers import AutoConfig

from snugtune.config import make_config
from snugtune.errors import UserInputError
from snugtune.model.known import close_names, find_config, known_config, known_models
from snugtune.model.parameters import plan_parameters

NAMES = sorted({model.name for model in known_models().values()})


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", NAMES)
def test_the_values_give_the_published_parameter_count(name):
    known = known_models()[name]
    config = known_config(name, 3)
    with torch.device("meta"):
        model = getattr(transformers, known.published_class)(config)
    assert sum(p.numel() for p in model.parameters()) == known.published_parameters


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_one_that_the_configuration_class_has(name):
    # A misspelt key would be kept as a stray attribute and change nothing.
    known = known_models()[name]
    fresh = set(AutoConfig.for_model(known.model_type).to_dict())
    # Names of rotary settings before Transformers 5, which it turns into rope_parameters.
    old = {"rope_theta", "rope_scaling", "rope_local_base_freq", "global_rope_theta", "local_rope_theta"}
    old |= {"global_attn_every_n_layers", "sliding_window_pattern"}
    # Read by the model of DeBERTa with getattr, though its configuration class does not declare them.
    undeclared = {"norm_rel_ebd", "position_buckets", "share_att_key"}
    config = AutoConfig.for_model(known.model_type)
    assert not {k for k in known.config if k not in fresh | old | undeclared and not hasattr(config, k)}


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_names_its_config_json(name):
    known = known_models()[name]
    assert known.source.startswith("https://huggingface.co/")
    assert known.source.endswith("/config.json")
    assert known.source.split("/")[4] == known.name.rpartition("/")[2]


def test_aliases_and_labels():
    assert known_config("FacebookAI/xlm-roberta-large", 214).num_labels == 214
    assert known_config("xlm-roberta-large", 2).to_dict() == (
        known_config("FacebookAI/xlm-roberta-large", 2).to_dict()
    )
    assert known_config("minilm", 5).hidden_size == 384
    assert known_config("nobody/nothing", 5) is None


def test_reading_twice_does_not_share_nested_values():
    first, second = (known_config("meta-llama/Llama-3.2-1B", 2) for _ in range(2))
    first.rope_parameters["factor"] = 1.0
    assert second.rope_parameters["factor"] == 32.0
    assert second.rope_parameters["rope_theta"] == 500000.0


def test_rotary_settings_arrive():
    rope = known_config("answerdotai/ModernBERT-base", 2).rope_parameters
    assert rope["full_attention"]["rope_theta"] == 160000.0
    assert rope["sliding_attention"]["rope_theta"] == 10000.0
    assert known_config("Qwen/Qwen3-0.6B", 2).rope_parameters["rope_theta"] == 1000000


def test_a_folder_goes_before_a_known_name(tmp_path, monkeypatch):
    AutoConfig.for_model("bert", hidden_size=48, num_attention_heads=4).save_pretrained(
        tmp_path / "roberta-base"
    )
    monkeypatch.chdir(tmp_path)
    config = find_config("roberta-base", 7)
    assert (config.model_type, config.hidden_size, config.num_labels) == ("bert", 48, 7)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("xlm-roberta-larg", "xlm-roberta-large"),
        ("deberta-v3-base", "microsoft/deberta-v3-base"),
        ("modernbert-base", "answerdotai/ModernBERT-base"),
        ("Qwen3-8b", "Qwen/Qwen3-8B"),
    ],
)
def test_close_names(typed, meant):
    assert close_names(typed)[0] == meant


def test_an_unknown_name_is_one_sentence_with_ways_on():
    with pytest.raises(UserInputError) as caught:
        find_config("xlm-roberta-larg", 2)
    message = str(caught.value)
    assert "xlm-roberta-larg is not known offline" in message
    assert "(xlm-roberta-large" in message
    assert "config.json" in message
    assert "network" in message
    assert message.endswith(".")
    assert "\n" not in message


def test_a_folder_without_a_configuration(tmp_path):
    with pytest.raises(UserInputError, match=r"holds no readable config\.json"):
        find_config(str(tmp_path), 2)


def test_a_folder_with_a_damaged_configuration(tmp_path):
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserInputError, match=r"holds no readable config\.json"):
        find_config(str(tmp_path), 2)


def test_a_folder_of_an_architecture_that_transformers_has_not(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "homemade"}', encoding="utf-8")
    with pytest.raises(UserInputError, match="cannot be used"):
        find_config(str(tmp_path), 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "t5"}, "has an encoder and a decoder"),
        ({"model_type": "bert", "hidden_size": "x"}, "cannot be used: .*hidden_size"),
        ({"model_type": "bert", "hidden_size": 100, "num_attention_heads": 12}, "100.* is not a multiple of"),
        ({"model_type": "bert", "hidden_size": -4}, "cannot be used: "),
        ({"model_type": "bert", "pad_token_id": 10**6}, "cannot be used: "),
        ({"model_type": "vit"}, "no text classifier of the architecture vit"),
    ],
)
def test_a_configuration_that_makes_no_model_is_one_true_sentence(tmp_path, values, message):
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserInputError, match=message) as caught:
        plan_parameters(make_config({"train": "", "model": str(tmp_path)}), 3)
    assert str(caught.value).count("\n") == 0
    assert str(caught.value).endswith(".")
