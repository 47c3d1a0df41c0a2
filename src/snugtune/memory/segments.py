"""How PyTorch's caching allocator is asked to keep a card's memory."""

from __future__ import annotations

import os
from importlib.metadata import version

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Where the allocator reads its settings when the first tensor is made on a card; the second is the name it
had before PyTorch 2.9 (PyTorch documentation, "CUDA semantics", "Optimizing memory usage")."""

EXPANDABLE = "expandable_segments:True"


def prefer_expandable_segments() -> None:
    """Ask for segments that grow, unless the user has set the allocator up; before the first CUDA tensor.

    Micro-batches of many lengths leave gaps of many sizes in segments of fixed size; plans count on this.
    """
    if not any(os.environ.get(name) for name in VARIABLES):
        renamed = tuple(map(int, version("torch").split(".")[:2])) >= (2, 9)
        os.environ[VARIABLES[0 if renamed else 1]] = EXPANDABLE
