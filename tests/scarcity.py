"""Memory that runs out on purpose, on any machine: by a cap on living tensors, or at a chosen operator."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from snugtune.memory.trace import Ledger

MESSAGES = (
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ..."),
    lambda: RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
    ),
    MemoryError,
)
"""The forms in which a lack of memory comes."""


class Cap(Ledger):
    """A device of ``capacity_bytes``: the ledger of living storages, and an error past the capacity.

    It is the ``Memory`` that a guard asks, too. What lived before it was entered does not count.
    """

    def __init__(self, capacity_bytes):
        super().__init__()
        self.capacity_bytes = capacity_bytes
        self.peak_bytes = self.failures = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        alive = self.allocated_bytes()
        if alive > self.capacity_bytes:
            self.failures += 1
            raise torch.OutOfMemoryError(f"CUDA out of memory. {alive} of {self.capacity_bytes} bytes.")
        self.peak_bytes = max(self.peak_bytes, alive)
        return out

    def allocated_bytes(self):
        return sum(self._n_bytes[index] for index, _ in self._alive.values())

    def free(self):
        pass


class FailAt(TorchDispatchMode):
    """Raises ``error()`` in place of the operator number ``at`` (counted from 0 while active)."""

    def __init__(self, at, error):
        super().__init__()
        self.at, self.error, self.seen, self.failed_in = at, error, 0, None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        if self.seen - 1 == self.at:
            self.failed_in = func._schema.name
            raise self.error()
        return func(*args, **(kwargs or {}))
