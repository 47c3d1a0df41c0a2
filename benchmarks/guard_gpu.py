"""Whole runs on a card whose memory is cut: how many fail, and do they train the same model? Run it there:

    python benchmarks/guard_gpu.py --cases 100 --out benchmarks/results

Each case is a supervised fit of the bundled model on the sample data, in float32 and without dropout. Its
process may hold a random share of the card (``set_per_process_memory_fraction``), from generous to absurd,
and in every other case another process takes most of what is left at a random moment and gives it back later.
Its weights are compared with those of an undisturbed run of the same card. Without one, ``--dry-run`` takes
two cases on the CPU, which has no such limits, to see that the script works.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lib import common
from safetensors.numpy import load_file

from snugtune.config import FitConfig, make_config
from snugtune.data.sample import write_sample
from snugtune.errors import SnugtuneError
from snugtune.progress import Observer
from snugtune.supervise import Supervisor, has_gpu

LEAST_GIB, MOST_GIB = 0.1, 4.0
"""Of the shares: the weights alone take .1 GiB, and nothing here needs more than the most."""

WORKER = """
import torch
if {gib} and torch.cuda.is_available():
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, {gib} * 2**30 / total))
from snugtune.worker import main
main()
"""

HOG = """
import sys, time, torch
held = []
try:
    while True:
        held.append(torch.empty(2**26, dtype=torch.uint8, device="cuda"))
except RuntimeError:
    print("full", flush=True)
time.sleep({seconds})
"""


@dataclass(frozen=True)
class Case:
    """One run: GiB it may hold (None: all), and the step at which another process takes the rest, if any."""

    gib: float | None
    hog_at_step: int | None


def draw_cases(count: int, steps: int, seed: int = 0) -> list[Case]:
    """Random cases; shares are spread evenly over orders of magnitude."""
    rng = np.random.default_rng(seed)
    shares = np.exp(rng.uniform(np.log(LEAST_GIB), np.log(MOST_GIB), count))
    moments = rng.integers(1, steps, count)
    return [Case(float(g), int(moments[i]) if i % 2 else None) for i, g in enumerate(shares)]


class Watcher(Observer):
    """Notes what is said, and starts the other process at its moment."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.said: list[str] = []
        self.hog: subprocess.Popen[str] | None = None

    def say(self, sentence: str) -> None:
        """Kept."""
        self.said.append(sentence)

    def on_step(self, info: Any) -> None:
        """Another process takes the memory."""
        if info.step == self.case.hog_at_step and self.hog is None:
            command = [sys.executable, "-c", HOG.format(seconds=20)]
            self.hog = subprocess.Popen(command, text=True)

    def close(self) -> None:
        """End the other process."""
        if self.hog is not None:
            self.hog.kill()
            self.hog.wait()


def run(case: Case, config: FitConfig, folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What happened, and the trained tensors (None after a failure)."""
    watcher = Watcher(case)
    command = (sys.executable, "-c", WORKER.format(gib=case.gib))
    try:
        Supervisor(config, folder, overwrite=True, observer=watcher, command=command).run()
    except (SnugtuneError, RuntimeError) as error:
        return {"failed": str(error)[-2000:], "said": watcher.said[-5:]}, None
    finally:
        watcher.close()
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    told = {name: record["memory"][name] for name in ("measured_peak_gib", "events", "restarts")}
    told["device"] = record["training"]["device"]
    return told, load_file(folder / "adapter" / "adapter_model.safetensors")


def difference(weights: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference of a weight, relative to the largest weight of its tensor."""
    pairs = ((weights[name], tensor) for name, tensor in expected.items())
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)) for a, b in pairs)


def main() -> None:
    """Run the cases, tell how many failed, write the result."""
    parser = common.parser("Supervised runs on a card whose memory is cut.")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--dry-run", action="store_true", help="two cases on the CPU; nothing is written")
    options = parser.parse_args()
    if not options.dry_run and not has_gpu():
        print("Skipped: there is no card here; --dry-run sees whether the script works.")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_sample(folder / "sample.xlsx")
        settings = {
            "train": str(folder / "sample.xlsx"), "text": ("Consumer complaint narrative",), "label": "Issue",
            "num_train_epochs": 0.05 if options.dry_run else options.epochs, "bf16": False,
        }  # fmt: skip
        config = make_config(settings)
        undisturbed, expected = run(Case(None, None), config, folder / "undisturbed")
        if expected is None:
            sys.exit(f"The undisturbed run failed: {undisturbed['failed']}")
        results = []
        for i, case in enumerate(draw_cases(2 if options.dry_run else options.cases, steps=20)):
            told, weights = run(case, config, folder / "case")
            if weights is not None:
                told["largest_relative_difference"] = difference(weights, expected)
            results.append({**asdict(case), **told})
            print(f"{i + 1}: {case.gib:.2f} GiB, {_summary(told)}")
    failed = sum("failed" in told for told in results)
    print(f"{failed} of {len(results)} cases failed.")
    if not options.dry_run:
        record = {"benchmark": "guard", "settings": {"cases": options.cases, "epochs": options.epochs},
                  "failed": failed, "undisturbed": undisturbed, "cases": results}  # fmt: skip
        common.save_result("guard", record, options.out, machine=common.hardware())


def _summary(told: dict[str, Any]) -> str:
    if "failed" in told:
        return f"FAILED: {told['failed'][:200]}"
    return (
        f"{len(told['events'])} events, {len(told['restarts'])} restarts, on {told['device']}, "
        f"weights differ by {told['largest_relative_difference']:.1e}"
    )


if __name__ == "__main__":
    main()
