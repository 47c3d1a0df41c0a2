"""What errors of PyTorch, CUDA and the system mean: memory ran out, or the device is lost. Needs no torch."""

from __future__ import annotations

import errno

OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "Unable to allocate",
    "NVML_SUCCESS == r",
)
"""What errors say that are not ``torch.OutOfMemoryError`` and still mean it: the driver's own, cuBLAS and
cuDNN making a handle or workspace, PyTorch's and NumPy's allocators on the host, and an assertion that CUDA's
caching allocator trips over while it puts its own message together."""

OF_A_KERNEL = (
    "illegal memory access",
    "illegal instruction",
    "invalid program counter",
    "operation not supported on global/shared address space",
    "hardware stack error",
    "launch timed out",
    "unspecified launch failure",
    "device-side assert",
    "misaligned address",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
)
"""What a kernel does wrong: the same kernel with the same numbers does it again."""

OF_THE_CARD = (
    "uncorrectable ECC error",
    "context is destroyed",
    "device is lost",
    "fallen off the bus",
    "busy or unavailable",
    "CUDA error: unknown error",
)

POISONED = (*OF_A_KERNEL, *OF_THE_CARD)
"""Errors after which every later CUDA call of the process fails, too, or a new process is the better way
(CUDA Runtime API, ``cudaError_t``; cuBLAS, ``cublasStatus_t``; cuDNN, ``cudnnStatus_t``)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, in any of the forms it comes in."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"MemoryError", "OutOfMemoryError"}:
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(form in str(error) for form in OUT_OF_MEMORY)


def is_of_a_kernel(message: str) -> bool:
    """Whether an error that says so is a kernel's, which may repeat itself, and not the card's own."""
    return any(form in message for form in OF_A_KERNEL)


def is_poisoned(error: BaseException) -> bool:
    """Whether an error leaves the CUDA context of this process unusable."""
    return isinstance(error, RuntimeError) and any(form in str(error) for form in POISONED)
