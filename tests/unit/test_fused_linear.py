"""Fused and packed linear layers give what the plain ones give, where they run, and run nowhere else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_first_token import batch, make
from torch import nn
from torch.nn.functional import gelu, linear

from families import FAMILIES
from snugtune.config import make_config
from snugtune.model import fused_linear
from snugtune.model.adapter import wrap
from snugtune.model.fused_linear import PackedLinear, can_fuse, fuse_gelu, linear_pointwise, pack_linears

pytestmark = pytest.mark.skipif(not can_fuse(), reason="this processor does not multiply in bfloat16")

OF_BERTS_LAYOUT = ["bert", "roberta", "xlm-roberta", "electra", "camembert", "deberta-v2", "mpnet"]


@pytest.fixture
def calls(monkeypatch):
    """What the fused product was asked to compute."""
    seen = []

    def noted(linear, x, gelu=None):
        seen.append(gelu)
        return linear_pointwise(linear, x, gelu)

    monkeypatch.setattr(fused_linear, "linear_pointwise", noted)
    return seen


@settings(max_examples=40)
@given(
    rows=st.integers(1, 70), wide=st.sampled_from([3, 32, 96]), out=st.sampled_from([1, 5, 64]),
    bias=st.booleans(), algorithm=st.sampled_from([None, "none", "tanh"]), packed=st.booleans(),
)  # fmt: skip
def test_a_product_is_that_of_float32_rounded_once(rows, wide, out, bias, algorithm, packed):
    torch.manual_seed(rows)
    plain = nn.Linear(wide, out, bias=bias).bfloat16()
    x = torch.randn(2, rows, wide).bfloat16()
    with torch.inference_mode():
        found = linear_pointwise(PackedLinear(plain) if packed else plain, x, algorithm)
        expected = linear(x.float(), plain.weight.float(), None if plain.bias is None else plain.bias.float())
    if algorithm:
        expected = gelu(expected, approximate=algorithm)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected, rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_stay_what_they_were(family, calls):
    model = make(family).bfloat16()
    inputs = batch([9, 3, 17, 2])
    with torch.inference_mode():
        expected = model(**inputs).logits.float()
        fused, packed = fuse_gelu(model), pack_linears(model)
        found = model(**inputs).logits.float()
    assert (fused > 0) == (family in OF_BERTS_LAYOUT)
    assert calls.count("none") == fused
    assert len(calls) >= packed >= fused
    assert torch.allclose(found, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


def test_gelu_within_the_product_is_rounded_once_instead_of_twice():
    torch.manual_seed(0)
    dense, x = nn.Linear(64, 256).bfloat16(), torch.randn(300, 64).bfloat16()
    with torch.inference_mode():
        exact = gelu(linear(x.float(), dense.weight.float(), dense.bias.float()))
        once = linear_pointwise(dense, x, "none").float() - exact
        twice = gelu(dense(x)).float() - exact
    assert once.square().mean() < 0.7 * twice.square().mean()


@pytest.mark.parametrize("state", ["training", "gradients", "float32"])
def test_elsewhere_layers_stay_bit_for_bit_as_they_are(state, calls):
    plain, fused = make("bert"), make("bert")
    fuse_gelu(fused)
    for model in (plain, fused):
        if state != "float32":
            model.bfloat16()
        model.train(state == "training")
    with torch.set_grad_enabled(state == "gradients"):
        assert torch.equal(fused(**batch([9, 3])).logits, plain(**batch([9, 3])).logits)
    assert not calls


def test_under_autocast_as_the_engine_looks_at_validation(calls):
    model = make("bert").bfloat16()
    fuse_gelu(model)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(**batch([9, 3]))
    assert calls == ["none", "none"]


def test_an_adapter_put_on_the_product_is_not_passed_over(calls):
    model = make("bert").bfloat16()
    fuse_gelu(model)
    model = wrap(model, make_config({"train": "", "r": 4, "target_modules": "all-linear"}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        model.eval()
        with_adapter = model(**batch([9, 3])).logits
        with model.disable_adapter():
            without = model(**batch([9, 3])).logits
    assert not calls
    assert not torch.allclose(with_adapter.float(), without.float(), atol=1e-4)
