"""Copies that an update can be taken back from, of whole tensors and of divided ones."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor

from snugtune.train.optim import allocate_state
from snugtune.train.transaction import UpdateSnapshot


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def undone(parameters):
    """Whether an update of these, which have gradients, can be taken back; and what it changes."""
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    allocate_state(optimizer)

    def all_of_it():
        state = [v for entry in optimizer.state.values() for v in entry.values()]
        tensors = [*parameters, *(p.grad for p in parameters), *state]
        return [(t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone() for t in tensors]

    before, snapshot = all_of_it(), UpdateSnapshot(parameters, optimizer, None)
    optimizer.step()
    changed = all_of_it()
    assert not all(torch.equal(a, b) for a, b in zip(before, changed, strict=True))
    snapshot.restore()
    return all(torch.equal(a, b) for a, b in zip(before, all_of_it(), strict=True))


def test_whole_tensors_of_several_formats():
    parameters = [nn.Parameter(torch.randn(3, dtype=dtype)) for dtype in (torch.float32, torch.float64)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    assert undone(parameters)


def test_divided_tensors_beside_whole_ones(mesh):
    divided = nn.Parameter(distribute_tensor(torch.randn(4, 2), mesh, [Replicate()]))
    parameters = [divided, nn.Parameter(torch.randn(3))]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    assert undone([divided])
    assert undone(parameters[1:])
