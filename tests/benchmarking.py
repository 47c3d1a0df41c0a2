"""The benchmarks as tests import them: their package under a name of its own, their scripts by name."""

import importlib.util
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def load_package():
    """``benchmarks/lib`` as ``benchmark_lib``, once; the scripts see it as ``lib`` beside them."""
    if "benchmark_lib" in sys.modules:
        return
    folder = BENCHMARKS / "lib"
    spec = importlib.util.spec_from_file_location(
        "benchmark_lib", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_lib"] = sys.modules["lib"] = package
    spec.loader.exec_module(package)
