import json

import pytest
from transformers import BertConfig
from typer.testing import CliRunner

from snugtune.cli import app
from snugtune.errors import UserInputError

KEYS = {
    "name", "fits", "capacity_gib", "predicted_peak_gib", "micro_batch", "levers", "time_s", "cost_usd",
    "basis",
}  # fmt: skip
SHAPE = {
    "vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture
def model(tmp_path):
    BertConfig(**SHAPE).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def run(*arguments):
    return CliRunner().invoke(app, ["plan", *arguments])


def test_devices_in_json(model):
    result = run("--model", model, "--labels", "7", "--max-length", "64", "--gpu", "t4,a100-40", "--json")
    assert result.exit_code == 0, result.exception
    printed = json.loads(result.stdout)
    assert [device["name"] for device in printed["devices"]] == ["t4", "a100-40"]
    for device in printed["devices"]:
        assert set(device) >= KEYS
        assert device["fits"]
        assert 0 < device["predicted_peak_gib"] < device["capacity_gib"]
        assert device["basis"] == "estimated"
    assert printed["parameters"]["trainable"] > 0


def test_this_machine_is_the_default(model):
    printed = json.loads(run("--model", model, "--labels", "3", "--max-length", "16", "--json").stdout)
    assert len(printed["devices"]) == 1
    assert printed["devices"][0]["name"]


def test_a_budget(model):
    arguments = ("--model", model, "--labels", "3", "--max-length", "64", "--gpu", "t4", "--json")
    (device,) = json.loads(run(*arguments, "--memory", "3GiB").stdout)["devices"]
    assert device["capacity_gib"] == 3.0
    (tiny,) = json.loads(run(*arguments, "--memory", "0.1GiB").stdout)["devices"]
    assert not tiny["fits"]


def test_a_table_for_people(model):
    result = run("--model", model, "--labels", "7", "--max-length", "64", "--gpu", "t4")
    assert result.exit_code == 0, result.exception
    for words in ("t4", "Estimated", "consists of", "It falls on", "weights"):
        assert words in result.stdout


def test_labels_and_lengths_come_from_the_data(model, table):
    arguments = ("--model", model, "--gpu", "l4", "--price", "2", "--epochs", "3", "--json")
    result = run(str(table), *arguments)
    assert result.exit_code == 0, result.exception
    printed = json.loads(result.stdout)
    assert printed["labels"] >= 3
    (device,) = printed["devices"]
    assert device["time_s"] > 0
    assert device["cost_usd"] == pytest.approx(device["time_s"] / 3600 * 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--labels"),
        (("--labels", "5", "--gpu", "a1000"), "'a1000' is not known"),
        (("--labels", "5", "--memory", "lots"), "15GiB"),
        (("--recipe", "soup"), "'soup' is not known"),
        (("--labels", "1"), "at least 2 labels"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    result = run(*arguments)
    assert isinstance(result.exception, UserInputError)
    assert message in str(result.exception)
    assert not result.stdout


@pytest.mark.slow
def test_the_recipe_beside_our_plan():
    result = run("--recipe", "blog", "--json")
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    recipe, ours = found["recipe"], found["ours"]
    assert recipe["compute_units"] == 135
    assert recipe["cost_usd"] == pytest.approx(13.49, abs=0.005)
    assert 10 < recipe["predicted_peak_gib"] < 15.77
    assert ours["predicted_peak_gib"] < recipe["predicted_peak_gib"]
    assert ours["time_s"] < recipe["time_s"]
    full = found["full_fine_tuning"]
    # The claim holds for short work and not for the recipe's own batch.
    assert full["micro_batch_1"]["ratio"] > full["micro_batch_8"]["ratio"]
    assert full["micro_batch_8"]["ratio"] < 3
