"""Whatever a fit is killed by and whenever, the same command goes on to the bits of the undisturbed run."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess

import polars as pl
import pytest

from killing import Server
from tiny import texts_and_labels, write_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs fork and signals")

ENOUGH = 4
"""Deaths in a row at most, before the run is let go to its end."""


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    texts, labels = texts_and_labels(120)
    frame = pl.DataFrame({"text": [f"{text} {i % 10}" for i, text in enumerate(texts)], "label": labels})
    frame.write_csv(folder / "table.csv")
    return {
        "train": str(folder / "table.csv"), "text": ["text"], "label": "label", "num_train_epochs": 2,
        "duplicates": "keep", "effective_batch_size": 16, "hidden_dropout": 0.1, "audit": False,
        "model": str(write_model(folder / "model", layers=2)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(server, config, tmp_path_factory):
    """What the undisturbed run is, how many moments it has, and what it took.

    The second of two: the first one also writes what the frozen model says, which later ones find.
    """
    for name in ("first", "second"):
        out = tmp_path_factory.mktemp(name) / "run"
        answer = server.run(config=config, out=str(out), kill_at=0)
        assert answer["code"] == 0, answer
    return essence(out), answer["moments"], seconds(out)


def essence(out):
    """Everything of a run that is not time."""
    record = json.loads((out / "run.json").read_text("utf-8"))
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (out / "adapter" / "adapter_model.safetensors", out / "predictions.parquet")
    }
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    metrics = [{key: value for key, value in line.items() if key != "elapsed_s"} for line in lines]
    steps = [json.loads(line)["step"] for line in (out / "memory.jsonl").read_text("utf-8").splitlines()]
    training = record["training"]
    return digests, metrics, steps, record["metrics"], record["decision"], training["best_step"]


def seconds(out):
    return json.loads((out / "run.json").read_text("utf-8"))["time"]["total_s"]


def disturbed(server, config, out, deaths):
    """The run after ``deaths``, each a job's part, and the same command again until it has ended well.

    Who dies when the run is there and the states are not yet gone leaves that to the same command, too.
    """
    said, codes = [], []
    for death in [*deaths, {}]:
        if is_done(out):
            break
        answer = server.run(config=config, out=str(out), **death)
        said += answer["said"]
        codes.append(answer["code"])
    assert is_done(out), (codes, said)
    return said, codes


def is_done(out):
    """Whether the run is there and nothing beside it."""
    beside = [path.name for path in out.parent.iterdir() if path.name.startswith(".")]
    return (out / "run.json").exists() and not interrupted(out) and not beside


def interrupted(out):
    return json.loads((out / "run.json").read_text("utf-8"))["training"]["interrupted"]


def check(out, undisturbed):
    assert essence(out) == undisturbed
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


# The first moments are those of starting, the last those of saving; most of them are states being written.
@pytest.mark.parametrize(
    "share", [0.65, pytest.param(0.3, marks=pytest.mark.long), pytest.param(0.95, marks=pytest.mark.long)]
)
def test_killed_it_goes_on_to_the_same_bits(server, config, undisturbed, tmp_path, share):
    expected, moments, _ = undisturbed
    out = tmp_path / "run"
    said, codes = disturbed(server, config, out, [{"kill_at": round(share * moments)}])
    assert codes == [-signal.SIGKILL, 0]
    assert any(sentence.startswith("The process before was killed") for sentence in said)
    check(out, expected)
    record = json.loads((out / "run.json").read_text("utf-8"))
    assert len(record["memory"]["restarts"]) == 1
    assert record["time"]["earlier_s"] > 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    elapsed = [line["elapsed_s"] for line in lines if "elapsed_s" in line]
    assert sorted(elapsed) == elapsed


@pytest.mark.long
def test_lower_layers_that_are_kept_give_the_same_bits_in_another_process(server, config, tmp_path):
    config = {**config, "layers_to_transform": [1], "hidden_dropout": 0.0}
    straight, out = tmp_path / "straight" / "run", tmp_path / "killed" / "run"
    for folder in (straight, out):
        folder.parent.mkdir()
    moments = server.run(config=config, out=str(straight))["moments"]
    _, codes = disturbed(server, config, out, [{"kill_at": round(0.6 * moments)}])
    assert codes == [-signal.SIGKILL, 0]
    check(out, essence(straight))


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM])
def test_told_to_stop_it_goes_on_to_the_same_bits(server, config, undisturbed, tmp_path, number):
    expected, moments, _ = undisturbed
    out = tmp_path / "run"
    first = server.run(config=config, out=str(out), kill_at=round(0.55 * moments), signal=number)
    kept = [sentence for sentence in first["said"] if sentence.startswith("The training state of step")]
    assert "the same command goes on from there" in kept[0]
    if number == signal.SIGINT:
        # What was learned is there at once, as a run like any other.
        assert first["code"] == 0
        assert interrupted(out)
    else:
        assert first["code"] == -signal.SIGTERM
        assert [path.name for path in tmp_path.iterdir() if path.name != "notes"] == [".run.states"]
    again = server.run(config=config, out=str(out), resume=True)
    assert again["code"] == 0
    assert any(sentence.startswith("Going on from step ") for sentence in again["said"])
    check(out, expected)
    third = server.run(config=config, out=str(out), resume=True)
    assert (third["code"], third["said"]) == (0, [f"The run {out} is complete already."])


@pytest.mark.long
def test_resume_refuses_what_it_cannot_go_on_from(server, config, undisturbed, tmp_path):
    _, moments, _ = undisturbed
    out = tmp_path / "run"
    nothing = server.run(config=config, out=str(out), resume=True)
    assert nothing["code"] == 2
    assert "ERROR There is no saved training state" in nothing["said"][-1]
    server.run(config=config, out=str(out), kill_at=round(0.5 * moments))
    other = server.run(config={**config, "r": 4}, out=str(out), resume=True)
    assert other["code"] == 2
    assert "belongs to other settings (r was 16 and is 4); set them as they were" in other["said"][-1]
    assert (out.with_name(".run.states")).is_dir()
    anew = server.run(config=config, out=str(out), resume=False)
    assert anew["code"] == 0
    assert not any(sentence.startswith("Going on from step ") for sentence in anew["said"])


def may_mount():
    if shutil.which("unshare") is None:
        return False
    asked = ["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


@pytest.mark.long
@pytest.mark.skipif(not may_mount(), reason="needs leave to mount a small disk")
def test_a_disk_that_fills_up_at_any_write(config, undisturbed, tmp_path):
    """From no byte left to nearly enough, so that every file of the run is the one that does not fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    server = Server(disk)
    try:
        failed = 0
        for number, left_bytes in enumerate([0, 4, 12, 24, 40, 64, 90, 120, 200]):
            out = disk / f"number-{number}" / "run"
            seen = server.sees(out)
            seen.parent.mkdir()
            first = server.run(config=config, out=str(out), full_at="save", left_bytes=left_bytes * 1024)
            if first["code"] != 0:
                failed += 1
                assert first["code"] == 2, first
                assert [s for s in first["said"] if s.startswith("ERROR No space left on the disk")], first
                assert sorted(path.name for path in seen.parent.iterdir()) == [
                    ".run.states", "filler", "notes"
                ]  # fmt: skip
            (seen.parent / "filler").unlink()
            if first["code"] != 0:
                again = server.run(config=config, out=str(out))
                assert again["code"] == 0, again
                # Nothing is trained twice.
                assert any(re.match(r"Going on from step (\d+) of \1\.", said) for said in again["said"])
            assert essence(seen) == undisturbed[0]
            shutil.rmtree(seen.parent)
        assert failed >= 4
    finally:
        server.close()


@pytest.mark.long
def test_fifty_kills_at_random_moments(server, config, undisturbed, tmp_path):
    """Each run dies up to four times: at a moment, in the middle of a write, or when the clock says so."""
    expected, moments, took_s = undisturbed
    chance, kills, run = random.Random(0), 0, 0
    while kills < 50:
        run += 1
        out = tmp_path / f"number-{run}" / "run"
        out.parent.mkdir()
        deaths = [a_death(chance, moments, took_s) for _ in range(chance.randint(1, ENOUGH))]
        _, codes = disturbed(server, config, out, deaths)
        kills += len([code for code in codes if code != 0])
        check(out, expected)


def a_death(chance, moments, took_s):
    if chance.random() < 0.4:
        return {"after_s": chance.uniform(0.05, took_s)}
    number = chance.choice([signal.SIGKILL] * 4 + [signal.SIGTERM, signal.SIGINT])
    return {"kill_at": chance.randint(1, moments), "signal": number}
