"""Look at this machine, once; nothing is changed, downloaded or kept."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from snugtune.container import CGROUPS, cpu_quota, memory_limit
from snugtune.doctor.facts import (
    Card,
    Driver,
    Facts,
    Hub,
    Memory,
    Package,
    Place,
    Processor,
    Torch,
)

TOLD_CHARACTERS = 200
"""Of another library's error."""

OPEN_VARIABLES = {"SNUGTUNE_CACHE", "SNUGTUNE_FEATURE_CACHE_GIB", "SNUGTUNE_NOTEBOOK"}
"""Those of our environment variables whose value may be shown; others are, or may be, secrets."""


def probe() -> Facts:
    """The facts of this machine and this process; imports PyTorch and asks the card for a small product."""
    driver, cards = probe_cards()  # first: what PyTorch itself takes on the card is not counted
    torch, torch_error = _attempt(probe_torch)
    own, packages, extras = probe_packages()
    return Facts(
        python=platform.python_version(),
        system=platform.platform(terse=True),
        snugtune=own,
        driver=driver,
        cards=cards,
        torch=torch,
        torch_error=torch_error,
        processor=probe_processor(),
        memory=probe_memory(),
        places=probe_places(),
        hub=probe_hub(),
        packages=packages,
        extras=extras,
        environment=probe_environment(os.environ),
        bitsandbytes_error=probe_bitsandbytes(),
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"),
    )


def probe_cards() -> tuple[Driver | None, tuple[Card, ...]]:
    """The driver and its cards, from NVML, which needs no CUDA and leaves no mark on a card."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None, ()
    try:
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        driver = Driver(str(pynvml.nvmlSystemGetDriverVersion()), (cuda // 1000, cuda % 1000 // 10))
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return driver, tuple(_card(pynvml, handle) for handle in handles)
    except pynvml.NVMLError:
        return None, ()
    finally:
        pynvml.nvmlShutdown()


def _card(nvml: Any, handle: Any) -> Card:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    capability: tuple[int, int] | None = None
    processes: list[Any] = []
    with suppress(nvml.NVMLError):
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        capability = (int(major), int(minor))
    with suppress(nvml.NVMLError):
        found = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        processes = [process for process in found if process.pid != os.getpid()]
    held = [process.usedGpuMemory for process in processes]
    return Card(
        str(nvml.nvmlDeviceGetName(handle)),
        capability,
        int(memory.total),
        int(memory.free),
        tuple(_process_name(process.pid) for process in processes),
        None if not held or None in held else sum(held),
    )


def _process_name(pid: int) -> str:
    import psutil

    try:
        return f"{psutil.Process(pid).name()} ({pid})"
    except psutil.Error:  # another container's
        return f"process {pid}"


def probe_torch() -> Torch:
    """The installed PyTorch, and whether a small product works on the card it would use."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of cards it has no kernels for, and of old drivers: we say it better
        sees, trial_error = _try_card(torch)
        from snugtune.model.varlen import kernel

        packs = kernel() is not None
    # get_arch_list is empty where no card is found; the flags below it are there in any build for CUDA.
    flags: Callable[[], str | None] = getattr(torch._C, "_cuda_getArchFlags", lambda: None)
    return Torch(
        version=str(torch.__version__),
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        architectures=tuple((flags() or "").split()),
        sees=sees,
        trial_error=trial_error,
        packs=packs,
        threads=torch.get_num_threads(),
    )


def _try_card(torch: Any) -> tuple[tuple[int, int] | None, str]:
    if not torch.cuda.is_available():
        return None, ""
    sees: tuple[int, int] | None = None
    try:
        sees = torch.cuda.get_device_capability(0)
        ones = torch.ones(16, 16, device="cuda")
        if float((ones @ ones).sum()) != 16**3:
            return sees, "it gave a wrong result"
    except (RuntimeError, AssertionError) as error:
        return sees, _short(error)
    return sees, ""


def probe_processor(root: Path = CGROUPS) -> Processor:
    """The CPU, and what of it this process may use."""
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    bfloat16, _ = _attempt(_has_bfloat16)
    return Processor(_processor_name(), cores, usable, cpu_quota(root), bool(bfloat16))


def _has_bfloat16() -> bool:
    from snugtune.memory.devices import cpu_has_bfloat16

    return cpu_has_bfloat16()


def _processor_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def probe_memory(root: Path = CGROUPS) -> Memory:
    """Main memory, and the limit of the container."""
    import psutil

    found = psutil.virtual_memory()
    limit, left = memory_limit(root)
    return Memory(found.total, found.available, limit, left)


def probe_places() -> tuple[Place, ...]:
    """Where runs, caches and temporary files go."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from snugtune.model.pooling import cache_folder

    places = {
        "runs": Path.cwd(),
        "models": Path(HF_HUB_CACHE),
        "our cache": cache_folder(),
        "temporary files": Path(tempfile.gettempdir()),
    }
    return tuple(_place(what, path) for what, path in places.items())


def _place(what: str, path: Path) -> Place:
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        return Place(what, str(path), shutil.disk_usage(there).free, os.access(there, os.W_OK))
    except OSError:
        return Place(what, str(path), 0, False)


def probe_hub() -> Hub:
    """The Hugging Face client's cache and modes; the token itself is not looked at."""
    from huggingface_hub import constants, get_token

    offline = (
        constants.is_offline_mode() if hasattr(constants, "is_offline_mode") else constants.HF_HUB_OFFLINE
    )
    return Hub(str(constants.HF_HUB_CACHE), get_token() is not None, bool(offline))


def probe_packages() -> tuple[str | None, tuple[Package, ...], dict[str, tuple[Package, ...]]]:
    """Our own version, our requirements as they are met here, and those of each extra, from the metadata."""
    from packaging.requirements import Requirement

    try:
        own, requires = metadata.version("snugtune"), metadata.requires("snugtune") or []
        names = metadata.metadata("snugtune").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return None, (), {}
    needs = [Requirement(text) for text in requires]
    always = [need for need in needs if _holds(need, "")]
    extras = {
        name: tuple(_package(need) for need in needs if need not in always and _holds(need, name))
        for name in names
    }
    return own, tuple(map(_package, always)), extras


def _holds(need: Any, extra: str) -> bool:
    return need.marker is None or bool(need.marker.evaluate({"extra": extra}))


def _package(need: Any) -> Package:
    try:
        version = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return Package(need.name, str(need.specifier), None, False)
    return Package(
        need.name, str(need.specifier), version, need.specifier.contains(version, prereleases=True)
    )


def probe_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Our variables; what may be a secret is only said to be set."""
    return {
        name: value if name in OPEN_VARIABLES else "(set, not shown)"
        for name, value in sorted(environment.items())
        if name.startswith("SNUGTUNE_")
    }


def probe_bitsandbytes() -> str | None:
    """Why bitsandbytes cannot be loaded; empty if it can, None if it is not installed."""
    if find_spec("bitsandbytes") is None:
        return None
    from snugtune.errors import UserInputError
    from snugtune.model.quantization import require_bitsandbytes

    try:
        require_bitsandbytes()
    except UserInputError as error:
        return _short(error.__cause__ or error)
    return ""


def _attempt(look: Callable[[], Any]) -> tuple[Any, str]:
    """What ``look`` finds, or None and why it failed: a broken PyTorch must not end the examination."""
    try:
        return look(), ""
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return None, _short(error)


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= TOLD_CHARACTERS else text[: TOLD_CHARACTERS - 3] + "..."
