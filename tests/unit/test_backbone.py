"""Models that cannot be used: each must give one sentence that says what is wrong and what to do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoConfig, AutoModelForSequenceClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import FAMILIES, LABELS, make_tokenizer, write_family
from snugtune.config import make_config
from snugtune.data.labels import LabelSet
from snugtune.data.tokens import tokenize
from snugtune.errors import UserInputError
from snugtune.model import backbone
from snugtune.model.adapter import wrap
from snugtune.model.backbone import DEFAULT_MAX_LENGTH, load_backbone, resolve
from snugtune.model.head import NEW_PARAMETERS
from snugtune.model.peft_config import lora_config

LABEL_SET = LabelSet(LABELS, {})
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return {f: write_family(tmp_path_factory.mktemp(f), f) for f in ("bert", "roberta", "gpt2")}


@pytest.fixture
def folder(published, tmp_path):
    return Path(shutil.copytree(published["bert"], tmp_path / "model"))


def refusal(name, **options):
    with pytest.raises(UserInputError) as caught:
        load_backbone(str(name), LABEL_SET, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_good_folder_loads(folder):
    backbone = load_backbone(str(folder), LABEL_SET)
    assert backbone.model.config.id2label == dict(enumerate(LABELS))
    assert getattr(backbone.model, NEW_PARAMETERS) == {"classifier.weight", "classifier.bias"}


def test_a_name_that_the_hub_has_not():
    assert "cannot be reached or does not exist" in refusal("nobody/nothing")


@pytest.mark.slow
def test_an_unreachable_hub_is_told_within_seconds():
    program = (
        "import time, sys; from snugtune.model.backbone import load_backbone\n"
        "from snugtune.data.labels import LabelSet; from snugtune.errors import UserInputError\n"
        "calls = []; import huggingface_hub.utils._http as http; sleep = time.sleep\n"
        "time.sleep = lambda s: (calls.append(s), sleep(0))\n"
        "try: load_backbone('nobody/nothing', LabelSet(('a', 'b'), {}))\n"
        "except UserInputError as error: print(error)\n"
        "print('waits:', calls)"
    )
    # Nothing listens on port 9 of this machine.
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=environment, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert "cannot be reached" in done.stdout
    assert "waits: []" in done.stdout


def test_a_path_that_is_not_there(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nowhere")


def test_no_configuration(folder):
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)


def test_only_pickled_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refusal(folder)
    assert "no safetensors weights" in message
    assert "pickled" in message


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "no safetensors weights (none)" in refusal(folder)


def test_code_of_its_own_is_never_run(folder):
    edit_config(folder, model_type="homemade", auto_map={"AutoConfig": "homemade.Config"})
    (folder / "homemade.py").write_text("raise SystemExit('ran')")
    assert "asks to run its own code" in refusal(folder)


def test_weights_cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "damaged or cut short" in refusal(folder)


def test_weights_of_fewer_layers_than_the_configuration(folder):
    path = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "layer.1." not in k}, path, {"format": "pt"})
    message = refusal(folder)
    assert "do not fit its config.json" in message
    assert "encoder.layer.1." in message


def test_a_pooler_that_is_not_in_the_weights_is_new(folder):
    path = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "pooler" not in k}, path, {"format": "pt"})
    model = load_backbone(str(folder), LABEL_SET).model
    assert "bert.pooler.dense.weight" in getattr(model, NEW_PARAMETERS)


def test_a_classifier_of_other_labels_gets_a_new_head(tmp_path):
    config = AutoConfig.for_model("bert", **FAMILIES["bert"], num_labels=7)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    make_tokenizer("bert").save_pretrained(tmp_path)
    model = load_backbone(str(tmp_path), LABEL_SET).model
    assert model.classifier.out_features == len(LABELS)
    assert "classifier.weight" in getattr(model, NEW_PARAMETERS)


def test_an_architecture_for_other_things_than_text(folder):
    AutoConfig.for_model("vit").save_pretrained(folder)
    assert "no text classifier of the architecture vit" in refusal(folder)


def test_no_tokenizer(folder):
    for name in TOKENIZER_FILES:
        (folder / name).unlink()
    assert "tokenizer" in refusal(folder)


def test_no_fast_tokenizer(folder):
    for name in TOKENIZER_FILES:
        (folder / name).unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
    assert "no fast tokenizer" in refusal(folder)


def test_a_tokenizer_of_a_larger_vocabulary(folder):
    make_tokenizer("bert", 250).save_pretrained(folder)
    message = refusal(folder)
    assert "token ids up to 249" in message
    assert "200 rows" in message


def test_a_special_token_beyond_the_embedding_that_no_text_contains(folder):
    tokenizer = make_tokenizer("bert")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    load_backbone(str(folder), LABEL_SET)


def test_the_pad_token_is_never_the_one_that_closes_every_text(published, tmp_path):
    folder = Path(shutil.copytree(published["gpt2"], tmp_path / "model"))
    tokenizer = make_tokenizer("gpt2")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 3)]
    )
    tokenizer.save_pretrained(folder)
    backbone = load_backbone(str(folder), LABEL_SET)
    assert backbone.tokenizer("card")["input_ids"][-1] == 3
    assert backbone.tokenizer.pad_token_id == backbone.model.config.pad_token_id == 0


def test_lengths(published):
    name = str(published["bert"])
    assert load_backbone(name, LABEL_SET).max_length == 64
    assert load_backbone(name, LABEL_SET, max_length=10).max_length == 10
    assert "max_length=65 is more than the 64 tokens" in refusal(name, max_length=65)


def test_positions_of_roberta_start_after_the_padding_index(published, tmp_path):
    folder = Path(shutil.copytree(published["roberta"], tmp_path / "model"))
    tokenizer = make_tokenizer("roberta")
    tokenizer.model_max_length = 10**9
    tokenizer.save_pretrained(folder)
    backbone = load_backbone(str(folder), LABEL_SET)
    assert backbone.max_length == 64 < DEFAULT_MAX_LENGTH
    backbone.model(torch.full((1, 64), 5))
    with pytest.raises((IndexError, RuntimeError)):
        backbone.model(torch.full((1, 65), 5))


def test_a_folder_is_remembered_by_its_whole_path(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert resolve("model") == str(folder.resolve())
    assert resolve("some/name") == "some/name"


def wrapped(published, **settings):
    config = make_config({"train": "x", "r": 4, **settings})
    return wrap(load_backbone(str(published["bert"]), LABEL_SET).model, config)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_modules": ("nothing",)}, "LoRA cannot be attached"),
        ({"target_modules": ("query", "valeu")}, "target_modules names valeu"),
        ({"layers_to_transform": (2,)}, "LoRA cannot be attached"),
        ({"layers_to_transform": (0, 5)}, "layers_to_transform names layer 5"),
        ({"layers_to_transform": (-1, 0)}, "layers_to_transform names layer -1"),
        ({"modules_to_save": ("nothing",)}, "modules_to_save names nothing"),
        ({"init_lora_weights": "pissa", "r": 40}, "r of at most 32"),
        ({"init_lora_weights": "orthogonal", "r": 3}, "rank to be even"),
        ({"target_modules": "all-linear", "layers_to_transform": (0,)}, "LoRA cannot be attached"),
    ],
)
def test_lora_settings_that_fit_nothing(published, settings, words):
    with pytest.raises(UserInputError) as caught:
        wrapped(published, **settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_first_layer_alone(published):
    names = [n for n, p in wrapped(published, layers_to_transform=(0,)).named_parameters() if "lora_" in n]
    assert names
    assert all(".layer.0." in name for name in names)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_decomposing_start_changes_no_weight_and_no_logit(published, family, init):
    plain = load_backbone(str(published[family]), LABEL_SET).model.eval()
    base = load_backbone(str(published[family]), LABEL_SET).model
    base.load_state_dict(plain.state_dict())
    model = wrap(base, make_config({"train": "x", "r": 4, "init_lora_weights": init})).eval()
    ids = torch.tensor([[2, 7, 9, 3]])
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)
    model(ids).logits.sum().backward()
    layer = next(m for m in model.modules() if "default" in getattr(m, "lora_A", {}))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.shape[0] == b.shape[1] == 8
    assert a.grad[:4].any()
    assert b.grad[:, :4].any()
    assert not a.grad[4:].any()
    assert not b.grad[:, 4:].any()


def test_pissa_has_the_factors_and_the_scaling_of_peft(published):
    from peft import LoraConfig, get_peft_model

    ours = wrapped(published, init_lora_weights="pissa", lora_alpha=8)
    theirs = get_peft_model(
        load_backbone(str(published["bert"]), LABEL_SET).model,
        LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"], init_lora_weights="pissa"),
    )
    pair = [
        next(m for n, m in model.named_modules() if n.endswith("layer.1.attention.self.value"))
        for model in (ours, theirs)
    ]
    assert pair[0].scaling == pair[1].scaling
    products = [m.lora_B["default"].weight[:, :4] @ m.lora_A["default"].weight[:4] for m in pair]
    torch.testing.assert_close(products[0], products[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rslora", [True, False])
def test_doubling_the_rank_keeps_the_scaling(rslora):
    settings = {"train": "x", "r": 8, "lora_alpha": 16, "use_rslora": rslora}
    plain, doubled = (
        lora_config(make_config({**settings, "init_lora_weights": init}), ()) for init in (True, "olora")
    )
    scaling = [c.lora_alpha / (c.r**0.5 if rslora else c.r) for c in (plain, doubled)]
    assert scaling[0] == pytest.approx(scaling[1])
    assert doubled.r == 16


def test_a_length_without_room_for_text_is_refused():
    tokenizer = make_tokenizer("bert")
    room = tokenizer.num_special_tokens_to_add(pair=False)
    with pytest.raises(UserInputError, match=f"max_length={room} leaves no room for text"):
        tokenize(["a b"], tokenizer, room)
    assert tokenize(["a b"], tokenizer, room + 1).lengths.tolist() == [room + 1]


def test_memory_that_runs_out_while_weights_load_is_no_fault_of_the_user(tmp_path, monkeypatch):
    class Factory:
        @staticmethod
        def from_pretrained(*_args, **_options):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    with pytest.raises(torch.OutOfMemoryError):
        backbone._load(Factory, str(tmp_path), "a model")
