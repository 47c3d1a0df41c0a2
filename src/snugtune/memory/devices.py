"""The devices a plan is made for: known cards (``devices.json``), a budget in GiB, or this machine's own."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from snugtune.container import available_memory_bytes
from snugtune.errors import UserInputError
from snugtune.memory.segments import grows_segments
from snugtune.memory.workspaces import CUBLAS_SETTING, cublas_bytes
from snugtune.units import GIB, gib

CPU_FLOAT32_GFLOPS_PER_CORE = 40
CPU_BFLOAT16_GAIN = 2.3
CPU_BANDWIDTH_GB_S = 20
"""Rough rates of a server core, for estimates only."""

CARD_FULL_PRECISION_GAIN = 0.5
"""A card comes nearer to its peak rate in float32 than on tensor cores, whose peak is far higher."""

PROBE, PROBES = (1024, 384, 1536), 12
"""Rows, inputs and outputs of the product that is timed, and how often: some 40 ms."""


@dataclass(frozen=True)
class Device:
    """One GPU or a machine's CPU.

    ``usable_gib`` is what the driver reports as total (for this machine: what is free now); ``context_gib``
    is taken by the driver before the first tensor. Rates are peaks: dense tensor-core TFLOP/s and GB/s.
    ``card`` is the table's name of it (for a machine's own card: of the one like it), ``title`` the maker's.
    ``driver`` is known of this machine alone, and so is ``gain``: how many times as fast as its rates say.
    Of a card that is not in the table, ``knows_rates`` is False: its rates are another's, to choose by and
    not to tell a time. ``asked`` is the name that the user gave; ``is_capped``: the memory is the user's.
    """

    name: str
    kind: str
    usable_gib: float
    context_gib: float
    compute_capability: tuple[int, int]
    half_tflops: float
    has_bfloat16: bool
    float32_tflops: float
    bandwidth_gb_s: float
    source: str = ""
    title: str = ""
    card: str = ""
    driver: str = ""
    gain: float = 1.0
    knows_rates: bool = True
    asked: str = field(default="", compare=False)
    is_capped: bool = False

    @property
    def is_here(self) -> bool:
        """Whether it is this machine's own, whose memory was measured."""
        return bool(self.driver)

    @property
    def full_precision_slowdown(self) -> float:
        """How much longer a forward pass takes in float32 than in half precision; at least 1."""
        gain = CARD_FULL_PRECISION_GAIN if self.kind == "cuda" else 1.0
        return max(1.0, self.half_tflops / self.float32_tflops * gain)

    @property
    def half(self) -> str:
        """The half-precision format to use: bfloat16 from compute capability 8.0 on."""
        return "bfloat16" if self.has_bfloat16 else "float16"

    @property
    def library_bytes(self) -> int:
        """One workspace of cuBLAS; on this machine's own card as it is set here."""
        setting = os.environ.get(CUBLAS_SETTING, "") if self.is_here else ""
        return cublas_bytes(self.compute_capability, setting)

    @property
    def grows_segments(self) -> bool:
        """Whether the caching allocator's segments grow; on this machine's own card as it is set here."""
        return grows_segments() if self.is_here else True

    @property
    def context_bytes(self) -> int:
        """What the driver takes outside PyTorch's allocator."""
        return int(self.context_gib * GIB)


def known_devices() -> dict[str, Device]:
    """Every known card by name, aliases included."""
    return {name: device for device, names in _known() for name in names}


def find_device(name: str) -> Device:
    """The card called ``name``.

    Raises:
        UserInputError: no card of that name is known; similar names are given.
    """
    devices, (key, *spelt) = known_devices(), _spellings(name)
    for spelling in (key, *spelt):
        if spelling in devices:
            return devices[spelling]
    close = get_close_matches(key, devices, 3, cutoff=0.4) or sorted(devices)
    raise UserInputError(
        f"The GPU {name!r} is not known; use one of {', '.join(close)}, or give its memory with --memory."
    )


def _spellings(name: str) -> tuple[str, str]:
    """``Tesla T4`` as the table may call it: ``teslat4``, ``tesla-t4``."""
    plain = name.strip().lower().replace("_", "-")
    return plain.replace(" ", ""), "-".join(plain.split())


def unknown_card(name: str, memory_gib: float) -> Device:
    """A card that is not in the table: float16, fused attention, the largest driver context of those known,
    and no rates of its own.
    """
    known = known_devices()
    context_gib = max(card.context_gib for card in known.values())
    return replace(
        known["t4"], name=name, usable_gib=memory_gib, context_gib=context_gib, compute_capability=(0, 0),
        source="", title=name, card="", knows_rates=False,
    )  # fmt: skip


def with_memory(device: Device, memory_gib: float) -> Device:
    """The same device with only so much memory."""
    return replace(device, usable_gib=memory_gib)


