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
from collections.abc import Callable
from dataclasses import dataclass, replace
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

MULTIPROCESSORS = 132
"""Of the largest card of the table (H100)."""

GRID_THREADS = MULTIPROCESSORS * 2048
"""Threads that run at once on the largest card of the table (H100: multiprocessors times threads of each); on
smaller ones reductions are divided into fewer blocks."""

BLOCKS_OF_KEYS = 200
"""Blocks past which attention's backward pass is not divided further (``kernel_backward.h``)."""

SORTED_ABOVE = 3072
"""Ids above which an embedding's gradient sorts them (``aten/src/ATen/native/cuda/Embedding.cu``)."""

ROWS_IN_ONE, BLOCKS_OF_SUMS = 64 * 1024, 32 * 1024
"""Rows above which layer norm's backward pass adds up in parts, and the most blocks it does that with
(``layer_norm_kernel.cu``)."""

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


Blocks = tuple[int, ...]
"""Bytes of what is allocated one after the other, and given back together."""


@dataclass(frozen=True)
class Demand:
    """A block that an operator takes beside its results: number ``part`` of a ``rule``.

    The ``sizes`` that the rule hangs on grow evenly with the micro-batch and with the tokens of its texts, so
    those of one can be told from those of others; bytes cannot, for rules have thresholds. ``fixed`` are the
    same for all.
    """

    rule: Callable[..., Blocks]
    sizes: tuple[int, ...]
    fixed: tuple[Any, ...] = ()
    part: int = 0

    @property
    def n_bytes(self) -> int:
        """Bytes taken; at these sizes it may be none."""
        return self.rule(self.sizes, *self.fixed)[self.part]


