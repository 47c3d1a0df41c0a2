"""How PyTorch's caching allocator is asked to keep a card's memory."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Where the allocator reads its settings when CUDA is initialised; the second is the name it had before
PyTorch 2.9 (PyTorch documentation, "CUDA semantics", "Optimizing memory usage")."""

EXPANDABLE = "expandable_segments:True"


def grows_segments() -> bool:
    """Whether segments grow in a fit on this machine: unless the user has set the allocator up without it, or
    the system cannot (Windows, ``c10/cuda/CUDACachingAllocator.cpp``).
    """
    setting = _setting().replace(" ", "")
    return sys.platform != "win32" and (not setting or EXPANDABLE in setting)


def _setting() -> str:
    return next(filter(None, map(os.environ.get, VARIABLES)), "")


def prefer_expandable_segments() -> None:
    """Ask for segments that grow, unless the user has set the allocator up; before CUDA is initialised.

    Micro-batches of many lengths leave gaps of many sizes in segments of fixed size; plans count on this.
    """
    if not _setting():
        renamed = tuple(map(int, version("torch").split(".")[:2])) >= (2, 9)
        os.environ[VARIABLES[0 if renamed else 1]] = EXPANDABLE
