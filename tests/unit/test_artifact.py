"""The check of a saved folder must notice whatever differs from what was trained."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import LABELS, texts_and_labels, write_family
from snugtune.config import make_config
from snugtune.data.labels import LabelSet
from snugtune.data.tokens import tokenize
from snugtune.errors import ArtifactError
from snugtune.model import artifact
from snugtune.model.adapter import wrap
from snugtune.model.artifact import Saved, check_reloads, save_model
from snugtune.model.backbone import load_backbone
from snugtune.train.forward import predict_logits

TEXTS = texts_and_labels(6)[0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    import torch

    folder = tmp_path_factory.mktemp("run")
    source = write_family(folder / "base", "bert")
    backbone = load_backbone(str(source), LabelSet(LABELS, {}))
    model = wrap(backbone.model, make_config({"train": "x", "r": 4}))
    save_model(model, backbone.tokenizer, folder / "adapter", backbone.max_length)
    tokens = tokenize(TEXTS, backbone.tokenizer, backbone.max_length)
    logits = predict_logits(
        model, tokens, pad_token_id=backbone.tokenizer.pad_token_id, device=torch.device("cpu")
    )
    return Saved(folder / "adapter", TEXTS, logits, LABELS, backbone.max_length, peft=True)


def test_the_folder_holds_labels_and_pad_token(saved):
    config = json.loads((saved.folder / "config.json").read_text(encoding="utf-8"))
    assert list(config["id2label"].values()) == list(LABELS)
    assert config["pad_token_id"] == 1
    adapter = json.loads((saved.folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["task_type"] == "SEQ_CLS"
    assert Path(adapter["base_model_name_or_path"]).is_dir()
    assert not list(saved.folder.glob("*.bin"))


def faulty(saved, folder):
    """Copies of the saved folder, each with one fault, and the words that must name it."""

    def copy(name):
        return Path(shutil.copytree(saved.folder, folder / name))

    head = copy("head")
    weights = load_file(head / "adapter_model.safetensors")
    key = next(k for k in weights if k.endswith("classifier.bias"))
    weights[key] = weights[key] + 0.01
    save_file(weights, head / "adapter_model.safetensors", {"format": "pt"})

    labels = copy("labels")
    config = json.loads((labels / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = {str(i): name for i, name in enumerate(reversed(LABELS))}
    config["label2id"] = {name: i for i, name in enumerate(reversed(LABELS))}
    (labels / "config.json").write_text(json.dumps(config), encoding="utf-8")

    tokenizer = copy("tokenizer")
    (tokenizer / "adapter_model.safetensors").write_bytes(b"not a model")
    return [
        (saved, None),
        (replace(saved, folder=head), "other logits"),
        (replace(saved, folder=labels), "says"),
        (replace(saved, folder=tokenizer), "does not load"),
        (replace(saved, logits=saved.logits[:, :2]), "another shape"),
    ]


@pytest.mark.slow
def test_a_new_process_notices_every_fault(saved, tmp_path, monkeypatch):
    cases = faulty(saved, tmp_path)
    answers = []

    # One process answers for all; each answer is then judged by itself.
    monkeypatch.setattr(artifact, "_compare", lambda one, answer: answers.append(answer) or 0.0)
    artifact.check_reloads([case for case, _ in cases])
    monkeypatch.undo()
    for (case, words), answer in zip(cases, answers, strict=True):
        if words is None:
            assert artifact._compare(case, answer) < 1e-4
        else:
            with pytest.raises(ArtifactError, match=words):
                artifact._compare(case, answer)


@pytest.mark.slow
def test_a_folder_that_does_not_load(tmp_path, saved):
    with pytest.raises(ArtifactError, match="does not load in a new process"):
        check_reloads([Saved(tmp_path, TEXTS, saved.logits, LABELS, 64, False)])


def test_the_check_sees_no_card(monkeypatch):
    asked = {}

    def run(command, **options):
        asked.update(options["env"])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(artifact.subprocess, "run", run)
    assert check_reloads([]) == []
    assert asked["CUDA_VISIBLE_DEVICES"] == asked["HIP_VISIBLE_DEVICES"] == ""
    assert asked["PATH"]
