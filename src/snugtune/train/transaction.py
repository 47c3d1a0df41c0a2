"""What makes an optimiser step a transaction: copies to go back to when it breaks off half-way."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from snugtune.config import FitConfig


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that dropout draws from: ``cpu``, and ``cuda`` on such a device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Go back to what ``random_state`` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def all_random_states(device: torch.device) -> dict[str, Any]:
    """Those of ``random_state``, and of the generators that libraries may draw from beside it."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    of_numpy = (kind, np.asarray(keys).tolist(), *rest)
    return {**random_state(device), "numpy": of_numpy, "python": random.getstate()}


def set_all_random_states(state: dict[str, Any], device: torch.device) -> None:
    """Go back to what ``all_random_states`` returned."""
    set_random_state(state, device)
    if "numpy" in state:
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
    if "python" in state:
        random.setstate(state["python"])


@contextmanager
def random_state_on_error(device: torch.device) -> Iterator[None]:
    """If the inside breaks off, the generators stand where they stood before it."""
    before = random_state(device)
    try:
        yield
    except BaseException:
        set_random_state(before, device)
        raise


def is_copied_before_update(config: FitConfig) -> bool:
    """Whether an update can be undone here: a copy of a model that is trained in full would double it."""
    return config.method != "full"


class UpdateSnapshot:
    """Copies of all that an update changes: trained tensors, their gradients, AdamW's state, the loss scale.

    On the same device; for an adapter that is four times a few megabytes.
    """

    def __init__(self, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, scaler: Any) -> None:
        self._scaler = scaler
        # Its public state is numbers, read back from the device.
        scale = [] if scaler is None else [scaler._scale, scaler._growth_tracker]
        self._tensors = [*_changed_by_update(parameters, optimizer), *(t for t in scale if t is not None)]
        self._copies = _copies(self._tensors)

    def restore(self) -> None:
        """Write the copies back; nothing is allocated."""
        with torch.no_grad():
            _copy_all(self._tensors, self._copies)
        if self._scaler is not None:
            # The scaler notes that gradients are unscaled already, and has no public way to take it back.
            self._scaler._per_optimizer_states.clear()


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        copies = [torch.empty_like(tensor) for tensor in tensors]
        _copy_all(copies, tensors)
    return copies


def _copy_all(to: list[Tensor], of: list[Tensor]) -> None:
    """Copy each: those of one number format by few kernels, where a copy each would be hundreds.

    Tensors that are divided among devices, which that way is not made for, one by one.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
    for one, other in zip(to, of, strict=True):
        if isinstance(one, DTensor):
            one.copy_(other)
        else:
            alike.setdefault((one.device, one.dtype), []).append((one, other))
    for pairs in alike.values():
        torch._foreach_copy_([one for one, _ in pairs], [other for _, other in pairs])


def _changed_by_update(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    state = [value for entry in optimizer.state.values() for value in entry.values()]
    return [*parameters, *gradients, *(value for value in state if isinstance(value, Tensor))]
