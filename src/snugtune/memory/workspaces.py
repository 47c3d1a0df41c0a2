"""What kernels and libraries allocate beside the tensors PyTorch shows: modelled, not traced.

Sources: PyTorch 2.x ``aten/src/ATen/native/transformers/cuda/attention_backward.cu`` and
``mem_eff_attention/kernel_backward.h`` (accumulators of the memory-efficient attention's backward pass),
``flash_attn/flash_api.cpp`` (``mha_varlen_bwd``), ``aten/src/ATen/cuda/CublasHandlePool.cpp``
(``getChosenWorkspaceSize``).
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch

CUBLAS_BYTES = 4096 * 1024 * 2 + 16 * 1024 * 8
"""cuBLAS's workspace of one handle and stream, ``:4096:2:16:8`` in KiB: 8.1 MiB."""

CUBLAS_HOPPER_BYTES = 32 * 1024 * 1024
"""The same from compute capability 9.0 on (before PyTorch 2.12 on 9.0 alone)."""

CUBLAS_SETTING = "CUBLAS_WORKSPACE_CONFIG"
"""Where a user sets it, as pieces of ``:KIB:COUNT`` (cuBLAS documentation, "Results Reproducibility")."""

PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "_addmm_activation"})
"""Operators that cuBLAS computes: the first of a thread makes its handle and workspace, which stay."""

CUBLASLT_BYTES = 1024 * 1024
"""cuBLASLt's own workspace, which products with a bias take before PyTorch 2.12; later they share cuBLAS's
(``aten/src/ATen/cuda/CUDABlas.cpp``, ``_getWorkspaceSize``)."""

CPU_LIBRARIES_BYTES, CPU_PRIMITIVES_BYTES = 150 * 2**20, 50 * 2**20
CPU_HEAP_FACTOR = 1.5
"""On a CPU: see ``process_bytes``."""


def library_workspaces(name: str) -> dict[str, int]:
    """What the operator called ``name`` makes libraries keep, the first time in a thread: library and bytes.

    That of cuBLAS has the size it has on most cards.
    """
    if name not in PRODUCTS:
        return {}
    own = name == "addmm" and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12)
    return {"cuBLAS": CUBLAS_BYTES} | ({"cuBLASLt": CUBLASLT_BYTES} if own else {})


def process_bytes(tensor_bytes: int, lasting_bytes: int, *, half: bool) -> int:
    """Resident memory that training adds to a process on a CPU, from its tensors' peak.

    Fitted to MiniLM on the sample data (glibc, PyTorch 2.13, oneDNN 3; ``docs/memory.md``): libraries loaded
    for training; in ``half`` precision oneDNN's compiled primitives, as few as ``memory/host.py`` lets be
    kept; and glibc's heap, which keeps freed tensors of up to 32 MiB in pieces that the next ones do not
    fill. ``lasting_bytes`` (weights, optimiser state) are never freed and so leave no such pieces.
    """
    primitives = CPU_PRIMITIVES_BYTES if half else 0
    passing = max(tensor_bytes - lasting_bytes, 0)
    return CPU_LIBRARIES_BYTES + primitives + tensor_bytes + round((CPU_HEAP_FACTOR - 1) * passing)


def cublas_bytes(capability: tuple[int, int], setting: str = "") -> int:
    """Bytes of the workspace of one cuBLAS handle on a card of this compute capability.

    A training process has two, the main thread's and the backward thread's. ``setting`` is the content of
    ``CUBLAS_WORKSPACE_CONFIG``, which is read as PyTorch reads it.
    """
    pieces = re.findall(r":(\d+):(\d+)", setting)
    if pieces:
        return sum(1024 * int(kib) * int(count) for kib, count in pieces)
    return CUBLAS_HOPPER_BYTES if capability[0] >= 9 else CUBLAS_BYTES


def workspace_bytes(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes that the operator takes and gives back inside itself.

    The backward pass of memory-efficient attention on half-precision inputs accumulates the gradient of the
    queries in float32, padded to blocks of 64, and holds one float32 per query row (``delta``).
    """
    name = func._schema.name
    if name.endswith("_varlen_attn_backward"):
        return _varlen_backward_bytes(query=args[1], key=args[2], texts=len(args[6]) - 1)
    if not name.endswith("_scaled_dot_product_efficient_attention_backward"):
        return 0
    query = args[1]
    batch, heads, length, head_dim = query.shape
    rows = batch * heads * length
    accumulator = 0
    if query.element_size() == 2:
        accumulator = 4 * batch * heads * math.ceil(length / 64) * 64 * math.ceil(head_dim / 64) * 64
    return int(accumulator + 4 * rows)


def _varlen_backward_bytes(query: Any, key: Any, texts: int) -> int:
    """Of FlashAttention 2's backward pass over ``texts`` packed in (T, heads, head_dim).

    The gradient of the queries is accumulated in float32 with 128 rows of room behind each text, as are the
    row sums; with fewer heads of keys their gradients are made for every head and then added up.
    """
    tokens, heads, head_dim = query.shape
    rows = tokens + 128 * texts
    accumulator = 4 * rows * heads * math.ceil(head_dim / 32) * 32
    expanded = 0 if key.shape[1] == heads else 2 * tokens * heads * head_dim * query.element_size()
    return int(accumulator + 4 * rows * heads + expanded)
