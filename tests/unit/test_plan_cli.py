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
    for words in (
        "t4",
        "uncalibrated",
        "Uncalibrated: no step on this card",
        "consists of",
        "It falls on",
        "weights",
    ):
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


def test_limits_that_are_kept_and_that_are_not(model):
    arguments = ("--model", model, "--labels", "3", "--max-length", "128", "--gpu", "t4", "--json")
    (kept,) = json.loads(run(*arguments, "--rows", "1000", "--max-hours", "5").stdout)["devices"]
    assert kept["limits"]["kept"] is True
    assert kept["limits"]["ways"] == []
    more = ("--rows", "20000000", "--epochs", "4", "--price", "1")
    device = json.loads(run(*arguments, *more).stdout)["devices"][0]
    seconds = device["fit_time_s"] - 0.4 * device["time_s"]
    most = str(seconds / 3600)
    (missed,) = json.loads(run(*arguments, *more, "--max-hours", most).stdout)["devices"]
    assert missed["time_s"] < missed["fit_time_s"]
    verdict = missed["limits"]
    assert verdict["kept"] is False
    assert "does not keep to" in verdict["why"]
    changes = [way["change"] for way in verdict["ways"]]
    assert "2 of the 4 epochs" in changes
    assert all(way["time_s"] <= seconds * 1.0001 for way in verdict["ways"])


def test_limits_without_any_texts_cannot_be_told(model):
    result = run("--model", model, "--labels", "3", "--max-length", "16", "--gpu", "t4", "--max-cost", "1")
    assert "cannot be told without a table or --rows" in result.stdout


def test_limits_for_people_have_their_price_in_words(model):
    arguments = ("--model", model, "--labels", "3", "--max-length", "128", "--gpu", "t4")
    result = run(*arguments, "--rows", "90000000", "--max-hours", "1", "--max-cost", "0.5")
    assert "t4: It does not keep to 1 h 00 min and 0.50 USD" in result.stdout


def test_figures_say_what_they_rest_on_and_prices_where_they_are_from(model):
    arguments = ("--model", model, "--labels", "3", "--max-length", "16", "--rows", "9000")
    (here,) = json.loads(run(*arguments, "--json").stdout)["devices"]
    assert here["bases"]["capacity_gib"] == "measured"
    (t4,) = json.loads(run(*arguments, "--gpu", "t4", "--json").stdout)["devices"]
    assert set(t4["bases"].values()) == {"estimated"}
    assert t4["price"]["source"].startswith("https://")
    assert t4["price"]["date"]
    (own,) = json.loads(run(*arguments, "--gpu", "t4", "--price", "7", "--json").stdout)["devices"]
    assert own["price"]["usd_per_hour"] == 7
    assert own["cost_usd"] == pytest.approx(own["time_s"] / 3600 * 7)


def test_plan_takes_the_settings_of_a_fit(model, tmp_path):
    (tmp_path / "fit.yaml").write_text(f"model: {model}\nmax_length: 32\nr: 4\n")
    arguments = ("--config", str(tmp_path / "fit.yaml"), "--labels", "3", "--gpu", "t4", "--json")
    small = json.loads(run(*arguments).stdout)
    assert small["model"] == model
    assert small["devices"][0]["length"] == 32
    larger = json.loads(run(*arguments, "--r", "8").stdout)
    assert larger["parameters"]["trainable"] > small["parameters"]["trainable"]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_picture(model, tmp_path, suffix):
    path = tmp_path / f"peak{suffix}"
    result = run(
        "--model", model, "--labels", "3", "--max-length", "64", "--gpu", "t4,l4", "--picture", str(path)
    )
    assert result.exit_code == 0, result.exception
    if suffix == ".svg":
        text = path.read_text()
        assert all(words in text for words in ("t4: 32 x 64", "l4: 32 x 64", "weights", "GiB"))
    else:
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--labels"),
        (("--labels", "5", "--max-hours", "0"), "--max-hours must be more than 0"),
        (("--labels", "5", "--max-cost", "-2"), "--max-cost must be more than 0"),
        (("--labels", "5", "--rows", "0"), "--rows must be at least 1"),
        (("--labels", "5", "--max-length", "16", "--gpu", "t4", "--picture", "peak.gif"), "'peak.gif'"),
        (("--labels", "5", "--gpu", "a1000"), "'a1000' is not known"),
        (("--labels", "5", "--memory", "lots"), "15GiB"),
        (("--recipe", "soup"), "'soup' is not known"),
        (("--recipe", "blog", "--gpu", "t4", "--devices", "1"), "leave --gpu, --devices out"),
        (("--labels", "5", "--gpu", ","), "must name a GPU"),
        (
            ("--labels", "5", "--gpu", "t4", "--memory", "15GiB"),
            "15.00 GiB is more than the 14.56 GiB of the t4",
        ),
        (
            ("--labels", "5", "--max-length", "16", "--gpu", "t4,l4", "--price", "1"),
            "one price for 2 devices",
        ),
        (("table.csv", "--labels", "5", "--gpu", "t4"), "--labels is for plans without a table"),
        (("table.csv", "--rows", "5", "--gpu", "t4"), "--rows is for plans without a table"),
        (("--labels", "1"), "at least 2 labels"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    result = run(*arguments)
    assert isinstance(result.exception, UserInputError)
    assert message in str(result.exception)
    assert not result.stdout


def test_a_table_of_one_label_is_told_by_its_name(tmp_path):
    table = tmp_path / "one.csv"
    table.write_text("text,label\n" + "".join(f"my card number {i} is lost,Card\n" for i in range(30)))
    result = run(str(table), "--gpu", "t4")
    assert isinstance(result.exception, UserInputError)
    assert "one.csv all carry one label" in str(result.exception)


@pytest.mark.long
def test_the_recipe_beside_our_plan():
    result = run("--recipe", "blog", "--json")
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    recipe, ours = found["recipe"], found["ours"]
    assert recipe["compute_units"] == 135
    assert recipe["cost_usd"] == pytest.approx(13.49, abs=0.005)
    assert 10 < recipe["predicted_peak_gib"] < 15.77
    assert sum(recipe["composition"].values()) == pytest.approx(recipe["predicted_peak_gib"])
    assert recipe["composition"]["activations: attention"] > 2
    assert ours["predicted_peak_gib"] < recipe["predicted_peak_gib"]
    assert ours["time_s"] < recipe["time_s"]
    assert found["ours_by_formula"]["cost_usd"] < 2
    shown = run("--recipe", "blog").stdout
    for words in (
        "around 15 GB",
        "135 (9 h x 15 GB)",
        "13.49",
        "three times less",
        "230 tokens",
        "dropout 0.1",
    ):
        assert words in shown
    full = found["full_fine_tuning"]
    # Both are counted by the same model of time, and what was published is told apart.
    assert recipe["estimated_compute_units"] > found["ours_by_formula"]["compute_units"]
    assert recipe["estimated_cost_usd"] < recipe["cost_usd"]
    assert "holds at 1 x 512 (3." in full["why"]
    assert "does not hold at 8 x 512 (2." in full["why"]
    # The claim holds for short work and not for the recipe's own batch.
    assert full["micro_batch_1"]["ratio"] > full["micro_batch_8"]["ratio"]
    assert full["micro_batch_8"]["ratio"] < 3
