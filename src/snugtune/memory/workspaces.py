"""What kernels and libraries allocate beside the tensors PyTorch shows: modelled, not traced.

Sources: PyTorch 2.x ``aten/src/ATen/native/transformers/cuda/attention_backward.cu`` and
``mem_eff_attention/kernel_backward.h`` (accumulators of the memory-efficient attention's backward pass),
``flash_attn/flash_api.cpp`` (``mha_varlen_bwd``), ``aten/src/ATen/cuda/CublasHandlePool.cpp``
(``getChosenWorkspaceSize``), and those named below. Checked, as far as they are taken of PyTorch's allocator,
by ``benchmarks/hollow``.
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

REDUCTIONS = frozenset({"sum", "mean"})

GRID_THREADS = 132 * 2048
"""Threads that run at once on the largest card of the table (H100: multiprocessors times threads of each); on
smaller ones reductions are divided into fewer blocks."""

BLOCKS_OF_KEYS = 200
"""Blocks past which attention's backward pass is not divided further (``kernel_backward.h``)."""

SORTED_ABOVE = 3072
"""Ids above which an embedding's gradient sorts them (``aten/src/ATen/native/cuda/Embedding.cu``)."""

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
    """Bytes that the operator takes beside its results and gives back at its end."""
    name = func._schema.name.rpartition("::")[2]
    if name in REDUCTIONS:
        return _reduction_bytes(args[0], args[1] if len(args) > 1 else None)
    if name == "_softmax_backward_data":
        # The gradient times the output (``SoftMax.cu``, ``softmax_backward_cuda_out``).
        return int(args[0].nbytes)
    if name == "embedding_dense_backward":
        return _embedding_backward_bytes(args[0], args[1].numel())
    if name == "_varlen_attn_backward":
        return _varlen_backward_bytes(query=args[1], key=args[2], texts=len(args[6]) - 1)
    if name == "_scaled_dot_product_efficient_attention_backward":
        return _efficient_backward_bytes(query=args[1], key=args[2])
    return 0


def _efficient_backward_bytes(query: Any, key: Any) -> int:
    """Of memory-efficient attention's backward pass over (B, heads, L, head_dim).

    The gradient of the queries is accumulated in float32, padded to blocks of 64 or, with large heads, 128
    rows; there is one float32 for each row of queries (``delta``; two in float32). Heads of more than 128
    have their keys' and values' gradients accumulated, too, for as many blocks of keys as fill a card.
    """
    batch, heads, length, head_dim = query.shape
    of_keys, block, width = key.shape[2], 64 if head_dim <= 64 else 128, math.ceil(head_dim / 64) * 64
    accumulated = batch * heads * math.ceil(length / block) * block * width
    if head_dim > 128:
        blocks = min(math.ceil(of_keys / 64), max(1, BLOCKS_OF_KEYS // (batch * heads)))
        accumulated += batch * heads * 2 * blocks * 64 * width
    rows = batch * heads * length * (1 if query.element_size() == 2 else 2)
    return int(4 * (accumulated + rows))


def _reduction_bytes(values: Any, dims: Any) -> int:
    """Of a reduction of ``values`` over leading ``dims``: what blocks of threads leave for each other.

    Follows ``setReduceConfig`` and ``global_memory_size`` of ``aten/src/ATen/native/cuda/Reduce.cuh``, for a
    card of ``GRID_THREADS`` threads; reductions over the last dimension take next to nothing.
    """
    kept = [size for dim, size in enumerate(values.shape) if dim not in _positive(dims, values.dim())]
    outputs = math.prod(kept)
    if not outputs or not kept or values.shape[-1] != kept[-1] or values.numel() == outputs:
        return 0
    inputs = values.numel() // outputs
    vector = math.gcd(4, kept[-1])
    most = 512 // vector
    width = min(_power_below(outputs // vector, most), 32)
    height = min(_power_below(inputs, most), most // width)
    width = min(_power_below(outputs // vector, most), most // height)
    each = -(-inputs // height)
    grid = -(-outputs // vector // width)
    target = GRID_THREADS // (width * height)
    if inputs < min(16 * height, 256) or each < 256 or grid > target:
        return 0
    blocks = max(min(-(-target // grid), -(-each // 16)), -(-each // 256))
    return 4 * outputs * blocks * width * vector if blocks > 1 else 0


def _positive(dims: Any, count: int) -> set[int]:
    if dims is None or dims == []:
        return set(range(count))
    return {dim % count for dim in ([dims] if isinstance(dims, int) else dims)}


def _power_below(n: int, most: int) -> int:
    """The largest power of two up to ``n``, and no more than ``most``."""
    return min(1 << (max(n, 1).bit_length() - 1), most)


def _embedding_backward_bytes(gradient: Any, tokens: int) -> int:
    """Of the gradient of a table for more than 3,072 ids: sorted ids, and partial sums of ten rows each.

    At most, if every id is another (``EmbeddingBackwardKernel.cu``).
    """
    if tokens <= SORTED_ABOVE:
        return 0
    return int(4 * gradient.shape[-1] * (tokens + tokens // 10) + 5 * 8 * tokens)


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
