"""What a card does differently from a CPU above autograd, on shapes alone."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from snugtune.memory.card import CardSemantics
from snugtune.memory.trace import Ledger

SIZE = 64 * 64


def made(function, dtype):
    """Bytes of each storage that ``function`` makes of half-precision values under autocast."""
    with FakeTensorMode():
        values = torch.ones(64, 64, dtype=dtype)
        ledger = Ledger()
        ledger.mark([values], "inputs")
        with CardSemantics(), ledger, torch.autocast("cpu", dtype=torch.bfloat16):
            found = function(values)
    assert found.dtype == torch.float32
    return [storage.n_bytes for storage in ledger.close().storages[1:]]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.softmax(x, dim=-1),
        lambda x: functional.softmax(x, -1, 3, torch.float32),
        lambda x: torch.softmax(x, -1),
        lambda x: torch.softmax(x, -1, torch.float32),
        lambda x: torch.softmax(input=x, dim=-1),
        lambda x: x.softmax(-1),
        lambda x: functional.log_softmax(x, dim=-1),
        lambda x: x.log_softmax(dim=-1),
    ],
)
def test_softmax_writes_float32_in_one_kernel_of_float16_and_copies_bfloat16(function):
    assert made(function, torch.float16) == [4 * SIZE]
    assert made(function, torch.bfloat16) == [4 * SIZE, 4 * SIZE]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_made_in_float32_without_a_copy(dtype):
    assert made(lambda x: x.sum(0), dtype) == [4 * 64]
    assert made(lambda x: torch.cumsum(x, 0), dtype) == [4 * SIZE]


def test_what_is_given_by_name_or_without_a_dimension_goes_its_own_way():
    with CardSemantics(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.sum(input=torch.ones(3)) == 3
        with pytest.warns(UserWarning, match="Implicit dimension choice"):
            assert functional.softmax(torch.ones(2)).tolist() == [0.5, 0.5]
