"""Where the data is, what machine this is, how fast it multiplies, how ratios are told, where results go."""

from __future__ import annotations

import argparse
import datetime
import io
import math
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from snugtune import quiet
from snugtune.container import usable_cores
from snugtune.files import write_json
from snugtune.units import gib

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results"
DATA = REPOSITORY.parent / "shared" / "data"
PACKAGES = ("snugtune", "torch", "transformers", "peft", "accelerate", "scikit-learn", "numpy")

PROBE_SIZES = (1024, 2048, 4096)
"""Sides of the square matrices whose product is timed; the fastest of them is called the peak."""


def parser(what: str) -> argparse.ArgumentParser:
    """A command line with the options every benchmark has."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # progress shows in a pipe, too
    made = argparse.ArgumentParser(
        description=what, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    made.add_argument("--threads", type=int, default=usable_cores(), help="CPU threads of each contestant")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    return made


def data_folder(name: str, root: Path = DATA) -> Path | None:
    """The folder of a data set, or None after saying that it is not here."""
    folder = root / name
    if folder.is_dir():
        return folder
    print(f"Skipped: the data set {name} is not here; it belongs in {folder}.")
    return None


def hardware() -> dict[str, Any]:
    """The machine in words and numbers, as it goes into a result file."""
    import psutil
    import torch

    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "ram_gib": round(gib(psutil.virtual_memory().total), 1),
        "cpu_bf16": bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()),
        "cpu_amx": bool(torch.cpu._is_amx_tile_supported()),
        "gpu": None,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {"name": properties.name, "memory_gib": round(gib(properties.total_memory), 1)}
    return found


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name where the system tells it, with its family and model where it tells these.

    Virtual machines call generations "AMD EPYC" of which one multiplies bfloat16 twice as fast as the other.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        lines = ""
    told = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+?)\s*$", lines, re.MULTILINE))
    name = told.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key.removeprefix('cpu ')} {told[key]}" for key in ("cpu family", "model") if key in told]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def host_kind(machine: dict[str, Any]) -> str:
    """A short name for a result file: the GPU, or the CPU with its cores."""
    name = machine["gpu"]["name"] if machine["gpu"] else f"{machine['cores']}-cores {machine['cpu']}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of what was measured with."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class ResultFile:
    """``DATE-NAME-HOST.json`` in a folder, with hardware and versions, written anew whenever there is more.

    Each time atomically: a benchmark that is stopped leaves what it has measured by then.
    """

    def __init__(self, name: str, folder: Path, *, machine: dict[str, Any]) -> None:
        today = datetime.date.today().isoformat()
        self.path = folder / f"{today}-{name}-{host_kind(machine)}.json"
        self._about = {"benchmark": name, "date": today, "hardware": machine, "versions": versions()}

    def write(self, result: dict[str, Any]) -> None:
        """``result`` in the place of what was written before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {**self._about, **result})


def save_result(name: str, result: dict[str, Any], folder: Path, *, machine: dict[str, Any]) -> Path:
    """Write a ``ResultFile`` once and tell where."""
    file = ResultFile(name, folder, machine=machine)
    file.write(result)
    print(f"Wrote {file.path}.")
    return file.path


class Deadline:
    """So many ``seconds`` from now on (None: without end), after which nothing should still be running."""

    def __init__(self, seconds: float | None = None) -> None:
        self.at = math.inf if seconds is None else time.time() + seconds

    @property
    def left_s(self) -> float:
        """Seconds left; negative when it has passed."""
        return self.at - time.time()

    def allows(self, seconds: float = 0.0) -> bool:
        """Whether something that takes ``seconds`` would end in time."""
        return self.left_s > seconds


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest and number of ``values``.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("a spread needs at least one value")
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def ratio_spread(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The spread of ours / theirs, turn by turn: neighbours in time, so a slow minute hits both.

    Raises:
        ValueError: the two are not of one length, or a value is not positive.
    """
    if any(value <= 0 for value in (*ours, *theirs)):
        raise ValueError("ratios are of positive numbers")
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def best_time_s(function: Callable[[], Any], repeats: int = 3) -> float:
    """Seconds of the fastest of ``repeats`` calls, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def matmul_peak(dtype: Any, device: Any, sizes: Sequence[int] = PROBE_SIZES) -> float:
    """The most floating-point operations a second that a square matrix product reaches (2 n^3 each)."""
    import torch

    def rate(n: int) -> float:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        return 2 * n**3 / best_time_s(lambda: (a @ b, synchronize(device)))

    return max(rate(n) for n in sizes)


def synchronize(device: Any) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def quiet_libraries() -> None:
    """Keep the progress bars and warnings of others out of what a benchmark prints, and stay offline."""
    import warnings

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.filterwarnings("ignore")
    quiet.quiet_libraries()
