"""What is free on the card that a fit would train on, told without CUDA: NVML leaves no mark on a card."""

from __future__ import annotations

import os
from typing import Any


def free_card_bytes() -> int | None:
    """Of the first card that ``CUDA_VISIBLE_DEVICES`` shows; None where no driver tells it.

    NVML counts cards by their place on the bus, as CUDA does with ``CUDA_DEVICE_ORDER=PCI_BUS_ID``. Where
    unlike cards are counted otherwise this may be another card's.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(_first(pynvml)).free)
    except (pynvml.NVMLError, ValueError):
        return None
    finally:
        pynvml.nvmlShutdown()


def _first(nvml: Any) -> Any:
    name = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if name.startswith(("GPU-", "MIG-")):
        return nvml.nvmlDeviceGetHandleByUUID(name)
    return nvml.nvmlDeviceGetHandleByIndex(int(name))
