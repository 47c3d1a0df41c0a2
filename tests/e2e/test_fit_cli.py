"""The whole job through the command line, on the real MiniLM weights."""

import json
import signal
import subprocess
import sys

import polars as pl
import pytest
from test_run_folder_docs import check_record


def snugtune(*args, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "snugtune", *map(str, args)], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.slow
def test_fit_then_predict(table, tmp_path):
    run = tmp_path / "run"
    done = snugtune("fit", table, "--test", table, "--out", run, "--epochs", 1, "--price", 1.0, "--json")
    record = json.loads(done.stdout)
    assert record == json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert record["labels"] == ["Card lost", "Fees", "Löan"]
    cleaning = record["data"]["cleaning"]
    assert (cleaning["empty_texts"], cleaning["blank_labels"], cleaning["exact_duplicates"]) == (1, 1, 1)
    assert cleaning["merged_labels"] == {"Fees": ["FEES"]}
    assert record["metrics"]["test"]["accuracy"] > 0.9
    assert {"f1_macro", "accuracy"} <= set(record["metrics"]["test"])
    assert record["reload"]["largest_logit_difference"] <= 1e-3
    assert record["parameters"]["trainable"] < record["parameters"]["all"]
    assert record["time"]["train_s"] > 0
    assert record["cost"]["usd"] > 0
    assert (run / "adapter" / "adapter_config.json").exists()
    check_record(record)
    assert 0 < record["memory"]["predicted_peak_gib"] < 4 * record["memory"]["measured_peak_gib"]
    assert record["data"]["test_rows_like_training"] > 0
    assert record["baseline"]["metrics"]["test"]["accuracy"] > 0.5
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "model-index" in card
    assert "`Löan`" in card
    check_report(run, tmp_path)

    snugtune("fit", table, "--out", run, code=2)

    scored = json.loads(snugtune("evaluate", run, table, "--json").stdout)
    assert scored["metrics"]["accuracy"] == pytest.approx(record["metrics"]["test"]["accuracy"])
    assert scored["unseen_labels"] == {}
    assert scored["rows_without_text"] == 1

    output = tmp_path / "done.xlsx"
    snugtune("predict", run, table, "-o", output)
    predicted = pl.read_excel(output)
    assert predicted.height == 124
    added = ["predicted_label", "confidence", "needs_review", "second_label", "third_label"]
    assert predicted.columns == ["Text", "Category", *added]
    clean = predicted.head(120)
    assert (clean["predicted_label"] == clean["Category"]).mean() > 0.9


def check_report(run, folder):
    """Every block that a real run records is on its page, which can be made again."""
    page = (run / "report.html").read_text(encoding="utf-8")
    for block in (
        "verdict", "data", "quality", "automation", "classes", "slices", "calibration", "training", "model",
        "cost", "settings",
    ):  # fmt: skip
        assert f'<section id="{block}"' in page, block
    for words in (
        "Loss (cross-entropy, nats)", "Learning rate", "Memory, GiB", "predicted peak", "Score on validation",
        "Parameters", "Quoted before training", "1,000 predictions", "What else it could have cost",
        "Labels that look wrong", "Share right by confidence, after", "Class sizes",
    ):  # fmt: skip
        assert words in page, words
    again = folder / "again.html"
    snugtune("report", run, "-o", again)
    assert again.read_text(encoding="utf-8") == page
    snugtune("report", run, "-o", folder / "again.csv", code=2)
    snugtune("report", folder, code=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.csv"], ["nowhere.csv", "check the path"]),
        (["{table}", "--label", "Categry"], ["no column 'Categry'", "did you mean 'Category'"]),
        (["{table}", "--method", "magic"], ["method='magic'"]),
        (["{table}", "--text", "Category", "--label", "Category"], ["both text and label"]),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(table, tmp_path, arguments, words):
    filled = [argument.format(table=table) for argument in arguments]
    done = snugtune("fit", *filled, "--out", tmp_path / "run", code=2)
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stdout == ""


def test_start_up_loads_nothing_heavy():
    code = (
        "import sys, snugtune, snugtune.cli; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'polars', 'sklearn')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_learned(table, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "snugtune", "fit", str(table), "--out", str(run), "--epochs", "500"]
    with subprocess.Popen([*command, "--patience", "500"], stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("Epoch 1.0"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert f"kept in {run}" in rest.replace("\n", "")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert record["training"]["interrupted"] is True
    assert "Ctrl-C ended it" in (run / "report.html").read_text(encoding="utf-8")
    # Its state stays for the same command to go on from; nothing half-written does.
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".run.states"]


@pytest.mark.slow
def test_a_saved_configuration_repeats_the_run(table, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    plain = ("--no-report-texts", "--no-audit")
    snugtune("fit", table, "--out", first, "--epochs", 1, "--seed", 3, "--r", 4, *plain)
    assert "text" not in pl.read_parquet(first / "predictions.parquet").columns
    assert "bank did not answer" not in "".join(
        (first / name).read_text(encoding="utf-8") for name in ("run.json", "report.html", "README.md")
    )
    assert "Labels that look wrong" not in (first / "report.html").read_text(encoding="utf-8")
    snugtune("fit", table, "--out", second, "--config", first / "config.yaml")
    records = [json.loads((run / "run.json").read_text(encoding="utf-8")) for run in (first, second)]
    assert records[0]["config"] == records[1]["config"]
    assert records[0]["metrics"] == records[1]["metrics"]


def test_a_full_disk_is_one_sentence(table, tmp_path):
    code = (
        "import errno, os, pathlib, sys\n"
        "def full(*_, **__): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "pathlib.Path.mkdir = full\n"
        "from snugtune.cli import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "fit", str(table), "--out", str(tmp_path / "run")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
