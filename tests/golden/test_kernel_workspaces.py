"""What kernels take beside results is what PyTorch's own CUDA code asked its allocator for.

``make_kernel_workspaces.py`` wrote ``kernel_workspaces.json``.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.attention.varlen

from snugtune.memory.workspaces import workspace_bytes

FOUND = json.loads(Path(__file__).with_name("kernel_workspaces.json").read_text(encoding="ascii"))
ATEN = torch.ops.aten


def meta(*shape, dtype="float16"):
    return torch.empty(shape, device="meta", dtype=getattr(torch, dtype))


def close(n_bytes):
    """Whole blocks of 512 bytes, counters of blocks and indices of few bytes are not modelled."""
    return pytest.approx(n_bytes, rel=0.01, abs=2048)


@pytest.mark.parametrize("row", FOUND["sums"], ids=lambda row: f"{row['shape']} over {row['dims']}")
def test_sums(row):
    args = (meta(*row["shape"]),) if row["dims"] is None else (meta(*row["shape"]), row["dims"])
    assert workspace_bytes(ATEN.sum.dim_IntList, args) == close(row["bytes"])


@pytest.mark.parametrize("row", FOUND["embeddings"], ids=lambda row: f"{row['tokens']} x {row['width']}")
def test_gradients_of_embeddings(row):
    gradient, ids = meta(row["tokens"], row["width"], dtype="float32"), meta(row["tokens"], dtype="int64")
    args = gradient, ids, row["rows"]
    assert workspace_bytes(ATEN.embedding_dense_backward.default, args) == close(row["bytes"])


def test_the_gradient_of_softmax():
    values = meta(*FOUND["softmax"]["shape"], dtype="float32")
    found = workspace_bytes(ATEN._softmax_backward_data.default, (values, values))
    assert found == close(FOUND["softmax"]["bytes"])


@pytest.mark.parametrize("row", FOUND["attentions"], ids=lambda row: f"{row['shape']} {row['dtype']}")
def test_the_gradient_of_memory_efficient_attention(row):
    query = meta(*row["shape"], dtype=row["dtype"])
    operator = ATEN._scaled_dot_product_efficient_attention_backward.default
    assert workspace_bytes(operator, (query, query, query, query)) == close(row["bytes"])


@pytest.mark.parametrize(
    "row", FOUND["norms"], ids=lambda row: f"{row['shape']} {row['dtype']} {row['wanted']}"
)
def test_the_gradient_of_layer_norm(row):
    values = meta(*row["shape"], dtype=row["dtype"])
    args = (values, values, row["shape"][1:], None, None, None, None, row["wanted"])
    assert workspace_bytes(ATEN.native_layer_norm_backward.default, args) == close(row["bytes"])


@pytest.mark.parametrize("row", FOUND["packed"], ids=lambda row: f"{row['texts']} x {row['length']}")
def test_the_gradient_of_attention_over_packed_texts(row):
    query = meta(row["texts"] * row["length"], row["heads"], row["head_dim"])
    edges = meta(row["texts"] + 1, dtype="int32")
    args = (query, query, query, query, query, None, edges)
    found = workspace_bytes(torch.ops.torch_attn._varlen_attn_backward.default, args)
    assert found == close(row["bytes"])
