"""Bulk predictions on Ray whose workers are killed: finds them among a command's descendants."""

import random
import signal
import subprocess
import sys
import time

import psutil


def workers(process):
    """The processes of Ray's actors that hold a model, of the command ``process``."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.name().startswith("ray::MapWorker") or "MapWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def predict_and_kill(arguments, desks, *, kills, seed, until_s=400):
    """Run ``snugtune predict``; kill -9 of a worker ``kills`` times, at moments drawn by ``seed``.

    ``desks`` is the folder in which shards are worked on: nobody is killed before there is one. Returns exit
    code, standard output, standard error, and how many were killed.
    """
    rng = random.Random(seed)
    killed, due, begun = 0, None, time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "snugtune", "predict", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while process.poll() is None and killed < kills:
            assert time.monotonic() - begun < until_s, "it does not end"
            time.sleep(0.05)
            if not desks.is_dir() or not any(desks.iterdir()):
                due = None
            elif due is None:
                due = time.monotonic() + rng.uniform(0, 1.5)
            elif time.monotonic() >= due and (there := workers(process)):
                rng.choice(there).send_signal(signal.SIGKILL)
                killed, due = killed + 1, None
        said, told = process.communicate(timeout=until_s)
    return process.returncode, said, told, killed
