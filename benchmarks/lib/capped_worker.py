"""The product's worker on a card of which it may hold a share only; run as a script by a ``Supervisor``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def capped_fit(gib: float | None) -> Callable[..., Path]:
    """``fit.fit`` in a process that may hold ``gib`` of the card (None: all of it).

    The cap stands behind the product's own choice of allocator and inside what its worker calls, so that
    the allocator is the product's and a card that cannot even be asked is told as the product tells it.
    """

    def fit(*arguments: Any, **options: Any) -> Path:
        from snugtune.quiet import quiet_libraries

        quiet_libraries()
        cap_card(gib)
        from snugtune.fit import fit as fit_of_the_package

        return fit_of_the_package(*arguments, **options)

    return fit


def cap_card(gib: float | None) -> None:
    """Let this process have ``gib`` of the card (None: all), with the allocator that the product asks for."""
    import torch

    from snugtune.memory.segments import prefer_expandable_segments
    from snugtune.units import GIB

    prefer_expandable_segments()
    if gib is not None and torch.cuda.device_count():
        total_bytes = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total_bytes))


def command_options(gib: float | None, cache: Path, threads: int) -> list[str]:
    """What follows the script's name on its command line."""
    capped = [] if gib is None else ["--gib", str(gib)]
    return [*capped, "--cache", str(cache), "--threads", str(threads)]


def main(arguments: Sequence[str] | None = None) -> None:
    """A worker with a cap, a cache of its own and so many threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=float)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args(arguments)
    os.environ["SNUGTUNE_CACHE"] = str(options.cache)
    # Read when torch is imported; cases run side by side.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    from snugtune.worker import main as work

    work(capped_fit(options.gib))


if __name__ == "__main__":
    main()
