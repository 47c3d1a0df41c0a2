"""Nothing calls home: a fit, a prediction, an export and the app, on local files, open no connection.

Python tells of every connection and every name looked up (PEP 578); a hook in ``sitecustomize`` notes those
that leave the machine, in each process that a command starts too. The Hub is not switched off for it.
"""

import os
import re
import subprocess
import sys

import pytest

import tiny
from families import write_family

HOOK = """
import os, sys
def hook(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "0.0.0.0", "::"):
            note(event, address)
    elif event == "socket.getaddrinfo":
        host = arguments[0]
        if host not in (None, "", "localhost", b"localhost", "127.0.0.1", "::1", "0.0.0.0"):
            note(event, host)
def note(event, what):
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{event} {what!r} by {sys.argv[:3]}\\n")
sys.addaudithook(hook)
"""


@pytest.fixture
def quiet(tmp_path):
    """Runs a command and returns what of it would have left the machine."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
    notes = tmp_path / "notes.txt"
    environment = {
        name: value
        for name, value in os.environ.items()
        if name
        not in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "GRADIO_ANALYTICS_ENABLED")
    }
    path = os.pathsep.join((str(tmp_path / "hook"), os.environ.get("PYTHONPATH", "")))
    environment |= {"PYTHONPATH": path, "NOTES": str(notes), "HF_HOME": str(tmp_path / "hf")}

    def run(*command, until=None):
        options = {"env": environment, "text": True, "cwd": tmp_path}
        if until is None:
            done = subprocess.run(
                [sys.executable, *map(str, command)], capture_output=True, check=False, **options
            )
            assert done.returncode == 0, done.stderr[-2_000:]
        else:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                **options,
            )
            said = []
            for line in process.stdout:
                said.append(line)
                if re.search(until, line):
                    break
            process.terminate()
            process.wait()
            process.stdout.close()
            assert re.search(until, "".join(said)), "".join(said)[-2_000:]
        return notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []

    return run


def test_the_hook_sees_a_connection_in_a_child(quiet):
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', "
        "'import socket; s = socket.socket(); s.settimeout(.01); s.connect_ex((\"192.0.2.1\", 9))'])"
    )
    assert [line for line in quiet("-c", code) if "192.0.2.1" in line]


@pytest.mark.long
def test_no_command_opens_a_connection(quiet, table, tmp_path):
    model, run = write_family(tmp_path / "model", "bert"), tmp_path / "run"
    fit = ("-m", "snugtune", "fit", table, "--model", model, "--out", run, "--epochs", 1, "--max-length", 16)
    assert quiet(*fit) == []
    assert quiet("-m", "snugtune", "predict", run, table, "-o", tmp_path / "out.xlsx") == []
    assert quiet("-m", "snugtune", "export", run, "-o", tmp_path / "exported") == []
    pytest.importorskip("gradio")
    assert quiet("-m", "snugtune", "app", run, "--port", 0, until=r"http://") == []


@pytest.mark.long
def test_ray_opens_no_connection(quiet, tmp_path):
    """Neither usage statistics nor anything else of it leaves the machine."""
    pytest.importorskip("ray")
    run = tiny.write_run(tmp_path / "run", tiny.write_model(tmp_path / "model"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("text\ncard stolen\n", encoding="utf-8")
    command = ("-m", "snugtune", "predict", run, f"{tmp_path}/in/*.csv", "-o", tmp_path / "out")
    assert quiet(*command, "--engine", "ray", "--workers", 1) == []
    assert (tmp_path / "out" / "a.csv").is_file()
