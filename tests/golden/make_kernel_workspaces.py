"""Write kernel_workspaces.json: what PyTorch's CUDA code takes beside results, by its own allocator.

    python benchmarks/hollow -- python tests/golden/make_kernel_workspaces.py

Needs a PyTorch with CUDA; on a real card it goes without ``benchmarks/hollow``.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.attention.varlen
from torch import Tensor

from snugtune.model.varlen import kernel

ATEN = torch.ops.aten

OUT = Path(__file__).with_name("kernel_workspaces.json")
CARD = torch.device("cuda")
BLOCK = 512

SUMS = (
    ((2048, 3072), [0]), ((4096, 4096), [0]), ((4096, 1024), [0]), ((16, 128, 3072), [0, 1]),
    ((512, 384), [0]), ((8192, 1153), [0]), ((8192, 22), [0]), ((300, 768), [0]), ((2048, 768), [1]),
    ((100_000, 8), [0]), ((64, 512, 2), [0, 1]), ((64, 512, 2), None), ((4096, 6), [0]),
)  # fmt: skip
EMBEDDINGS = (
    (4096, 30_000, 768), (3000, 30_000, 768), (8192, 30_000, 384), (16_384, 4096, 384),
)  # fmt: skip
ATTENTIONS = (
    (8, 16, 512, 64, "float16"), (4, 12, 100, 32, "float16"), (2, 4, 300, 128, "bfloat16"),
    (4, 12, 128, 64, "float32"), (2, 8, 512, 256, "bfloat16"), (32, 4, 512, 256, "bfloat16"),
)  # fmt: skip
NORMS = (
    (512, 384, "float32"), (65_536, 384, "float32"), (65_568, 384, "float32"), (131_072, 384, "bfloat16"),
    (100_001, 768, "float16"), (131_072, 1024, "float32"), (73_728, 2112, "float32"),
    (65_664, 2048, "float16"),
)  # fmt: skip
PACKED = ((8, 512, 16, 64), (256, 16, 16, 64), (16, 100, 12, 32))


def blocks(n_bytes: int) -> int:
    return -(-n_bytes // BLOCK) * BLOCK


def taken_beside(operator: Callable[..., Any], *args: Any) -> int:
    """Bytes at the peak of a call less those of the tensors that it returns."""
    operator(*args)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = operator(*args)
    tensors = (t for t in ([found] if isinstance(found, Tensor) else found) if isinstance(t, Tensor))
    results = {t.untyped_storage().data_ptr(): blocks(t.untyped_storage().nbytes()) for t in tensors}
    return torch.cuda.max_memory_allocated() - before - sum(results.values())


def sums() -> list[dict[str, Any]]:
    rows = []
    for shape, dims in SUMS:
        values = torch.zeros(shape, device=CARD, dtype=torch.float16)
        args = (values,) if dims is None else (values, dims)
        rows.append({"shape": shape, "dims": dims, "bytes": taken_beside(torch.sum, *args)})
    return rows


def embeddings() -> list[dict[str, Any]]:
    rows = []
    for tokens, vocabulary, width in EMBEDDINGS:
        gradient, ids = torch.zeros(tokens, width, device=CARD), torch.zeros(tokens, dtype=torch.int64).cuda()
        taken = taken_beside(ATEN.embedding_dense_backward, gradient, ids, vocabulary, 0, False)
        rows.append({"tokens": tokens, "rows": vocabulary, "width": width, "bytes": taken})
    return rows


def softmax() -> dict[str, Any]:
    values = torch.zeros(8, 12, 512, 512, device=CARD)
    taken = taken_beside(ATEN._softmax_backward_data, values, values, -1, torch.float32)
    return {"shape": list(values.shape), "bytes": taken}


def attentions() -> list[dict[str, Any]]:
    rows = []
    for batch, heads, length, head_dim, name in ATTENTIONS:
        dtype, shape = getattr(torch, name), (batch, length, heads, head_dim)
        q, k, v = (torch.zeros(shape, device=CARD, dtype=dtype).transpose(1, 2) for _ in "qkv")
        bias = torch.zeros(1, 1, 1, -(-length // 8) * 8, device=CARD, dtype=dtype)[..., :length]
        bias = bias.expand(batch, heads, length, length)
        out = ATEN._scaled_dot_product_efficient_attention(q, k, v, bias, True)
        wanted = [True, True, True, False]
        backward = ATEN._scaled_dot_product_efficient_attention_backward
        taken = taken_beside(backward, out[0], q, k, v, bias, *out, 0.0, wanted)
        rows.append({"shape": [batch, heads, length, head_dim], "dtype": name, "bytes": taken})
    return rows


def norms() -> list[dict[str, Any]]:
    rows = []
    for count, columns, name in NORMS:
        values = torch.zeros(count, columns, device=CARD, dtype=getattr(torch, name))
        weight, (_, mean, rstd) = (
            values[0],
            ATEN.native_layer_norm(values, [columns], values[0], values[0], 0.0),
        )
        for wanted in ((True, True, True), (True, True, False), (True, False, False)):
            args = (values, values, [columns], mean, rstd, weight, weight, wanted)
            taken = taken_beside(ATEN.native_layer_norm_backward, *args)
            shape = [count, columns]
            rows.append({"shape": shape, "dtype": name, "wanted": wanted, "bytes": taken})
    return rows


def packed() -> list[dict[str, Any]]:
    kernel()  # which keeps cuDNN out
    rows = []
    for texts, length, heads, head_dim in PACKED:
        shape = (texts * length, heads, head_dim)
        q, k, v = (torch.zeros(shape, device=CARD, dtype=torch.float16) for _ in "qkv")
        edges = torch.arange(0, (texts + 1) * length, length, dtype=torch.int32).cuda()
        sizes = (edges, edges, length, length)
        out, statistics, state = torch.ops.torch_attn._varlen_attn(q, k, v, *sizes, False)
        backward = torch.ops.torch_attn._varlen_attn_backward
        taken = taken_beside(backward, out, q, k, v, out, statistics, *sizes, False, state)
        rows.append({"texts": texts, "length": length, "heads": heads, "head_dim": head_dim, "bytes": taken})
    return rows


def main() -> None:
    torch.zeros(1, device=CARD)
    found = {
        "card": torch.cuda.get_device_name(), "torch": torch.__version__, "sums": sums(),
        "embeddings": embeddings(), "softmax": softmax(), "attentions": attentions(),
        "norms": norms(), "packed": packed(),
    }  # fmt: skip
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
