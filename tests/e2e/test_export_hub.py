"""Pushing a run, as a process, to a server on this machine that stands for the Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fake_hub import TOKEN, running_hub
from snugtune.errors import UserInputError
from snugtune.export.hub import _what
from trained import write_run

REPO = "owner/complaints"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("trained"), "bert")


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


def push(run, hub, tmp_path, *arguments, code=0, token=TOKEN):
    """``snugtune export --to hub`` in a process of its own: the library reads its settings when imported."""
    settings = {
        "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": token,
        "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "snugtune", "export", str(run), "--to", "hub", "--repo-id", REPO, *arguments],
        env=os.environ | settings, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.slow
def test_a_push_and_a_second_one(run, hub, tmp_path):
    (run / "report.html").write_text("<p>Report</p>")
    done = push(run, hub, tmp_path, "--private", "--json")
    found = json.loads(done.stdout)
    # The base model is a folder of this machine, so the merged model goes.
    assert (found["to"], found["where"]) == ("merged", f"{hub.url}/{REPO}")
    files = hub.repositories[REPO]
    assert set(files) >= {"model.safetensors", "config.json", "tokenizer.json", "README.md", "report.html"}
    assert json.loads(files["export.json"])["agreement"]["changed_labels"] == 0
    assert f'model="{REPO}"'.encode() in files["README.md"]
    assert hub.visibility[REPO] == "private"

    assert "already holds an export" in push(run, hub, tmp_path, code=2).stderr
    files["old.txt"] = b"of an earlier export"
    push(run, hub, tmp_path, "--overwrite", "--dtype", "bfloat16")
    assert "old.txt" not in files
    assert json.loads(files["export.json"])["dtype"] == "bfloat16"


@pytest.mark.slow
def test_refusals_come_before_the_work(run, hub, tmp_path):
    hub.repositories[REPO] = {".gitattributes": b"", "thesis.txt": b"mine"}
    done = push(run, hub, tmp_path, "--overwrite", code=2)
    assert "holds files that snugtune did not put there" in done.stderr
    assert hub.repositories[REPO]["thesis.txt"] == b"mine"
    assert "does not accept the token" in push(run, hub, tmp_path, code=2, token="hf_wrong").stderr
    hub.repositories.clear()
    hub.refused["/api/whoami-v2"] = 503
    assert "The Hub refused (503)" in push(run, hub, tmp_path, code=1).stderr


@pytest.mark.slow
def test_a_token_that_may_only_read(run, hub, tmp_path):
    hub.refused["/api/repos/create"] = 403
    assert f"may not write to {REPO}" in push(run, hub, tmp_path, code=2).stderr


@pytest.mark.slow
def test_a_connection_that_breaks(run, hub, tmp_path):
    hub.refused["/api/repos/create"] = 0
    assert "The Hub cannot be reached" in push(run, hub, tmp_path, code=1).stderr


def with_base(tmp_path, base):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return tmp_path, {"model": {"folder": "adapter"}}


def test_an_adapter_goes_where_its_base_model_is(tmp_path):
    run, record = with_base(tmp_path, "xlm-roberta-large")
    assert _what(run, record, "auto", "float32") == "adapter"
    assert _what(run, record, "auto", "bfloat16") == "merged"
    assert _what(run, record, "merged", "float32") == "merged"
    assert _what(run, {"model": {"folder": "model"}}, "auto", "float32") == "merged"
    with pytest.raises(UserInputError, match="auto, adapter or merged"):
        _what(run, record, "everything", "float32")


def test_an_adapter_of_a_local_model_is_not_pushed(tmp_path):
    run, record = with_base(tmp_path, "/models/mine")
    assert _what(run, record, "auto", "float32") == "merged"
    with pytest.raises(UserInputError, match=r"a folder of this machine \(/models/mine\)"):
        _what(run, record, "adapter", "float32")
