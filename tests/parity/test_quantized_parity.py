"""4-bit weights as rehearsed, without bitsandbytes, against the library itself on the CPU."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_trace_parity import LENGTH, MICRO_BATCH, _no_look_at_the_mask, in_order, sizes, training_part
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import LABELS, WIDE, write_family
from snugtune.config import make_config
from snugtune.data.labels import LabelSet
from snugtune.memory import trace
from snugtune.memory.quantized import nf4_bytes, nf4_storages
from snugtune.memory.setup import Setup
from snugtune.memory.trace import Ledger, Trace
from snugtune.model.adapter import wrap
from snugtune.model.backbone import load_for_fit
from snugtune.train import rehearsal
from snugtune.train.rehearsal import Rehearsal, run_steps

__all__ = ["_no_look_at_the_mask"]

pytest.importorskip("bitsandbytes")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def held(layer):
    """Every tensor that a real 4-bit layer keeps of its weight."""
    state = layer.weight.quant_state
    return [layer.weight, state.absmax, state.state2.absmax, state.code, state.state2.code, state.offset]


@pytest.mark.parametrize(("n_in", "n_out"), [(64, 64), (32, 48), (256, 256), (100, 77), (1024, 300)])
def test_a_layer_keeps_the_bytes_that_are_predicted(n_in, n_out):
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(
        n_in, n_out, bias=False, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4"
    ).to("cpu")
    real = [(t.numel(), t.dtype) for t in held(layer)]
    assert sorted(map(str, real)) == sorted(map(str, nf4_storages(n_in * n_out).values()))
    assert sum(n * dtype.itemsize for n, dtype in real) == nf4_bytes(n_in * n_out)


def test_a_whole_model_keeps_the_bytes_that_are_predicted(tmp_path):
    config = make_config(
        {"train": "x", "model": str(write_family(tmp_path, "qwen3", **WIDE["qwen3"])), "load_in_4bit": True}
    )
    model = load_for_fit(config, LabelSet(LABELS, {})).model
    real = sum(
        sum(t.numel() * t.element_size() for t in held(m))
        for m in model.modules()
        if hasattr(m, "quant_state")
    )
    plain = load_for_fit(config.model_copy(update={"load_in_4bit": False}), LabelSet(LABELS, {})).model
    layers = [m for m in plain.model.layers.modules() if isinstance(m, nn.Linear)]
    assert real == sum(nf4_bytes(layer.weight.numel()) for layer in layers) > 0


@pytest.fixture
def _visible_products(monkeypatch):
    """The library's own default kernel in place of the operator that hides what it allocates."""
    from bitsandbytes.backends.default.ops import _gemm_4bit_default_impl

    monkeypatch.setattr(torch.ops.bitsandbytes, "gemm_4bit", SimpleNamespace(default=_gemm_4bit_default_impl))


def real_trace(config, setup):
    """Two real steps of the 4-bit model of ``config`` under the ledger."""
    backbone = load_for_fit(config, LabelSet(LABELS, {}), dtype=DTYPES[setup.weights])
    model = wrap(backbone.model, config)
    ledger = Ledger(model)
    # Tables that several layers share on the CPU are there for each layer on a card, and in the rehearsal.
    quantized = [t for m in model.modules() if hasattr(m, "quant_state") for t in held(m)]
    ledger.mark((*model.parameters(), *model.buffers(), *quantized), trace.WEIGHTS)

    def batch():
        made = rehearsal._batch(MICRO_BATCH, LENGTH)
        made.inputs["attention_mask"].numpy()[0, LENGTH // 2 :] = 0
        return made

    dtype = DTYPES[setup.compute]
    ended = []
    with ledger:
        run_steps(
            model, config, ("score", "classifier", "pooler"), ledger, batch=batch,
            autocast=lambda: torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32),
            accumulates=True, on_card=False, evaluate=lambda: ended.append(len(ledger._events)),
        )  # fmt: skip
    found = ledger.close()
    return Trace(found.storages, found.events[: ended[0]])


@pytest.mark.usefixtures("_no_look_at_the_mask", "_visible_products")
@pytest.mark.parametrize("family", ["bert", "qwen3", "llama", "gpt2"])
@pytest.mark.parametrize(
    ("settings", "setup"),
    [
        ({}, Setup("cpu", "float32", "float32", quantized=True)),
        ({"target_modules": "all-linear"}, Setup("cpu", "bfloat16", "bfloat16", quantized=True)),
        ({"method": "head"}, Setup("cpu", "bfloat16", "bfloat16", quantized=True)),
        ({"use_dora": True}, Setup("cpu", "float32", "float32", quantized=True)),
    ],
)
def test_rehearsed_and_real_4_bit_steps_allocate_the_same_bytes(tmp_path, family, settings, setup):
    folder = str(write_family(tmp_path, family, **WIDE[family]))
    rank = {} if settings.get("method") == "head" else {"r": 4}
    config = make_config({"train": "x", "model": folder, "load_in_4bit": True, **rank, **settings})
    expected = training_part(Rehearsal(config, len(LABELS), setup).trace(MICRO_BATCH, LENGTH))
    found = real_trace(config, setup)
    assert found.peak_bytes == expected.peak_bytes
    assert found.composition() == expected.composition()
    assert sizes(found) == sizes(expected)
    assert in_order(found) == in_order(expected)
