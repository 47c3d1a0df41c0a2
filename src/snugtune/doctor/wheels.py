"""Which build of PyTorch has kernels for which card, and which driver runs it."""

from __future__ import annotations

import re
from collections.abc import Iterable

Version = tuple[int, int]

TARGETS: dict[str, tuple[Version, ...]] = {
    "cu126": ((5, 0), (6, 0), (7, 0), (7, 5), (8, 0), (8, 6), (9, 0)),
    "cu128": ((7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)),
    "cu130": ((7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)),
}
"""What the published wheels of PyTorch 2.11 were compiled for, on Linux x86 and Windows.

Source: https://github.com/pytorch/pytorch/blob/main/RELEASE.md#pytorch-cuda-support-matrix, as changed by
https://github.com/pytorch/pytorch/pull/175253. Up to 2.10 cu128 had 7.0, too. Of an installed PyTorch its own
list counts (``torch.cuda.get_arch_list``); this table is for advice on another one.
"""

LEAST_DRIVER = {11: "450", 12: "525", 13: "580"}
"""The oldest driver that runs programs built with a CUDA of this major version, whatever the minor one.

Source: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html, table 1.
"""

INDEX = "https://download.pytorch.org/whl/"


def has_kernels(architectures: Iterable[str], capability: Version) -> bool:
    """Whether code compiled for ``architectures`` runs on a card of ``capability``.

    Machine code (``sm_XY``) runs on its own major version from its minor version on; intermediate code
    (``compute_XY``) is compiled by the driver for any later card. A suffix ``a`` binds to the very version,
    ``f`` to its family, of which we take what the plain rule takes.
    Source: https://docs.nvidia.com/cuda/ampere-compatibility-guide/, "Application Compatibility".
    """
    return any(_runs(architecture, capability) for architecture in architectures)


def build_for(capability: Version, driver_cuda: Version | None) -> str | None:
    """The published build to install for a card: its name, as ``cu126``; None if no build has kernels for it.

    The newest that the driver runs; of those of CUDA 12, which all run on the same drivers, the oldest that
    has kernels for the card. A driver that runs none of them has to be a newer one: then what that one runs.
    """
    able = [name for name in TARGETS if has_kernels(_names(TARGETS[name]), capability)]
    running = [name for name in able if driver_cuda is None or _major(name) <= driver_cuda[0]]
    newest = max(map(_major, running or able), default=0)
    return next((name for name in running or able if _major(name) == newest), None)


def install(build: str) -> str:
    """The command that puts this build in place of the PyTorch that is there.

    pip takes 2.9.0+cpu for the 2.9.0 it is asked for, so the old one has to go first.
    """
    return f"pip uninstall -y torch && pip install torch --index-url {INDEX}{build}"


def parse(version: str) -> Version:
    """Major and minor version of text such as ``12.6``."""
    major, _, rest = version.partition(".")
    return int(major), int(rest.partition(".")[0] or 0)


def told(version: Version) -> str:
    """As it is written: ``12.6``."""
    return f"{version[0]}.{version[1]}"


def _names(versions: Iterable[Version]) -> list[str]:
    return [f"sm_{major}{minor}" for major, minor in versions]


def _major(build: str) -> int:
    return int(build.removeprefix("cu")[:2])


def _runs(architecture: str, capability: Version) -> bool:
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if match is None:
        return False
    kind, major, minor, suffix = match[1], int(match[2]), int(match[3]), match[4]
    if suffix == "a":
        return (major, minor) == capability
    if kind == "compute":
        return capability >= (major, minor)
    return major == capability[0] and minor <= capability[1]
