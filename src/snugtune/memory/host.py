"""The memory that PyTorch's libraries keep on a CPU beside tensors."""

from __future__ import annotations

import os

PRIMITIVES_KEPT = "128"
"""Compiled primitives that may be kept: those of the few lengths of packed rows (``packing.row_size``)."""

CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
"""Environment variables of PyTorch's own cache of oneDNN primitives and of oneDNN's; both hold them alive."""


def bound_primitive_caches() -> None:
    """Before the first product on a CPU: keep few compiled primitives, unless the user has said how many.

    oneDNN compiles a primitive for each shape of a bfloat16 product. Batches of texts have hundreds of
    shapes, each primitive takes some hundred KiB, and by default 1,024 are kept, twice: a run on a CPU grows
    to several times its tensors' size. Without them it is about as fast (``docs/memory.md``).
    """
    for name in CACHES:
        os.environ.setdefault(name, PRIMITIVES_KEPT)
