import json

import pytest
import torch
import typer
from peft import IA3Config, LoraConfig, TaskType, get_peft_model
from transformers import AutoConfig
from typer.testing import CliRunner

from snugtune.cli.plan import plan
from snugtune.config import make_config
from snugtune.errors import UserInputError
from snugtune.model.known import known_config, known_models
from snugtune.model.parameters import PartCount, count_parameters, meta_model, plan_parameters

HEAD = 1024 * 1025 + 214 * 1025
LORA = 24 * 2 * 16 * (1024 + 1024)


def small_bert(**values):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return AutoConfig.for_model("bert", vocab_size=100, num_labels=5, **sizes, **values)


def planned(labels=5, **settings):
    return plan_parameters(make_config({"train": "", **settings}), labels)


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(plan)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_the_numbers_of_the_well_known_recipe():
    report = planned(214, model="xlm-roberta-large", r=16, target_modules=("query", "value"))
    assert (report.all, report.trainable) == (562_951_596, 2_841_814)
    assert report.percent == pytest.approx(0.5048, abs=5e-5)
    assert report.parts == {
        "embeddings": PartCount((250_002 + 514 + 1) * 1024 + 2 * 1024, 0),
        "encoder": PartCount(24 * 12_596_224, 0),
        "adapter": PartCount(LORA, LORA),
        "head": PartCount(2 * HEAD, HEAD),
    }
    # The count often quoted for it has the unused original of the head in it.
    assert LORA + 2 * HEAD == 4_110_764


@pytest.mark.parametrize("name", ["bert-base-cased", "microsoft/deberta-v3-small", "Qwen/Qwen2.5-0.5B"])
def test_totals_are_those_of_peft(name):
    model = meta_model(known_config(name, 9))
    wrapped = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=4))
    trainable, total = wrapped.get_nb_trainable_parameters()
    report = count_parameters(wrapped)
    assert (report.all, report.trainable) == (total, trainable)
    assert report.parts["adapter"].all == report.parts["adapter"].trainable > 0


@pytest.mark.parametrize("name", sorted({model.name for model in known_models().values()}))
def test_every_known_model_can_be_planned_with_the_defaults(name):
    report = planned(6, model=name)
    assert sum(part.all for part in report.parts.values()) == report.all
    assert sum(part.trainable for part in report.parts.values()) == report.trainable
    assert report.parts["embeddings"].trainable == report.parts["encoder"].trainable == 0
    assert all(part.all > 0 for part in report.parts.values())
    assert 0 < report.parts["head"].trainable < report.parts["head"].all


def test_a_plain_model_trains_everything_once():
    model = meta_model(small_bert())
    report = count_parameters(model)
    assert report.all == report.trainable == sum(p.numel() for p in model.parameters())
    assert report.percent == 100.0
    assert report.parts["adapter"] == PartCount(0, 0)
    assert report.parts["head"].all == (32 * 32 + 32) + (5 * 32 + 5)
    assert report.parts["embeddings"].all == (100 + 512 + 2) * 32 + 2 * 32


def test_tied_weights_are_one_tensor():
    model = torch.nn.ModuleDict({"embeddings": torch.nn.Linear(3, 4, bias=False)})
    model["out"] = torch.nn.Linear(3, 4, bias=False)
    model["out"].weight = model["embeddings"].weight
    assert count_parameters(model).all == 12


def test_a_module_without_parameters():
    assert count_parameters(torch.nn.Identity()).percent == 0.0


def test_other_peft_methods_are_adapters_too():
    config = IA3Config(
        task_type=TaskType.SEQ_CLS,
        target_modules=["query"],
        feedforward_modules=[],
        modules_to_save=["classifier"],
    )
    report = count_parameters(get_peft_model(meta_model(small_bert()), config))
    assert report.parts["adapter"] == PartCount(2 * 32, 2 * 32)


def test_methods_and_variants():
    lora = planned(r=8)
    head = planned(method="head")
    full = planned(method="full")
    assert head.trainable == lora.parts["head"].trainable
    assert head.parts["adapter"].all == 0
    assert full.trainable == full.all == head.all
    assert planned(r=16).parts["adapter"].all == 2 * lora.parts["adapter"].all
    # DoRA adds one magnitude for each output of each of the 7 layers' query and value: 6 and the pooling.
    assert planned(r=8, use_dora=True).trainable - lora.trainable == 7 * 2 * 384
    assert planned(r=8, use_rslora=True) == lora
    # The factors that PiSSA starts from stay beside the trained ones, as LoRA of the same rank.
    assert planned(r=8, init_lora_weights="pissa") == planned(r=16)


def test_meta_model_has_shapes_only_and_the_asked_dtype():
    model = meta_model(small_bert(), dtype=torch.bfloat16)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_an_architecture_without_a_classifier():
    with pytest.raises(UserInputError, match="no text classifier of the architecture vit"):
        meta_model(AutoConfig.for_model("vit"))


def test_the_report_is_json():
    report = planned()
    assert json.loads(json.dumps(report.as_dict()))["parts"]["head"]["all"] == report.parts["head"].all


def test_too_few_labels():
    with pytest.raises(UserInputError, match="at least 2 labels, not 1"):
        planned(1)


def test_target_modules_that_the_model_has_not():
    with pytest.raises(UserInputError, match="LoRA cannot be attached"):
        planned(target_modules=("q_proj",))


def test_command_json(command):
    result = command("--model", "xlm-roberta-large", "--labels", "214", "--gpu", "t4", "--json")
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert set(printed) == {"model", "labels", "parameters", "lengths", "devices"}
    assert (printed["model"], printed["labels"]) == ("xlm-roberta-large", 214)
    assert set(printed["parameters"]) == {"all", "trainable", "percent", "parts"}
    assert printed["parameters"]["all"] == 562_951_596
    assert printed["parameters"]["trainable"] == 2_841_814


def test_command_options_reach_peft(command):
    options = ["--r", "4", "--target-modules", "query, key,value", "--modules-to-save", "classifier"]
    options += ["--lora-alpha", "8", "--lora-dropout", "0.1", "--use-rslora", "--json"]
    result = command("--labels", "5", *options)
    parts = json.loads(result.stdout)["parameters"]["parts"]
    assert parts["adapter"]["trainable"] == 7 * 3 * 4 * (384 + 384)
    assert parts["head"]["trainable"] == 5 * 385
    everywhere = command("--labels", "5", "--target-modules", "all-linear", "--json")
    assert json.loads(everywhere.stdout)["parameters"]["parts"]["adapter"]["all"] > parts["adapter"]["all"]


def test_command_table(command):
    result = command("--model", "minilm", "--labels", "7")
    assert result.exit_code == 0
    report = planned(7)
    assert f"{report.all:,}" in result.stdout
    assert f"a fit trains {report.trainable:,} of them ({report.percent:.4f} %)." in result.stdout
    assert all(part in result.stdout for part in ("embeddings", "encoder", "adapter", "head"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--labels", "5", "--model", "roberta-bass"), "roberta-base"),
        (("--labels", "5", "--r", "0"), "r=0"),
        (("--labels", "1"), "at least 2 labels"),
    ],
)
def test_command_refuses_bad_input(command, arguments, message):
    result = command(*arguments)
    assert isinstance(result.exception, UserInputError)
    assert message in str(result.exception)
    assert not result.stdout
