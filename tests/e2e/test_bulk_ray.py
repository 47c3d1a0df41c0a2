"""Ray's workers are killed in the middle of their shards, so is the command: every row comes out once."""

import json
import random
import signal
import subprocess
import sys
import time

import polars as pl
import pytest

import tiny
from killing_workers import predict_and_kill
from snugtune.scale.bulk import predict_bulk

pytestmark = pytest.mark.long

SHARDS, ROWS = 6, 30_000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return tiny.write_run(folder / "run", tiny.write_model(folder / "model"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Six shards with a number for each row, each some seconds of work; one is a CSV."""
    folder = tmp_path_factory.mktemp("in")
    for i in range(SHARDS):
        texts, _ = tiny.texts_and_labels(ROWS, seed=i)
        frame = pl.DataFrame({"id": range(i * ROWS, (i + 1) * ROWS), "text": texts})
        frame.write_csv(folder / "part-0.csv") if i == 0 else frame.write_parquet(
            folder / f"part-{i}.parquet"
        )
    return folder


@pytest.fixture(scope="module")
def undisturbed(run, shards, tmp_path_factory):
    """What the local engine makes of them."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert predict_bulk(run, f"{shards}/*", str(out)).rows == SHARDS * ROWS
    return out


def check_once_each(shards, out, undisturbed):
    """Every row is there once, in its place, and every byte is that of an undisturbed run."""
    ids = []
    for path in sorted(shards.iterdir()):
        made = out / path.name
        assert made.read_bytes() == (undisturbed / path.name).read_bytes()
        ids += (pl.read_csv if path.suffix == ".csv" else pl.read_parquet)(made)["id"].to_list()
    assert ids == list(range(SHARDS * ROWS))
    manifest = json.loads((out / "_snugtune/manifest.json").read_text(encoding="utf-8"))
    expected = json.loads((undisturbed / "_snugtune/manifest.json").read_text(encoding="utf-8"))
    assert manifest["rows"] == SHARDS * ROWS
    for mine, theirs in zip(manifest["done"], expected["done"], strict=True):
        for key in ("name", "rows", "texts_sha256", "output_sha256"):
            assert mine[key] == theirs[key]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["_snugtune", *(path.name for path in shards.iterdir())]
    )
    assert not (out / "_snugtune/partial").exists()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
def test_workers_that_are_killed_lose_no_row_and_double_none(run, shards, undisturbed, tmp_path, seed):
    pytest.importorskip("ray")
    out = tmp_path / "out"
    arguments = [run, f"{shards}/*", "-o", out, "--engine", "ray", "--workers", 2, "--json"]
    code, said, told, killed = predict_and_kill(arguments, out / "_snugtune/partial", kills=3, seed=seed)
    assert code == 0, told
    assert killed >= 1
    assert "another one does it anew" in told
    assert json.loads(said)["rows"] == SHARDS * ROWS
    check_once_each(shards, out, undisturbed)


@pytest.mark.timeout(900)
def test_the_command_itself_killed_and_given_again(run, shards, undisturbed, tmp_path):
    """With the local engine, again and again at moments drawn at random, until it is through."""
    rng, out = random.Random(3), tmp_path / "out"
    command = [sys.executable, "-m", "snugtune", "predict", str(run), f"{shards}/*", "-o", str(out), "--json"]
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            begun, due = time.monotonic(), None
            while process.poll() is None:
                assert time.monotonic() - begun < 300
                time.sleep(0.02)
                if due is None and (out / "_snugtune/partial").is_dir():
                    due = time.monotonic() + rng.uniform(0, 4)
                if due is not None and time.monotonic() >= due:
                    process.send_signal(signal.SIGKILL)
            process.communicate()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["done"] + result["skipped"], result["rows"]) == (SHARDS, SHARDS * ROWS)
    check_once_each(shards, out, undisturbed)


@pytest.mark.timeout(600)
def test_what_kills_its_workers_is_given_up_and_the_others_are_done(run, tmp_path, monkeypatch):
    """A shard of which every worker dies: as one that takes more memory than there is."""
    pytest.importorskip("ray")
    texts, _ = tiny.texts_and_labels(10)
    (tmp_path / "in").mkdir()
    for name in ("good.csv", "deadly.csv"):
        pl.DataFrame({"text": texts}).write_csv(tmp_path / "in" / name)
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/sitecustomize.py").write_text(
        "import os, sys\n"
        "def hook(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).endswith('in/deadly.csv'):\n"
        "        command = open('/proc/self/cmdline').read()\n"
        "        if 'ray::' in command:\n"
        "            os.kill(os.getpid(), 9)\n"
        "sys.addaudithook(hook)\n"
    )
    path = f"{tmp_path / 'hook'}:{':'.join(sys.path)}"
    monkeypatch.setenv("PYTHONPATH", path)
    done = subprocess.run(
        [
            sys.executable, "-m", "snugtune", "predict", str(run), f"{tmp_path}/in/*.csv", "-o",
            str(tmp_path / "out"), "--engine", "ray", "--workers", "1",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "deadly.csv: its worker died 5 times" in done.stderr
    assert "1 of 2 files could not be predicted: deadly.csv" in done.stderr
    assert (tmp_path / "out/good.csv").is_file()
