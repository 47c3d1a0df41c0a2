"""Attention block by block against torch's own, in float64 and beside its bfloat16 kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention as theirs
from torch.utils._python_dispatch import TorchDispatchMode

from snugtune.model import blocked_attention
from snugtune.model.blocked_attention import BLOCK_BYTES, attend, can_run


def inputs(lengths, heads=3, width=8, *, dtype=torch.bfloat16, spread=1.0, seed=0):
    """q, k, v as a layer's projections give them, a mask of padding, and a gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    q, k, v, g = (
        (torch.randn(len(lengths), longest, heads, width, generator=generator) * spread)
        .to(dtype)
        .transpose(1, 2)
        for _ in range(4)
    )
    mask = torch.arange(longest)[None, None, None, :] < torch.tensor(lengths)[:, None, None, None]
    return (q, k, v), mask, g


def run(function, tensors, mask, grad, dtype):
    """Output and gradients of an attention, computed in ``dtype``."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    out = function(*leaves, mask)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(dtype))]


def ours(q, k, v, mask):
    return attend(q, k, v, mask, q.shape[-1] ** -0.5)


def by_torch(q, k, v, mask):
    return theirs(q, k, v, attn_mask=mask)


def relative_error(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    heads=st.integers(1, 4),
    spread=st.sampled_from([0.1, 1.0, 12.0]),
    block=st.sampled_from([BLOCK_BYTES, 30_000, 1]),
    seed=st.integers(0, 999),
)
def test_equals_torch_in_float64(lengths, heads, spread, block, seed):
    tensors, mask, grad = inputs(lengths, heads, dtype=torch.float64, spread=spread, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked_attention, "BLOCK_BYTES", block)
        found = run(ours, tensors, mask, grad, torch.float64)
    for ours_, exact in zip(found, run(by_torch, tensors, mask, grad, torch.float64), strict=True):
        # D's second summand is what the first lost, in the same number format: nothing in float64.
        assert torch.allclose(ours_, exact, rtol=1e-9, atol=1e-9 * spread)


@pytest.mark.parametrize("spread", [0.3, 1.5, 6.0])
def test_in_bfloat16_it_errs_little_more_than_rounding_does(spread):
    """Rounded scores cost up to 1 / 256 of a weight's exponent, as in Transformers' eager attention."""
    tensors, mask, grad = inputs([200, 150, 256, 9], width=32, spread=spread)
    exact = run(by_torch, tensors, mask, grad, torch.float64)
    found = run(ours, tensors, mask, grad, torch.bfloat16)
    errors = [relative_error(f, e) for f, e in zip(found, exact, strict=True)]
    assert max(errors) < 0.04 if spread > 2 else max(errors) < 0.012, errors


@pytest.mark.parametrize("shift", [150.0, -150.0, 1e5])
def test_scores_out_of_range_are_shifted_by_their_largest(shift):
    """One direction of q and k adds the same to all scores of a row, which changes no weight."""
    tensors, mask, grad = inputs([30, 20], dtype=torch.float64)
    q, k, v = tensors
    q[..., 0], k[..., 0] = shift, 8**0.5
    shifted = run(ours, (q, k, v), mask, grad, torch.float64)
    for found, exact in zip(shifted, run(by_torch, (q, k, v), mask, grad, torch.float64), strict=True):
        assert torch.allclose(found, exact, rtol=1e-7, atol=1e-7)


def test_padding_changes_nothing_bit_for_bit():
    tensors, mask, grad = inputs([12, 30, 5])
    changed = [t.clone() for t in tensors]
    for t in changed[1:]:
        t.masked_fill_(~mask.mT, 3.0)
    out, *_ = run(ours, tensors, mask, grad, torch.bfloat16)
    again, *_ = run(ours, changed, mask, grad, torch.bfloat16)
    assert torch.equal(out, again)


def test_what_a_text_gives_does_not_depend_on_its_company():
    (q, k, v), mask, _ = inputs([20] * 4)
    alone = [ours(q[i : i + 1], k[i : i + 1], v[i : i + 1], mask[i : i + 1]) for i in range(3)]
    q[3], k[3] = q[3] * 40, k[3] * 40  # out of range, in the same block
    assert torch.equal(ours(q, k, v, mask)[:3], torch.cat(alone))


def test_only_the_gradients_asked_for_are_made():
    (q, k, v), mask, grad = inputs([12, 30])
    wanted = run(ours, (q, k, v), mask, grad, torch.bfloat16)
    q, v = q.detach().requires_grad_(), v.detach().requires_grad_()
    out = ours(q, k, v, mask)
    assert all(
        torch.equal(a, b)
        for a, b in zip(torch.autograd.grad(out, (q, v), grad), (wanted[1], wanted[3]), strict=True)
    )


class Largest(TorchDispatchMode):
    """The most bytes of any one tensor made inside."""

    n_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.n_bytes = max(self.n_bytes, out.numel() * out.element_size())
        return out


def test_no_more_scores_than_a_block_are_ever_held():
    tensors, mask, grad = inputs([512] * 8, heads=4)
    with Largest() as largest:
        run(ours, tensors, mask, grad, torch.bfloat16)
    assert largest.n_bytes <= BLOCK_BYTES


@pytest.mark.parametrize(
    ("changes", "runs"),
    [
        ({}, True),
        ({"mask": None}, True),
        ({"dropout": 0.1}, False),
        ({"dtype": torch.float32}, False),
        ({"mask": torch.ones(2, 1, 30, 30, dtype=torch.bool)}, False),
        ({"mask": torch.zeros(2, 1, 1, 30)}, False),
        ({"first": 1}, False),
    ],
)
def test_what_it_takes(changes, runs):
    dtype = changes.get("dtype", torch.bfloat16)
    (q, k, _), mask, _ = inputs([12, 30], dtype=dtype)
    q = q[:, :, : changes.get("first", 30)]
    assert can_run(q, k, changes.get("mask", mask), changes.get("dropout", 0.0)) is runs
