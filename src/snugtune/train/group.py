"""The processes that train one model together: what they add up, agree on, and take from the first of them.

A step is defined by its examples, whoever computes them: each process takes a share of the step's rows, and
their gradients are added up once, before the update, which all of them make alike. So nothing here averages.
Numbers are exchanged as tensors and JSON; nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from snugtune.errors import TrainingError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

BUCKET_BYTES = 64 * 2**20
"""Of gradients that are added up at once: an adapter's go together, a whole model's need no second copy."""


@dataclass(frozen=True)
class Group:
    """``size`` processes, of which this is number ``rank``; by default one that trains alone.

    ``local_rank`` and ``local_size`` count those of this machine. With ``sharded`` each process holds a share
    of the weights only, and the model is computed by all of them at the same time, layer by layer. Whoever
    made the group has opened ``torch.distributed``'s default process group, which takes host tensors.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    sharded: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this process writes, reports and talks for all."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set in any of the processes."""
        if self.is_alone:
            return flags
        found = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in found.tolist())

    def most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.is_alone:
            return number
        found = torch.tensor(number, dtype=torch.int64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def least(self, number: int) -> int:
        """The smallest of all processes' numbers."""
        return -self.most(-number)

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place; returns ``tensor``. All get the same bits."""
        if not self.is_alone:
            dist.all_reduce(tensor)
        return tensor

    def known_everywhere(self, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of (N,) entries are set in every process."""
        if self.is_alone:
            return known
        found = torch.from_numpy(known.astype(np.uint8))
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return found.numpy().astype(np.bool_)

    def from_first(self, value: Any = None, source: int = 0) -> Any:
        """What the first process (or number ``source``) gives, JSON-ready; others' are not looked at."""
        if self.is_alone:
            return value
        text = bytearray(json.dumps(value).encode("utf-8") if self.rank == source else b"")
        size = torch.tensor(len(text), dtype=torch.int64)
        dist.broadcast(size, source)
        content = torch.empty(int(size), dtype=torch.uint8)
        if self.rank == source:
            content = torch.frombuffer(text, dtype=torch.uint8)
        dist.broadcast(content, source)
        return json.loads(content.numpy().tobytes())

    def tensors_from_first(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Host tensors by name as the first process has them; the others' are not looked at."""
        if self.is_alone:
            return tensors
        shapes = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()}
        found = {}
        for name, (dtype, shape) in self.from_first(shapes).items():
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            if self.is_first:
                tensor = tensors[name].detach().cpu().contiguous()
            # Reshaped, as some back ends take no scalars; a view, so what arrives is in the tensor.
            dist.broadcast(tensor.view(-1) if tensor.dim() else tensor.view(1), 0)
            found[name] = tensor
        return found

    def mesh(self, device: torch.device) -> DeviceMesh:
        """All processes' devices in a row, to shard over."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(device.type, (self.size,))


ALONE = Group()
"""One process, which has nobody to ask."""


class GradientSum:
    """Adds the gradients of ``parameters`` up over all processes: one exchange a step, in a few buckets.

    A process that had no row of a step takes part with zeros. A parameter that no process has a gradient of
    keeps none: the optimiser leaves it alone, as it would in one process.
    """

    def __init__(self, group: Group, parameters: Sequence[nn.Parameter]) -> None:
        self._group, self._parameters = group, list(parameters)
        self._buckets = _buckets(self._parameters)
        largest = max((sum(p.numel() for p in bucket) for bucket in self._buckets), default=0)
        device = self._parameters[0].device if self._parameters else torch.device("cpu")
        # Made once, so that no step fails for want of it.
        self._buffer = torch.empty(largest, dtype=torch.float32, device=device)

    def complete(self) -> None:
        """Zeros where other processes have a gradient and this one has none; the first part of a sum."""
        mine = torch.tensor([p.grad is not None for p in self._parameters], dtype=torch.int32)
        dist.all_reduce(mine, dist.ReduceOp.MAX)
        self._wanted = mine.bool().tolist()

    def fill(self) -> None:
        """Make the zeros that ``complete`` found missing; may be done again after a failure."""
        for parameter, wanted in zip(self._parameters, self._wanted, strict=True):
            if wanted and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def add_up(self) -> None:
        """Every gradient becomes its sum over all processes; allocates nothing."""
        for bucket in self._buckets:
            gradients = [p.grad for p in bucket if p.grad is not None]
            if not gradients:
                continue
            flat = self._buffer[: sum(g.numel() for g in gradients)]
            pieces = torch.split(flat, [g.numel() for g in gradients])
            parts = [piece.view_as(gradient) for piece, gradient in zip(pieces, gradients, strict=True)]
            torch._foreach_copy_(parts, gradients)
            dist.all_reduce(flat)
            torch._foreach_copy_(gradients, parts)


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if not buckets or parameter.nbytes > room:
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(parameter)
        room -= parameter.nbytes
    return buckets


def check_same(group: Group, identity: dict[str, Any], differences: Any) -> None:
    """That all processes train on the same: ``identity``, JSON-ready, by ``differences(then, now)``.

    Raises:
        TrainingError: in all processes, if one differs from the first; names which, and in what.
    """
    if group.is_alone:
        return
    told = differences(group.from_first(identity), identity)
    other = group.least(group.rank if told else group.size)
    if other < group.size:
        raise TrainingError(
            f"Process {other} does not train on the same as the first one "
            f"({'; '.join(group.from_first(told, other))}); give every machine the same table, model, "
            "settings and versions."
        )