def parse_memory(text: str) -> float:
    """GiB from text such as ``15GiB``, ``15 GB`` (10**9 bytes), ``15G`` or ``15`` (GiB), ``1TiB``.

    Raises:
        UserInputError: it is no positive amount of memory.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(tib|tb|t|gib|gb|g|mib|mb|m|)\s*", text.lower())
    if match is None or float(match.group(1)) <= 0:
        raise UserInputError(f"--memory must be an amount such as 15GiB, not {text!r}.")
    units = {"tb": 1e12, "tib": 2**40, "t": 2**40, "gb": 1e9, "mb": 1e6, "mib": 2**20, "m": 2**20}
    factor = units.get(match.group(2), GIB)
    return gib(float(match.group(1)) * factor)


def devices_named(names: str | None, memory: str | None) -> list[Device]:
    """The cards of a list by commas, or this machine, each with no more than so much ``memory``.

    Raises:
        UserInputError: no card is named, one is not known and no memory given, or ``memory`` is no amount, or
            more than a card has.
    """
    budget = None if memory is None else parse_memory(memory)
    if names is None:
        here = with_measured_gain(this_device())
        return [here if budget is None else replace(here, usable_gib=budget, is_capped=True)]
    asked = {name.strip().lower(): name.strip() for name in names.split(",") if name.strip()}
    if not asked:
        raise UserInputError(f"--gpu must name a GPU, as in --gpu t4,l4, not {names!r}.")
    return [_card_asked(name, budget) for name in asked.values()]


def _card_asked(name: str, budget_gib: float | None) -> Device:
    """The card that the user calls ``name``, with no more memory than the budget, if there is one."""
    if budget_gib is not None and not any(key in known_devices() for key in _spellings(name)):
        return replace(unknown_card(name, budget_gib), asked=name, is_capped=True)
    card = replace(find_device(name), asked=name)
    if budget_gib is None:
        return card
    if budget_gib > card.usable_gib:
        raise UserInputError(
            f"--memory {budget_gib:.2f} GiB is more than the {card.usable_gib:.2f} GiB of the {card.name}; "
            "give less, or leave it out."
        )
    return replace(card, usable_gib=budget_gib, is_capped=True)


def this_device() -> Device:
    """The accelerator of this machine, or its CPU, with the memory that is free now."""
    import torch

    return _this_gpu() if torch.cuda.is_available() else _this_cpu()


def _this_gpu() -> Device:
    import torch

    free, total = torch.cuda.mem_get_info()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    capability = (properties.major, properties.minor)
    like = card_like(properties.name, gib(total))
    rates = like or find_device("t4")
    # The context exists already and the free memory is without it.
    return Device(
        properties.name, "cuda", gib(free), 0.0, capability, rates.half_tflops, capability >= (8, 0),
        rates.float32_tflops, rates.bandwidth_gb_s, "torch.cuda.mem_get_info", properties.name,
        like.card if like else "", _cuda_driver(), knows_rates=like is not None,
    )  # fmt: skip


def _cuda_driver() -> str:
    """The version of the CUDA driver (``cuDriverGetVersion``: 12040 is 12.4), which PyTorch does not tell."""
    import ctypes
    import sys

    found = ctypes.c_int(0)
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        library.cuDriverGetVersion(ctypes.byref(found))
    except OSError:
        return "CUDA driver of unknown version"
    return f"CUDA driver {found.value}"


def card_like(name: str, total_gib: float) -> Device | None:
    """The known card that the driver calls ``name`` (as "NVIDIA A100-SXM4-40GB"), by its memory where
    there are several of the kind; None for an unknown one.
    """
    words = re.sub(r"rtx\s*", "rtx", name.lower())
    alike = [d for d, _ in _known() if re.search(rf"\b{_family(d)}\b", words)]
    return min(alike, key=lambda d: abs(d.usable_gib - total_gib), default=None)


def _family(device: Device) -> str:
    return device.name.partition("-")[0]


def _this_cpu() -> Device:
    import platform

    float32 = CPU_FLOAT32_GFLOPS_PER_CORE * (os.cpu_count() or 1) / 1000
    has_bfloat16 = cpu_has_bfloat16()
    return Device(
        "cpu", "cpu", gib(available_memory_bytes()), 0.0, (0, 0),
        float32 * (CPU_BFLOAT16_GAIN if has_bfloat16 else 1), has_bfloat16, float32, CPU_BANDWIDTH_GB_S,
        "free memory, within a container's limit", "CPU", f"cpu with {os.cpu_count()} cores",
        platform.machine() or "cpu",
    )  # fmt: skip


def with_measured_gain(device: Device) -> Device:
    """The processor of this machine as fast as it multiplies matrices now; a card as it is.

    For plans that tell times. What a fit chooses must not hang on a clock, so it does not ask.
    """
    if device.kind != "cpu":
        return device
    import torch

    dtype = torch.bfloat16 if device.has_bfloat16 else torch.float32
    rows, inputs, outputs = PROBE
    x, weight = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    fastest_s = min(_seconds(lambda: torch.nn.functional.linear(x, weight)) for _ in range(PROBES))
    return replace(device, gain=2 * rows * inputs * outputs / fastest_s / 1e12 / device.half_tflops)


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies matrices in bfloat16 (AVX512_BF16 or AMX)."""
    import torch

    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


@cache
def _known() -> list[tuple[Device, tuple[str, ...]]]:
    table: dict[str, Any] = json.loads(
        (files("snugtune.memory") / "devices.json").read_text(encoding="utf-8")
    )
    return [(_device(key, row), (key, *row["aliases"])) for key, row in table["devices"].items()]


def _device(key: str, row: dict[str, Any]) -> Device:
    major, minor = row["compute_capability"]
    return Device(
        name=key,
        kind="cuda",
        usable_gib=row["usable_gib"],
        context_gib=row["context_gib"],
        compute_capability=(major, minor),
        half_tflops=row["half_tflops"],
        has_bfloat16=row["has_bfloat16"],
        float32_tflops=row["float32_tflops"],
        bandwidth_gb_s=row["bandwidth_gb_s"],
        source=row["source"],
        title=row["name"],
        card=key,
    )