def workspace_bytes(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes that the operator takes beside its results and gives back at its end."""
    return sum(demand.n_bytes for demand in demands_of(func, args))


def demands_of(func: Any, args: tuple[Any, ...]) -> list[Demand]:
    """The same block by block, in the order in which they are taken."""
    made = DEMANDS.get(func._schema.name.rpartition("::")[2])
    if made is None:
        return []
    whole = made(args)
    parts = len(whole.rule(whole.sizes, *whole.fixed))
    return [replace(whole, part=part) for part in range(parts)]


def _of_reduction(args: tuple[Any, ...]) -> Demand:
    values, dims = args[0], args[1] if len(args) > 1 else None
    return Demand(_reduction_blocks, tuple(values.shape), (_positive(dims, values.dim()),))


def _of_softmax_backward(args: tuple[Any, ...]) -> Demand:
    """The gradient times the output (``SoftMax.cu``, ``softmax_backward_cuda_out``)."""
    return Demand(_copy_blocks, tuple(args[0].shape), (args[0].element_size(),))


def _of_embedding_backward(args: tuple[Any, ...]) -> Demand:
    gradient, ids, rows = args[:3]
    return Demand(_embedding_backward_blocks, (ids.numel(),), (rows, gradient.shape[-1]))


def _of_varlen_backward(args: tuple[Any, ...]) -> Demand:
    (tokens, heads, head_dim), texts = args[1].shape, len(args[6]) - 1
    fixed = heads, args[2].shape[1], head_dim, args[1].element_size()
    return Demand(_varlen_backward_blocks, (tokens, texts), fixed)


def _of_efficient_backward(args: tuple[Any, ...]) -> Demand:
    query, key = args[1:3]
    batch, heads, length, head_dim = query.shape
    fixed = heads, head_dim, query.element_size()
    return Demand(_efficient_backward_blocks, (batch, length, key.shape[2]), fixed)


def _of_layer_norm_backward(args: tuple[Any, ...]) -> Demand:
    values, columns, wanted = args[1], math.prod(args[2]), args[7]
    fixed = columns, values.element_size(), sum(map(bool, wanted[1:]))
    return Demand(_layer_norm_backward_blocks, (values.numel() // columns,), fixed)


DEMANDS: dict[str, Callable[[tuple[Any, ...]], Demand]] = {
    "sum": _of_reduction,
    "mean": _of_reduction,
    "_softmax_backward_data": _of_softmax_backward,
    "embedding_dense_backward": _of_embedding_backward,
    "_varlen_attn_backward": _of_varlen_backward,
    "_scaled_dot_product_efficient_attention_backward": _of_efficient_backward,
    "native_layer_norm_backward": _of_layer_norm_backward,
}
"""Makers of demands from an operator's arguments, by its name."""


def _copy_blocks(shape: tuple[int, ...], element_size: int) -> Blocks:
    return (math.prod(shape) * element_size,)


def _layer_norm_backward_blocks(sizes: tuple[int], columns: int, element_size: int, outputs: int) -> Blocks:
    """Of the gradients of weight and bias over more than 65,536 rows: sums over 32 rows, added up at the end.

    ``LaunchGammaBetaBackwardCUDAKernel`` of ``aten/src/ATen/native/cuda/layer_norm_kernel.cu``, for a card of
    ``GRID_THREADS`` threads; fewer rows, or more columns than its multiprocessors share, take nothing.
    """
    (rows,) = sizes
    across = -(-columns // 32)
    if rows <= ROWS_IN_ONE or columns // 32 >= MULTIPROCESSORS // 2 or not outputs:
        return 0, 0
    parts = min(BLOCKS_OF_SUMS // across, -(-rows // 32))
    return outputs * parts * columns * element_size, _reduction_bytes((parts, columns), frozenset({0}))


def _efficient_backward_blocks(
    sizes: tuple[int, int, int], heads: int, head_dim: int, element_size: int
) -> Blocks:
    """Of memory-efficient attention's backward pass over (B, heads, L, head_dim).

    The gradient of the queries is accumulated in float32, padded to blocks of 64 or, with large heads, 128
    rows; there is one float32 for each row of queries (``delta``; two in float32). Heads of more than 128
    have their keys' and values' gradients accumulated, too, for as many blocks of keys as fill a card.
    """
    batch, length, of_keys = sizes
    block, width = 64 if head_dim <= 64 else 128, math.ceil(head_dim / 64) * 64
    accumulated = batch * heads * math.ceil(length / block) * block * width
    if head_dim > 128:
        blocks = min(math.ceil(of_keys / 64), max(1, BLOCKS_OF_KEYS // (batch * heads)))
        accumulated += batch * heads * 2 * blocks * 64 * width
    rows = batch * heads * length * (1 if element_size == 2 else 2)
    return 4 * rows, 4 * accumulated


def _reduction_blocks(shape: tuple[int, ...], dims: frozenset[int]) -> Blocks:
    return (_reduction_bytes(shape, dims),)


def _reduction_bytes(shape: tuple[int, ...], dims: frozenset[int]) -> int:
    """Of a reduction over leading ``dims`` of ``shape``: what blocks of threads leave for each other.

    Follows ``setReduceConfig`` and ``global_memory_size`` of ``aten/src/ATen/native/cuda/Reduce.cuh``, for a
    card of ``GRID_THREADS`` threads; reductions over the last dimension take next to nothing.
    """
    kept = [size for dim, size in enumerate(shape) if dim not in dims]
    outputs, values = math.prod(kept), math.prod(shape)
    if not outputs or not kept or shape[-1] != kept[-1] or values == outputs:
        return 0
    inputs = values // outputs
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


def _positive(dims: Any, count: int) -> frozenset[int]:
    if dims is None or dims == []:
        return frozenset(range(count))
    return frozenset(dim % count for dim in ([dims] if isinstance(dims, int) else dims))


def _power_below(n: int, most: int) -> int:
    """The largest power of two up to ``n``, and no more than ``most``."""
    return min(1 << (max(n, 1).bit_length() - 1), most)


def _embedding_backward_blocks(sizes: tuple[int], rows: int, width: int) -> Blocks:
    """Of the gradient of a table of ``rows`` for more than 3,072 ids: sorted ids, and sums of ten ids each.

    There is one more sum for each id that differs, so at most one for each row or id
    (``EmbeddingBackwardKernel.cu``). Tables of a few hundred rows may take next to nothing.
    """
    (tokens,) = sizes
    if tokens <= SORTED_ABOVE:
        return 0, 0
    different, tens = min(tokens, rows), tokens // 10
    return 8 * (3 * tokens + tens + 3 * different), 4 * width * (tens + different)


def _varlen_backward_blocks(
    sizes: tuple[int, int], heads: int, heads_of_keys: int, head_dim: int, element_size: int
) -> Blocks:
    """Of FlashAttention 2's backward pass over ``texts`` packed in (T, heads, head_dim).

    The gradient of the queries is accumulated in float32 with 128 rows of room behind each text, as are the
    row sums; with fewer heads of keys their gradients are made for every head and then added up.
    """
    tokens, texts = sizes
    rows = tokens + 128 * texts
    accumulator = 4 * rows * heads * math.ceil(head_dim / 32) * 32
    expanded = 0 if heads_of_keys == heads else tokens * heads * head_dim * element_size
    return 4 * rows * heads, accumulator, expanded, expanded
