"""The checker of exported folders notices every file and key that other programs would miss."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import LABELS, texts_and_labels, write_family
from snugtune.data.labels import LabelSet
from snugtune.errors import ArtifactError
from snugtune.export.serving import check_folder, complete_config
from snugtune.model.artifact import save_model
from snugtune.model.backbone import load_backbone

TEXTS = texts_and_labels(5)[0]
MAX_LENGTH = 48


def saved(folder, family):
    backbone = load_backbone(str(write_family(folder / "base", family)), LabelSet(LABELS, {}))
    save_model(backbone.model, backbone.tokenizer, folder / "model", MAX_LENGTH)
    complete_config(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("bert"), "bert")


def check(folder):
    return {verdict.program: verdict for verdict in check_folder(folder, max_length=MAX_LENGTH, texts=TEXTS)}


def test_a_sound_folder(bert):
    assert [(name, verdict.runs) for name, verdict in check(bert).items()] == [
        ("pipeline", True), ("text-embeddings-inference", True), ("vLLM classify", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "tei", "vllm"),
    [
        ("xlm-roberta", True, True), ("modernbert", True, True), ("deberta-v2", True, False),
        ("camembert", True, False), ("distilbert", False, False), ("electra", False, False),
        ("qwen3", False, True), ("gpt2", False, True),
    ],
)  # fmt: skip
def test_who_runs_which_family(tmp_path, family, tei, vllm):
    found = check(saved(tmp_path, family))
    assert found["pipeline"].runs
    assert found["text-embeddings-inference"].runs == tei, found
    assert found["vLLM classify"].runs == vllm, found
    assert tei or "no classifier for models of type" in found["text-embeddings-inference"].why[0]


def test_keys_that_tei_needs_are_written_and_do_not_disturb_transformers(tmp_path):
    from transformers import AutoConfig

    folder = saved(tmp_path, "modernbert")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["num_labels"] == 3
    assert (config["global_rope_theta"], config["local_rope_theta"]) == (160000.0, 10000.0)
    assert config["global_attn_every_n_layers"] == 2
    again = AutoConfig.from_pretrained(folder)
    assert again.num_labels == 3
    assert again.rope_parameters["sliding_attention"]["rope_theta"] == 10000.0
    assert again.layer_types == ["full_attention", "sliding_attention"]
    for key in ("num_labels", "global_rope_theta"):
        del config[key]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    why = check(folder)["text-embeddings-inference"].why
    assert why == ("it looks for num_labels in config.json", "it looks for global_rope_theta in config.json")


def edited(**changes):
    def edit(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) | changes
        path.write_text(json.dumps(config), encoding="utf-8")

    return edit


def without(name):
    return lambda folder: (folder / name).unlink()


def other_head(folder):
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] = torch.zeros(2, 32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


FAULTS = {
    "no config": (without("config.json"), "config.json is missing"),
    "gap": (edited(id2label={"0": "Card", "2": "Fees", "3": "Lo/an ü"}), "do not run from 0 without a gap"),
    "one name": (edited(id2label={"0": "a", "1": "a", "2": "b"}, label2id={"a": 1, "b": 2}), "have one name"),
    "not reverse": (edited(label2id={"Card": 1, "Fees": 0, "Lo/an ü": 2}), "not the reverse"),
    "no classifier": (edited(architectures=["BertModel"]), "names no sequence classifier"),
    "code": (edited(auto_map={"AutoModel": "x.y"}), "refers to code"),
    "pad token": (edited(pad_token_id=None), "pad_token_id in config.json is no number"),
    "problem type": (edited(problem_type=None), "problem_type is missing"),
    "no weights": (without("model.safetensors"), "weights file model.safetensors is missing"),
    "head": (other_head, "no head of 3 classes"),
    "no tokenizer": (without("tokenizer.json"), "tokenizer.json is missing"),
    "no settings": (without("tokenizer_config.json"), "tokenizer_config.json is missing"),
    "no length": (without("sentence_bert_config.json"), "does not say max_seq_length 48"),
    "pickle": (lambda folder: (folder / "pytorch_model.bin").write_bytes(b""), "pickled files"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named(bert, tmp_path, fault):
    damage, words = FAULTS[fault]
    folder = Path(shutil.copytree(bert, tmp_path / "copy"))
    damage(folder)
    with pytest.raises(ArtifactError, match=words):
        check(folder)


def test_a_length_other_than_the_trained_one(bert):
    with pytest.raises(ArtifactError, match="does not say max_seq_length 64"):
        check_folder(bert, max_length=64)


def test_all_faults_are_named_at_once(bert, tmp_path):
    folder = Path(shutil.copytree(bert, tmp_path / "copy"))
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).unlink()
    with pytest.raises(ArtifactError, match=r"model\.safetensors.*tokenizer\.json"):
        check(folder)


def test_the_problem_type_is_that_of_the_run(bert, tmp_path):
    with pytest.raises(ArtifactError, match=r"problem_type in config\.json is not multi_label"):
        check_folder(bert, max_length=MAX_LENGTH, problem_type="multi_label_classification")
    several = shutil.copytree(bert, tmp_path / "several")
    path = several / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"problem_type": "multi_label_classification"}), encoding="utf-8")
    found = check_folder(several, max_length=MAX_LENGTH, problem_type="multi_label_classification")
    assert [verdict.runs for verdict in found] == [True, True, True]
    assert "raw_scores" in found[1].why[0]
    with pytest.raises(ArtifactError, match="is not single_label_classification"):
        check_folder(several, max_length=MAX_LENGTH)
