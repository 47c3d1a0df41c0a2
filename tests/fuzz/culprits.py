"""Targets that do what must not happen, to see that the watch sees it."""

import os
import pickle
import socket
import subprocess
from pathlib import Path

from fuzz.folders import Hostile


def prints_traceback(path):
    return 1 // 0


def connects(path):
    with socket.socket() as one:
        one.settimeout(0.1)
        one.connect_ex(("127.0.0.1", 9))


def unpickles(path):
    pickle.loads(pickle.dumps(Hostile()))


def leaves_file(path):
    Path("stray").touch()


def writes_elsewhere(path):
    os.close(os.open(Path(os.environ["FUZZ_SAMPLES"]).parent / "elsewhere", os.O_WRONLY | os.O_CREAT))


def hoards(path):
    bytearray(560 << 20)


def dies(path):
    os.abort()


def spins(path):
    while True:
        pass


def starts_program(path):
    subprocess.run(["true"], check=True)


ALL = {
    of.__name__: of
    for of in (
        prints_traceback,
        connects,
        unpickles,
        leaves_file,
        writes_elsewhere,
        hoards,
        dies,
        spins,
        starts_program,
    )
}
