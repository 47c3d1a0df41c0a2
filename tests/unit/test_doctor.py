"""The examination of made-up machines, and of this one."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from snugtune import container
from snugtune.doctor import probe as probing
from snugtune.doctor.facts import Card, Driver, Facts, Hub, Memory, Package, Place, Processor, Torch
from snugtune.doctor.judge import PURPOSE, examine
from snugtune.doctor.wheels import TARGETS, build_for, has_kernels, install
from snugtune.units import GIB

OLD = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
NEW = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
CU126 = Torch("2.13.0+cu126", "12.6", architectures=OLD, packs=True)
CU128 = Torch("2.11.0+cu128", "12.8", architectures=NEW, packs=True)
CU130 = Torch("2.13.0", "13.0", architectures=NEW, packs=True)
NO_CUDA = Torch("2.13.0+cpu")
R535, R570, R580 = Driver("535.104", (12, 2)), Driver("570.86", (12, 8)), Driver("580.95", (13, 0))


def card(name, capability, gib=16):
    return Card(name, capability, gib * GIB, gib * GIB)


T4, V100 = card("Tesla T4", (7, 5)), card("Tesla V100-SXM2-16GB", (7, 0))
L4, H100 = card("NVIDIA L4", (8, 9), 24), card("NVIDIA H100 80GB HBM3", (9, 0), 80)
RTX5090 = card("NVIDIA GeForce RTX 5090", (12, 0), 32)


def machine(torch=NO_CUDA, cards=(), driver=None, *, seen=True, **facts):
    """A machine with plenty of everything; PyTorch sees its first card unless told otherwise."""
    if cards and torch and torch.cuda and seen:
        torch = replace(torch, sees=cards[0].compute_capability)
    good = {
        "processor": Processor("a CPU", 8, 8, has_bfloat16=True),
        "memory": Memory(64 * GIB, 60 * GIB),
        "places": (Place("runs", "/home/ann", 100 * GIB),),
        "hub": Hub("/home/ann/.cache/huggingface/hub", has_token=False, offline=False),
        "packages": (Package("torch", ">=2.6", "2.13.0", True), Package("peft", ">=0.18", "0.21.2", True)),
        "bitsandbytes_error": "",
    }
    return Facts(
        python="3.12.1", system="Linux", snugtune="0.1", driver=driver, cards=tuple(cards), torch=torch,
        **{**good, **facts},
    )  # fmt: skip


def checks(facts, subject):
    return [check for check in examine(facts).checks if check.subject == subject]


def check(facts, subject):
    (found,) = checks(facts, subject)
    return found


@pytest.mark.parametrize(
    ("torch", "cards", "driver"),
    [
        (CU130, [T4], R580), (CU126, [T4], R535), (CU126, [V100], R580), (CU130, [L4], R580),
        (CU128, [L4], R535), (CU130, [H100], R580), (CU128, [RTX5090], R570), (CU130, [RTX5090], R580),
    ],
)  # fmt: skip
def test_a_good_build_for_the_card(torch, cards, driver):
    found = examine(machine(torch, cards, driver))
    assert [one for one in found.checks if one.status == "problem"] == []
    assert (found.can_run, found.runs_on) == (True, "cuda")
    assert found.sentence() == "A fit can run here, on the GPU."


def test_a_machine_without_a_card_trains_on_its_cpu():
    found = examine(machine())
    assert (found.can_run, found.runs_on, found.problems) == (True, "cpu", 0)
    assert check(machine(), "GPU").finding == "none"


@pytest.mark.parametrize(
    ("torch", "one", "driver", "build"),
    [
        (CU128, V100, R580, "cu126"), (CU130, V100, R580, "cu126"), (CU128, V100, R535, "cu126"),
        (CU126, RTX5090, R580, "cu130"), (CU126, RTX5090, R570, "cu128"),
    ],
)  # fmt: skip
def test_a_build_without_kernels_for_the_card_stops_a_run(torch, one, driver, build):
    facts = machine(torch, [one], driver)
    found = check(facts, "PyTorch")
    assert (found.status, found.stops) == ("problem", True)
    assert "no kernels" in found.finding
    assert found.advice == install(build)
    assert not examine(facts).can_run
    assert examine(facts).runs_on == ""


@pytest.mark.parametrize(
    ("one", "driver", "build"),
    [(T4, R580, "cu130"), (T4, R535, "cu126"), (V100, R580, "cu126"), (RTX5090, R570, "cu128")],
)
def test_a_build_for_cpus_leaves_the_card_idle_but_a_fit_works(one, driver, build):
    facts = machine(NO_CUDA, [one], driver)
    found = check(facts, "PyTorch")
    assert (found.status, found.stops, found.advice) == ("problem", False, install(build))
    assert "idle" in found.finding
    assert examine(facts).runs_on == "cpu"
    assert "on the CPU, with 1 problem" in examine(facts).sentence()


def test_a_driver_too_old_for_the_build():
    facts = machine(CU130, [L4], R535, seen=False)
    found = check(facts, "PyTorch")
    assert found.status == "problem"
    assert "12.2 at most" in found.finding
    assert found.advice == f"update the driver to 580 or newer, or: {install('cu126')}"
    assert examine(facts).runs_on == "cpu"


def test_minor_versions_of_a_driver_do_not_matter():
    assert check(machine(CU128, [L4], R535), "PyTorch").status == "ok"


def test_a_card_that_pytorch_does_not_find():
    found = check(machine(CU130, [L4], R580, seen=False), "PyTorch")
    assert (found.status, found.stops) == ("problem", False)
    assert "does not find" in found.finding


def test_a_card_hidden_on_purpose_is_no_problem():
    found = check(machine(CU130, [L4], R580, seen=False, hidden=True), "PyTorch")
    assert found.status == "note"
    assert "CUDA_VISIBLE_DEVICES" in found.advice


def test_a_product_that_fails_on_the_card_stops_a_run():
    broken = replace(CU130, trial_error="CUDA error: out of memory")
    facts = machine(broken, [L4], R580)
    assert "out of memory" in check(facts, "PyTorch").finding
    assert not examine(facts).can_run


def test_a_pytorch_that_cannot_be_imported_stops_a_run():
    facts = machine(None, torch_error="libtorch.so: cannot open")
    assert not examine(facts).can_run
    assert "libtorch.so" in check(facts, "PyTorch").finding


def test_an_amd_card_is_told_to_be_untested():
    assert check(machine(Torch("2.13.0+rocm6.4", hip="6.4", sees=(9, 0))), "PyTorch").status == "note"


@pytest.mark.parametrize(
    ("one", "half", "quantized", "packing"),
    [
        (V100, "float16; bfloat16 needs sm_80", "LLM.int8) need sm_75", "no: needs sm_80"),
        (T4, "float16; bfloat16 needs sm_80", "8-bit ones (LLM.int8), too", "no: needs sm_80"),
        (L4, "bfloat16 and float16", "8-bit ones (LLM.int8), too", "without padding"),
    ],
)
def test_what_a_card_can_do(one, half, quantized, packing):
    facts = machine(CU126, [one], R580)
    assert half in check(facts, "half precision").finding
    assert quantized in check(facts, "4-bit weights").finding
    assert packing in check(facts, "packing").finding


def test_half_precision_of_a_processor():
    slow = machine(processor=Processor("an old CPU", 4, 4))
    assert check(slow, "half precision").status == "note"
    assert "bfloat16" in check(machine(), "half precision").finding


def test_bitsandbytes_missing_or_broken_is_a_note_with_its_command():
    for error in (None, "libbitsandbytes_cuda130.so not found"):
        found = check(machine(bitsandbytes_error=error), "4-bit weights")
        assert found.status == "note"
        assert "snugtune[quantized]" in found.advice


def test_who_else_uses_a_card():
    busy = replace(L4, others=("python (12)", "Xorg (3)"), others_bytes=3 * GIB)
    found = check(machine(CU130, [busy], R580), "GPU")
    assert found.status == "note"
    assert "python (12), Xorg (3), 3.0 GiB" in found.finding


def test_several_cards_are_told_one_by_one():
    facts = machine(CU130, [L4, H100], R580)
    assert check(facts, "GPU 1").finding.startswith("NVIDIA H100")
    assert "uses one" in check(facts, "GPUs").finding


def test_more_threads_than_the_container_has_cores():
    cpu = Processor("a CPU", 64, 64, quota=2.0)
    found = check(machine(replace(NO_CUDA, threads=32), processor=cpu), "CPU")
    assert (found.status, found.advice) == ("note", "export OMP_NUM_THREADS=2")
    assert check(machine(replace(NO_CUDA, threads=2), processor=cpu), "CPU").status == "ok"


@pytest.mark.parametrize(
    ("memory", "status", "stops"),
    [
        (Memory(64 * GIB, 60 * GIB), "ok", False),
        (Memory(8 * GIB, 2 * GIB), "note", False),
        (Memory(8 * GIB, GIB // 2), "problem", True),
        (Memory(64 * GIB, 60 * GIB, limit_bytes=4 * GIB, left_in_limit_bytes=GIB // 2), "problem", True),
        (Memory(64 * GIB, 60 * GIB, limit_bytes=4 * GIB, left_in_limit_bytes=2 * GIB), "note", False),
    ],
)
def test_memory(memory, status, stops):
    found = check(machine(memory=memory), "memory")
    assert (found.status, found.stops) == (status, stops)


@pytest.mark.parametrize(
    ("place", "status", "stops"),
    [
        (Place("runs", "/r", 50 * GIB), "ok", False),
        (Place("runs", "/r", 2 * GIB), "note", False),
        (Place("runs", "/r", 1), "problem", True),
        (Place("runs", "/r", 50 * GIB, writable=False), "note", False),
    ],
)
def test_disk(place, status, stops):
    found = check(machine(places=(place,)), "disk")
    assert (found.status, found.stops) == (status, stops)


def test_packages_that_are_missing_or_too_old_stop_a_run():
    packages = (Package("peft", ">=0.18", "0.10.0", False), Package("rich", ">=13.7", None, False))
    facts = machine(packages=packages)
    assert check(facts, "peft").advice == "pip install 'peft>=0.18'"
    assert "not installed" in check(facts, "rich").finding
    assert not examine(facts).can_run


def test_an_extra_that_is_missing_is_a_note_with_its_command():
    onnx = (Package("onnx", ">=1.19", None, False), Package("torch", ">=2.9", "2.8.0", False))
    serve = (Package("uvicorn", ">=0.34", "0.35", True),)
    facts = machine(extras={"onnx": onnx, "serve": serve, "dev": (Package("ruff", "", None, False),)})
    assert check(facts, "extras").finding == "serve"
    found = check(facts, "extra onnx")
    assert (found.status, found.advice) == ("note", "pip install 'snugtune[onnx]'")
    assert "onnx is missing, torch 2.8.0 is not >=2.9" in found.finding
    assert checks(facts, "extra dev") == []
    assert examine(facts).can_run


def test_every_extra_of_the_package_has_a_purpose_but_those_of_its_developers():
    offered = metadata.metadata("snugtune").get_all("Provides-Extra")
    assert set(offered) - {"dev", "docs", "bench", "fuzz"} == set(PURPOSE)


def test_offline_and_token_are_told():
    found = checks(machine(hub=Hub("/c", has_token=True, offline=True)), "Hugging Face")
    assert "a token is set" in found[0].finding
    assert "offline" in found[1].finding


def test_secrets_are_never_shown():
    told = probing.probe_environment(
        {"SNUGTUNE_KEY": "s3cret", "SNUGTUNE_APP_PASSWORD": "s3cret", "SNUGTUNE_CACHE": "/c", "HOME": "/h"}
    )
    assert told["SNUGTUNE_CACHE"] == "/c"
    assert set(told) == {"SNUGTUNE_KEY", "SNUGTUNE_APP_PASSWORD", "SNUGTUNE_CACHE"}
    assert "s3cret" not in str(told)


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (["sm_80"], (8, 0), True), (["sm_80"], (8, 9), True), (["sm_86"], (8, 0), False),
        (["sm_90"], (10, 0), False), (["sm_100"], (12, 0), False), (["sm_120"], (12, 1), True),
        (["compute_90"], (12, 0), True), (["compute_120"], (9, 0), False),
        (["sm_90a"], (9, 0), True), (["sm_100a"], (10, 3), False), (["sm_100f"], (10, 3), True),
        (["gfx90a"], (9, 0), False), ([], (9, 0), False),
    ],
)  # fmt: skip
def test_which_code_runs_on_which_card(architectures, capability, expected):
    assert has_kernels(architectures, capability) is expected


def test_every_card_of_our_table_has_a_build():
    from snugtune.memory.devices import known_devices

    for device in known_devices().values():
        build = build_for(device.compute_capability, None)
        assert build in TARGETS, device.name
    assert build_for((3, 5), None) is None


def test_limits_of_a_container_are_read_from_its_groups(tmp_path):
    inner = tmp_path / "system.slice" / "job"
    inner.mkdir(parents=True)
    (tmp_path / "system.slice" / "memory.max").write_text(f"{4 * GIB}\n")
    (tmp_path / "system.slice" / "memory.current").write_text(f"{3 * GIB}\n")
    (tmp_path / "system.slice" / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    (inner / "memory.max").write_text("max\n")
    (inner / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    own = "0::/system.slice/job\n"
    assert container.memory_limit(tmp_path, own) == (4 * GIB, 2 * GIB)
    assert container.available_memory_bytes(tmp_path, own) <= 2 * GIB
    assert container.cpu_quota(tmp_path, own) == 1.5
    assert container.memory_limit(tmp_path, "") == (None, None)
    assert container.cpu_quota(tmp_path, "0::/../..\n") is None


def test_limits_of_version_1(tmp_path):
    memory, cpu = tmp_path / "memory", tmp_path / "cpu"
    memory.mkdir()
    cpu.mkdir()
    (memory / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (cpu / "cpu.cfs_quota_us").write_text("-1\n")
    (cpu / "cpu.cfs_period_us").write_text("100000\n")
    assert container.memory_limit(tmp_path, "") == (None, None)
    assert container.cpu_quota(tmp_path, "") is None
    (memory / "memory.limit_in_bytes").write_text(f"{2 * GIB}\n")
    (cpu / "cpu.cfs_quota_us").write_text("400000\n")
    assert container.memory_limit(tmp_path, "") == (2 * GIB, None)
    assert container.cpu_quota(tmp_path, "") == 4.0


def test_cores_are_those_that_scheduler_and_container_leave(monkeypatch):
    monkeypatch.setattr(container.os, "sched_getaffinity", lambda _process: set(range(6)), raising=False)
    for quota, cores in ((None, 6), (2.5, 3), (0.5, 1), (64.0, 6)):
        monkeypatch.setattr(container, "cpu_quota", lambda quota=quota: quota)
        assert container.usable_cores() == cores


def test_cards_come_from_the_driver(monkeypatch):
    """As NVML tells of a busy T4, beside which nothing of another container is known."""
    import pynvml

    answers = {
        "nvmlInit": None, "nvmlShutdown": None, "nvmlSystemGetCudaDriverVersion_v2": 12080,
        "nvmlSystemGetDriverVersion": "570.86", "nvmlDeviceGetCount": 1, "nvmlDeviceGetHandleByIndex": 0,
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=15 * GIB, free=9 * GIB),
        "nvmlDeviceGetCudaComputeCapability": (7, 5), "nvmlDeviceGetName": "Tesla T4",
        "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=2**22 + 7, usedGpuMemory=None)],
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, lambda *_, answer=answer: answer)
    driver, cards = probing.probe_cards()
    assert driver == Driver("570.86", (12, 8))
    assert cards == (Card("Tesla T4", (7, 5), 15 * GIB, 9 * GIB, (f"process {2**22 + 7}",), None),)


def test_the_command_examines_this_machine(tmp_path):
    command = [sys.executable, "-m", "snugtune", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["can_run"] else 1), done.stderr
    assert told["runs_on"] in ("cpu", "cuda", "")
    assert {"PyTorch", "CPU", "memory", "torch"} <= {one["subject"] for one in told["checks"]}
    assert Path(told["facts"]["places"][0]["path"]).is_dir()


def test_the_lines_that_people_read(capsys):
    from snugtune.cli.doctor import show

    show("a machine", examine(machine(CU128, [V100], R580)).checks)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a machine"
    assert any(line.startswith("problem PyTorch: 2.11.0+cu128") for line in lines)
    # The command is in one piece, however long.
    assert any(line.strip() == f"-> {install('cu126')}" for line in lines)


def test_a_problem_that_stops_a_run_exits_with_one(monkeypatch):
    from typer.testing import CliRunner

    from snugtune.cli import app

    monkeypatch.setattr(probing, "probe", lambda: machine(CU128, [V100], R580))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "A run would stop here" in done.stdout
    monkeypatch.setattr(probing, "probe", lambda: machine(NO_CUDA, [V100], R580))
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0
