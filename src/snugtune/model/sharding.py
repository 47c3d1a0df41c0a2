"""Weights divided among several devices (FSDP2): each holds a share, and a layer is whole only while it runs.

For models that do not fit one card. Every repeated layer is a unit, and what is left (embeddings, head) is
one more, so that at any time the weights of a unit or two are whole. Frozen weights are divided like trained
ones: they are nearly all there is. Gradients are added up, not averaged, as they are without sharding.

Transformers' Trainer and Accelerate pass over FSDP2 in silence where there is no accelerator; so after
dividing, every parameter is looked at.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from snugtune.errors import TrainingError
from snugtune.model.checkpointing import encoder_layers


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Divide every parameter of ``model`` over ``mesh``; returns the model, which is on the mesh's devices.

    No precision is set here: frozen weights keep theirs, and autocast computes as it does without sharding.

    Raises:
        TrainingError: a parameter is still whole.
    """
    for layer in encoder_layers(model):
        fully_shard(layer, mesh=mesh)
    # Left to itself, the outermost unit stays whole after a pass, and what is written into it then is lost.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            # By default a mean is taken; sums are what every back end has.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
    check_sharded(model)
    return model


def check_sharded(model: nn.Module) -> None:
    """That no parameter of ``model`` is whole on this device.

    Raises:
        TrainingError: names the first that is.
    """
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, DTensor):
            raise TrainingError(
                f"The weights were to be divided among the devices, but {name} is whole on each of them; "
                "train with --sharding none."
            )


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's weights are divided among devices."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """``tensor`` in full; of one that is divided all processes must ask at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def write(target: Tensor, values: Tensor) -> None:
    """Copy ``values``, which every process has in full, into ``target``, which may be divided."""
    target.copy_(divided_like(target, values))


def divided_like(target: Tensor, values: Tensor) -> Tensor:
    """``values``, in full, divided as ``target`` is and on its device; nothing is exchanged."""
    if not isinstance(target, DTensor) or isinstance(values, DTensor):
        return values
    local = values.to(device=target.device_mesh.device_type, dtype=target.dtype)
    return distribute_tensor(local, target.device_mesh, target.placements, src_data_rank=None)


def whole_state(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's ``state_dict`` with full tensors; all processes must ask at the same time."""
    entries = {
        number: {name: whole(value) if isinstance(value, Tensor) else value for name, value in entry.items()}
        for number, entry in state["state"].items()
    }
    return {**state, "state": entries}


def divide_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's ``state_dict`` with full tensors as one whose moments are divided as the parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    divided = {
        number: {
            name: divided_like(parameters[number], value)
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in entry.items()
        }
        for number, entry in state["state"].items()
    }
    return {**state, "state": divided}
