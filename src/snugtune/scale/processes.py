"""Several trials at once: processes that work on one search, and end with the one that started them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from io import FileIO
from typing import Any, NoReturn

from snugtune.container import usable_cores
from snugtune.worker_process import environment

GRACE_S = 10.0
"""For giving a trial back, before a process is ended the hard way."""

INTERRUPTED = 130


class Processes:
    """``count`` processes that do what ``plan`` says, while this is entered.

    The processor's cores, and the GPUs if there are several, are shared out among them.
    """

    def __init__(self, plan: dict[str, Any], count: int) -> None:
        self._plan, self._count = plan, count
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Processes:
        gpus = _gpus()
        threads = max(1, usable_cores() // self._count)
        for i in range(self._count):
            own = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
            if len(gpus) > 1:
                own["CUDA_VISIBLE_DEVICES"] = gpus[i % len(gpus)]
            process = subprocess.Popen(
                [sys.executable, "-m", "snugtune.scale.processes"], stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL, env={**environment(), **own},
            )  # fmt: skip
            self._processes.append(process)
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(self._plan).encode("ascii") + b"\n")
                process.stdin.flush()
        return self

    def alive(self) -> int:
        """How many of them are at work."""
        return sum(process.poll() is None for process in self._processes)

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()


def _gpus() -> list[str]:
    """The GPUs that may be used, by the names that ``CUDA_VISIBLE_DEVICES`` has for them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    # NVML counts them, where it can, so no context is made.
    return [str(i) for i in range(torch.cuda.device_count())]


def main() -> NoReturn:
    """Do what the plan in the first line of standard input says; the end of it ends this process."""
    # Not Python's own stream: it cannot be closed at the end while a thread waits for it.
    control = FileIO(os.dup(0))
    plan = json.loads(control.readline() or b"null")
    if plan is None:
        sys.exit(INTERRUPTED)
    threading.Thread(target=_watch, args=(control,), daemon=True).start()
    sys.exit(_run(plan))


def _run(plan: dict[str, Any]) -> int:
    from snugtune.errors import SnugtuneError
    from snugtune.progress import Observer
    from snugtune.quiet import quiet_libraries
    from snugtune.scale.search import Plan, open_search
    from snugtune.supervise import fit

    quiet_libraries()
    try:
        made = Plan(**{**plan, "methods": tuple(plan["methods"])})
        searching = open_search(made, overwrite=False, observer=Observer(), fit=fit)
        searching.begin()
        searching.work()
    except KeyboardInterrupt:
        return INTERRUPTED
    except SnugtuneError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _watch(control: FileIO) -> None:
    """An orphan ends as if it were told to."""
    with suppress(OSError):
        while control.read(1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
