"""Run a command with a card that computes nothing, on a machine without one:

    python benchmarks/hollow --gib 14.56 --capability 7.5 -- python benchmarks/memory_gpu.py --out results

It needs Linux, gcc and a PyTorch with CUDA, and none of NVIDIA's drivers. PyTorch then finds a card: its own
caching allocator hands out memory, and all that its CUDA code decides and allocates on the host happens as on
a card of that memory and kind. No kernel runs, so no number that is computed there means anything, nor does
any time. The command and all that it starts share the card. ``decisions/0037-hollow-card.md`` says what for.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent

HEADERS = ("nvidia/cu13/include", "nvidia/cuda_runtime/include", "triton/backends/nvidia/include")
"""Where wheels of PyTorch's needs keep CUDA's headers, from CUDA 13 on and before."""


LIBRARIES = {"card.c": "libhollow.so", "driver.c": "libcuda.so.1", "nvml.c": "libnvidia-ml.so.1"}
"""What each source becomes; the first is preloaded, PyTorch opens the others by name."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=79.2, help="memory of the card (that of an H100)")
    parser.add_argument("--capability", default="9.0", help="its compute capability")
    parser.add_argument("--multiprocessors", type=int, default=132, help="how many it has")
    parser.add_argument("--name", default="H100", help="what it is called, behind the word Hollow")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run, behind --")
    options = parser.parse_args()
    command = options.command[options.command[:1] == ["--"] :]
    if not command:
        parser.error("give a command behind --")
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        settings = {
            "HOLLOW_GIB": str(options.gib), "HOLLOW_CAPABILITY": options.capability,
            "HOLLOW_NAME": options.name, "HOLLOW_MULTIPROCESSORS": str(options.multiprocessors),
            "HOLLOW_SHARED": str(Path(folder) / "memory"),
        }  # fmt: skip
        sys.exit(subprocess.run(command, env=environment(Path(folder), settings), check=False).returncode)


def build(folder: Path) -> None:
    """Compile the libraries into ``folder``."""
    packages = Path(str(find_spec("torch").origin)).parents[1]  # type: ignore[union-attr]
    found = [f"-I{packages / path}" for path in HEADERS if (packages / path).is_dir()]
    compiler = ["gcc", "-O1", "-fPIC", "-shared", "-pthread", *found]
    for source, library in LIBRARIES.items():
        subprocess.run([*compiler, str(HERE / source), "-o", str(folder / library)], check=True)


def environment(folder: Path, settings: dict[str, str]) -> dict[str, str]:
    """That of a process, and of those it starts, which find the libraries in ``folder``."""
    before = os.environ.get("LD_LIBRARY_PATH")
    paths = os.pathsep.join(filter(None, (str(folder), before)))
    preloaded = str(folder / LIBRARIES["card.c"])
    return {**os.environ, **settings, "LD_LIBRARY_PATH": paths, "LD_PRELOAD": preloaded}


if __name__ == "__main__":
    main()
