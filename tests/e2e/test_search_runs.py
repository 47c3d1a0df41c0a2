"""Real searches of a tiny model: the winner is the fit of its settings; who is killed is made up for."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import polars as pl
import pytest
from typer.testing import CliRunner

from snugtune.cli import app
from snugtune.config import make_config, read_config
from snugtune.progress import Observer
from snugtune.scale.search import make_plan, search
from snugtune.stages import keeping
from snugtune.supervise import fit
from tiny import texts_and_labels, write_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model and a table in which every tenth label is wrong."""
    folder = tmp_path_factory.mktemp("search")
    write_model(folder / "model", layers=2)
    texts, labels = texts_and_labels(150)
    texts = [f"{text} {i % 10} {i // 10 % 10}" for i, text in enumerate(texts)]
    labels = ["Fees" if i % 10 == 0 else label for i, label in enumerate(labels)]
    pl.DataFrame({"text": texts, "label": labels}).write_csv(folder / "table.csv")
    return folder


def given(place, **settings):
    return {
        "train": str(place / "table.csv"), "model": str(place / "model"), "audit": False,
        "probe_start": False, **settings,
    }  # fmt: skip


def digest(run):
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


class Parts(Observer):
    """Which phases there were."""

    def __init__(self):
        self.phases = []

    def phase(self, name, total=None):
        self.phases.append(name)


def test_the_winner_is_the_run_of_its_settings_and_the_only_one_that_is_tested(place, tmp_path, monkeypatch):
    # Another process would only say again that the folder loads.
    monkeypatch.setattr(keeping, "check_reloads", lambda _saved: [0.0])
    watched = Parts()
    plan = make_plan(given(place, num_train_epochs=2), tmp_path / "s", trials=2)
    folder = search(plan, observer=watched)
    record = json.loads((folder / "search.json").read_text("utf-8"))
    assert [one["state"] for one in record["trials"]] == ["complete"] * 2
    assert watched.phases.count("evaluate") == 1
    best = record["trials"][record["best"]]
    run = json.loads((folder / "best" / "run.json").read_text("utf-8"))
    assert run["training"]["best_score"] == best["score"] == max(one["score"] for one in record["trials"])
    assert run["metrics"]["test"]["rows"] == record["rows"]["test"]
    assert run["memory"]["restarts"] == [f"Trained as trial {best['number']} of a search."]
    assert sorted(path.name for path in (folder / "trials").iterdir() if path.suffix != ".lock") == [
        "000.yaml", "001.yaml",
    ]  # fmt: skip
    # The command finds that all is done, and shows it.
    options = ["--no-audit", "--no-probe-start", "--trials", "2", "--epochs", "2", "-o", str(folder)]
    command = ["search", str(place / "table.csv"), "--model", str(place / "model"), *options]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert f"{best['number']}" in shown.stdout
    assert "On test, as it is saved" in shown.stdout
    settings = read_config(folder / "trials" / f"{best['number']:03d}.yaml")
    again = fit(make_config(settings), tmp_path / "again")
    assert digest(folder / "best") == digest(again)
    told = json.loads((again / "run.json").read_text("utf-8"))
    assert told["metrics"]["test"] == run["metrics"]["test"]


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_processes_share_a_search_and_one_that_is_killed_is_made_up_for(place, tmp_path):
    out = tmp_path / "s"
    command = [
        sys.executable, "-m", "snugtune", "search", str(place / "table.csv"), "--model", str(place / "model"),
        "--no-audit", "--no-probe-start", "--trials", "8", "--effective-batch-size", "1", "--epochs", "12",
        "--processes", "2", "-o", str(out),
    ]  # fmt: skip
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    victim = _one_that_trains(started, out)
    os.kill(victim, signal.SIGKILL)
    said, _ = started.communicate(timeout=540)
    assert started.returncode == 0, said
    record = json.loads((out / "search.json").read_text("utf-8"))
    assert len(record["trials"]) == 8
    assert {one["state"] for one in record["trials"]} <= {"complete", "pruned"}
    assert [one for one in record["trials"] if one["goes_on_from"] is not None]
    assert (out / "best" / "run.json").is_file()
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=540)
    assert again.returncode == 0, again.stderr
    assert json.loads((out / "search.json").read_text("utf-8"))["trials"] == record["trials"]


def _one_that_trains(started, out):
    """The id of a process of the search, once two of its trials take steps."""
    import psutil

    ends = time.monotonic() + 400
    while time.monotonic() < ends:
        assert started.poll() is None, started.stdout.read()
        training = [
            path for path in out.glob("trials/.*.partial/metrics.jsonl") if path.stat().st_size > 2000
        ]
        workers = [
            child.pid
            for child in psutil.Process(started.pid).children(recursive=True)
            if "snugtune.scale.processes" in " ".join(child.cmdline())
        ]
        if len(training) == 2 and len(workers) == 2:
            return workers[0]
        time.sleep(0.05)
    raise AssertionError("no two trials ran at once")
