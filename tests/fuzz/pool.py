"""Processes that run cases, kept while they live and replaced when one dies, which is a fault of its case."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from fuzz.limits import CPU_S, WALL_S

CASES_PER_PROCESS = 1_500
"""Then another takes over: libraries keep what they loaded."""


class Runner:
    """Runs cases in a process of its own; ``samples`` is the folder that ``write_samples`` wrote."""

    def __init__(self, samples, home, cpu_s=CPU_S):
        self.samples, self.home = Path(samples), Path(home)
        self.home.mkdir(exist_ok=True)
        self.cpu_s = cpu_s
        self._process, self._errors, self._done = None, None, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()

    def __call__(self, case):
        """What became of ``case``: outcome, what was told, growth of memory (MiB)."""
        if self._done >= CASES_PER_PROCESS:
            self._end()
        if self._process is None:
            self._begin()
        self._done += 1
        process = self._process
        try:
            process.stdin.write(json.dumps(asdict(case)) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return self._died("before it was asked")
        ready, _, _ = select.select([process.stdout], [], [], WALL_S)
        if not ready:
            process.send_signal(signal.SIGUSR1)  # tells where it hangs
            select.select([process.stdout], [], [], 2)
            return self._died(f"no answer in {WALL_S} s")
        line = process.stdout.readline()
        return json.loads(line) if line else self._died("the process died")

    def _begin(self):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the process
        environment = {
            **os.environ,
            "FUZZ_SAMPLES": str(self.samples),
            "FUZZ_HOME": str(self.home),
            "FUZZ_CPU_S": str(self.cpu_s),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "POLARS_MAX_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "SNUGTUNE_CACHE": str(self.home),
            "TMPDIR": str(self.home),
            "HF_HOME": str(self.home),
            "PYTHONPATH": os.pathsep.join((str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", ""))),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            cwd=self.home,
            text=True,
            encoding="utf-8",
        )
        self._done = 0

    def _died(self, why):
        process, errors = self._process, self._errors
        process.kill()
        code = process.wait()
        errors.seek(0)
        told = errors.read().decode("utf-8", "replace")[-6_000:]
        self._end()
        return {"outcome": "fault", "told": f"{why} (exit {code})\n{told}", "grown_mib": 0}

    def _end(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout, self._errors):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process = None
