"""Two and four processes, divided weights, killed ones, two hosts: the run is that of one device."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file
from test_group import SETTINGS, assert_close, trained

from groups import run_group
from snugtune.train.group import ALONE
from tiny import texts_and_labels, write_model

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.name == "nt", reason="needs fork and gloo as it is on Unix"),
]

IN_GROUP = Path(__file__).resolve().parents[1] / "in_group.py"

COMMAND_S = 280

METHODS = {
    "lora": {}, "dora": {"use_dora": True},
    "top": {"layers_to_transform": (1,)}, "patience": {"early_stopping_patience": 1},
    "head": {"method": "head"}, "full": {"method": "full"}, "bitfit": {"method": "bitfit"},
    "ia3": {"method": "ia3"},
}  # fmt: skip
OF_WHOLE_WEIGHTS = {
    "adalora": {"method": "adalora"}, "vera": {"method": "vera"}, "prefix": {"method": "prefix"},
    "pissa": {"init_lora_weights": "pissa", "r": 4},
}  # fmt: skip


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", [*METHODS, *OF_WHOLE_WEIGHTS])
def test_any_number_of_processes_trains_as_one_does(name, sharded, size):
    if sharded and name in OF_WHOLE_WEIGHTS:
        pytest.skip("is refused with --sharding full")
    settings = SETTINGS | (METHODS | OF_WHOLE_WEIGHTS)[name]
    found = run_group(size, trained, settings, sharded=sharded)
    assert_close(trained(ALONE, settings), found[0])
    for other in found[1:]:
        assert all(np.array_equal(tensor, other[1][name]) for name, tensor in found[0][1].items())


@pytest.mark.parametrize("sharded", [False, True])
def test_more_processes_than_texts_in_the_last_step(sharded):
    settings = SETTINGS | {"num_train_epochs": 1}
    found = run_group(4, trained, settings, 17, sharded=sharded)  # 8, 8 and 1
    assert_close(trained(ALONE, settings, 17), found[0])


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    texts, labels = texts_and_labels(120)
    frame = pl.DataFrame({"text": [f"{text} {i % 10}" for i, text in enumerate(texts)], "label": labels})
    frame.write_csv(folder / "table.csv")
    write_model(folder / "model", layers=2)
    return folder


def command(table, out, *more):
    options = {
        "--text": "text", "--label": "label", "--model": table / "model", "--duplicates": "keep",
        "--num-train-epochs": 2, "--effective-batch-size": 16, "--out": out,
    }  # fmt: skip
    named = [str(part) for option in options.items() for part in option]
    return ["fit", str(table / "table.csv"), "--no-audit", "--no-bf16", *named, *more]


def environment(**more):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **more}


def run(arguments, **more):
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=COMMAND_S, check=False, env=environment(**more)
    )
    return done.returncode, done.stdout + done.stderr


def torchrun(*arguments, restarts=0, **more):
    launcher = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        str(restarts),
    ]
    return run([sys.executable, "-m", *launcher, str(IN_GROUP), *arguments], **more)


def weights(out):
    return load_file(out / "adapter" / "adapter_model.safetensors")


def lines(out):
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "elapsed_s"} for line in found]


def assert_same_run(out, other, rtol=1e-5, atol=2e-6):
    for line, same in zip(lines(out), lines(other), strict=True):
        assert line == pytest.approx(same, rel=rtol, abs=atol)
    ours, theirs = weights(out), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], rtol=rtol, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def alone(table, tmp_path_factory):
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    code, said = run([sys.executable, str(IN_GROUP), *command(table, out)])
    assert code == 0, said
    return out


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_torchrun(table, alone, tmp_path, sharding):
    out = tmp_path / "run"
    code, said = torchrun(*command(table, out, "--sharding", sharding))
    assert code == 0, said
    assert said.count("rows kept") == 1
    assert_same_run(alone, out)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    record = json.loads((out / "run.json").read_text("utf-8"))
    assert record["training"]["devices"] == 2


def test_divided_weights_in_half_precision(table, tmp_path):
    out = tmp_path / "run"
    half = [part for part in command(table, out, "--sharding", "full") if part != "--no-bf16"]
    code, said = torchrun(*half, "--bf16")
    assert code == 0, said
    assert json.loads((out / "run.json").read_text("utf-8"))["training"]["dtype"] == "bfloat16"


def test_accelerate_launch(table, alone, tmp_path):
    out = tmp_path / "run"
    launcher = ["--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
                "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    code, said = run(
        [sys.executable, "-m", "accelerate.commands.launch", *launcher, str(IN_GROUP), *command(table, out)]
    )
    assert code == 0, said
    assert_same_run(alone, out)


def test_devices_of_this_machine(table, alone, tmp_path):
    out = tmp_path / "run"
    code, said = run([sys.executable, "-m", "snugtune", *command(table, out, "--devices", "2")])
    assert code == 0, said
    assert_same_run(alone, out)
    code, said = run([sys.executable, "-m", "snugtune", *command(table, out, "--devices", "2")])
    assert code == 2
    assert said.strip().splitlines() == [
        f"The folder {out} already holds something; choose another output or add --overwrite."
    ]


@pytest.fixture(scope="module")
def undisturbed(table, tmp_path_factory):
    """The run of two processes that draw dropout."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    code, said = torchrun(*command(table, out, "--hidden-dropout", "0.1"))
    assert code == 0, said
    return out


