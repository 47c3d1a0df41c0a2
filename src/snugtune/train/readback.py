"""Numbers read back from the device late, so that the host never waits for what it has just asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from snugtune.faults import is_poisoned


class Readback:
    """Values on their way to the host: the copy is asked for at once and waited for in ``read``.

    On a GPU the copy goes to pinned memory behind the work queued before it; whoever reads one step later
    finds it done while the next step runs. Elsewhere there is nothing to wait for.

    Args:
        values: (N,) numbers on any device.
    """

    def __init__(self, values: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._host = values
        if values.device.type == "cuda":
            self._host = _pinned(torch.empty(values.shape, dtype=values.dtype))
            self._host.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> list[float]:
        """The values as numbers."""
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers: list[float] = self._host.tolist()
        return numbers


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """``host`` on ``device``; on a GPU through pinned memory, without waiting for the copy."""
    if device.type != "cuda":
        return host.to(device)
    return _pinned(host).to(device, non_blocking=True)


def _pinned(host: Tensor) -> Tensor:
    """``host`` in pinned memory, or as it is where the system grants no more of that: a copy then waits."""
    try:
        return host.pin_memory()
    except RuntimeError as error:
        if is_poisoned(error):
            raise
        return host
