"""Which number format the frozen weights are held and computed in, by device."""

from __future__ import annotations

import torch

from snugtune.config import FitConfig
from snugtune.errors import UserInputError


def pick_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(config: FitConfig, device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies in it, float16 on older GPUs, else float32.

    Raises:
        UserInputError: fp16 was asked for on a CPU, where it is many times slower.
    """
    if config.fp16:
        if device.type == "cpu":
            raise UserInputError(
                "fp16 needs a GPU (on a CPU it is several times slower); leave it out or set bf16."
            )
        return torch.float16
    if config.bf16 is not None:
        return torch.bfloat16 if config.bf16 else torch.float32
    if config.method == "full":
        return torch.float32
    if device.type == "cuda":
        # bf16 units begin with compute capability 8.0 (Ampere); T4 is 7.5, V100 is 7.0.
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return torch.bfloat16 if _cpu_multiplies_bf16() else torch.float32


def _cpu_multiplies_bf16() -> bool:
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