@pytest.mark.parametrize(("rank", "step"), [(1, 5), (0, 8)])
def test_a_killed_process_is_started_again_and_the_run_is_the_same(table, undisturbed, tmp_path, rank, step):
    out, mark = tmp_path / "run", tmp_path / "killed"
    code, said = torchrun(
        *command(table, out, "--hidden-dropout", "0.1"), restarts=1, KILL=f"{rank} {step} {mark}"
    )
    assert code == 0, said
    assert mark.exists()
    assert "Going on from step" in said
    assert lines(out) == lines(undisturbed)
    for name, tensor in weights(undisturbed).items():
        np.testing.assert_array_equal(weights(out)[name], tensor, err_msg=name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "run"]


def test_a_killed_process_of_divided_weights(table, alone, tmp_path):
    out = tmp_path / "run"
    code, said = torchrun(
        *command(table, out, "--sharding", "full"), restarts=1, KILL=f"1 6 {tmp_path / 'killed'}"
    )
    assert code == 0, said
    assert "Going on from step" in said
    assert_same_run(alone, out)


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_memory_that_runs_out_on_one_device(table, alone, tmp_path, sharding):
    """Whole weights: it cuts its micro-batches. Divided ones: all start again, with smaller ones."""
    out = tmp_path / "run"
    options = ["--sharding", sharding, "--tokens-per-micro-batch", "64"]
    code, said = torchrun(*command(table, out, *options), restarts=2, SCARCE="1 4 40")
    assert code == 0, said
    restarted = "The process before ran out of memory. Going on from step" in " ".join(said.split())
    assert restarted == (sharding == "full"), said
    assert_same_run(alone, out)
    told = json.loads((out / "run.json").read_text("utf-8"))["memory"]
    assert bool(told["restarts"]) == (sharding == "full"), told


def test_another_number_of_processes_goes_on(table, alone, tmp_path):
    out, mark = tmp_path / "run", tmp_path / "killed"
    code, said = torchrun(*command(table, out), KILL=f"1 7 {mark}")
    assert code != 0, said
    code, said = run([sys.executable, str(IN_GROUP), *command(table, out)])
    assert code == 0, said
    assert "Going on from step" in said
    assert_same_run(alone, out)


def test_an_error_of_one_process_ends_all_in_one_sentence(table, tmp_path):
    """Of a machine that was given another table."""
    other = tmp_path / "other.csv"
    shutil.copy(table / "table.csv", other)
    other.write_text(other.read_text("utf-8").replace(",Card\n", ",Fees\n", 1), encoding="utf-8")
    shell = (
        f'test "$RANK" = 0 || cp {other} {tmp_path}/mine-$RANK.csv; test "$RANK" = 0 && cp {table}/table.csv'
    )
    shell += (
        f" {tmp_path}/mine-0.csv; cd {tmp_path}; mkdir -p $RANK; cp mine-$RANK.csv $RANK/table.csv; cd $RANK;"
    )
    shell += f' exec {sys.executable} {IN_GROUP} "$@"'
    arguments = command(table, tmp_path / "run")
    arguments[1] = "table.csv"
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    code, said = run([sys.executable, "-m", *launcher, "sh", "-c", shell, "sh", *arguments])
    assert code == 1, said
    assert "does not train on the same as the first one (data are others)" in " ".join(said.split())
    assert "snugtune/" not in said, "a traceback"
    assert not (tmp_path / "run").exists()


HOSTS = {"snugtune-a": ("10.213.77.1", "snug-a"), "snugtune-b": ("10.213.77.2", "snug-b")}


@pytest.fixture
def two_hosts():
    """Two network namespaces with a cable between them: hosts that reach nothing but each other."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")

    def ip(*arguments):
        return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)

    made = [ip("netns", "add", name) for name in HOSTS]
    try:
        if any(done.returncode for done in made):
            pytest.skip(f"no network namespace can be made here: {made[0].stderr.strip()}")
        (_, first), (_, second) = HOSTS.values()
        cable = ip("link", "add", first, "type", "veth", "peer", "name", second)
        if cable.returncode:
            pytest.skip(f"no virtual cable can be made here: {cable.stderr.strip()}")
        for name, (address, interface) in HOSTS.items():
            ip("link", "set", interface, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", interface)
            ip("-n", name, "link", "set", interface, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in HOSTS:
            ip("netns", "delete", name)


@pytest.mark.usefixtures("two_hosts")
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_hosts(table, alone, tmp_path, sharding):
    started = []
    for number, (name, (_, interface)) in enumerate(HOSTS.items()):
        # Each host has its own disk, so to say: the run is written where the first one is told.
        here = tmp_path / name
        here.mkdir()
        launcher = [
            "torch.distributed.run", "--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1",
            "--master-addr", HOSTS["snugtune-a"][0], "--master-port", "29577",
        ]  # fmt: skip
        started.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, "-m", *launcher, str(IN_GROUP),
                 *command(table, "run", "--sharding", sharding)],
                cwd=here, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env=environment(GLOO_SOCKET_IFNAME=interface),
            )
        )  # fmt: skip
    try:
        said = [process.communicate(timeout=COMMAND_S)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    assert_same_run(alone, tmp_path / "snugtune-a" / "run")
    assert list((tmp_path / "snugtune-b").iterdir()) == []
