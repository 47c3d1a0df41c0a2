"""What is known of a machine, as plain values: probed once, judged elsewhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Card:
    """A GPU as its driver describes it; ``None`` where the driver does not say.

    ``others`` are the names of other processes on it, ``others_bytes`` what they hold where that is told.
    """

    name: str
    compute_capability: tuple[int, int] | None
    total_bytes: int
    free_bytes: int
    others: tuple[str, ...] = ()
    others_bytes: int | None = None


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver: its version, and the newest CUDA it can run."""

    version: str
    cuda: tuple[int, int]


@dataclass(frozen=True)
class Torch:
    """The installed PyTorch.

    ``cuda`` is what it was built with (None: a build for CPUs alone), ``hip`` the same for AMD, and
    ``architectures`` what its CUDA kernels were compiled for, such as ``sm_80`` or ``compute_120``.
    ``sees`` is the compute capability of the card it would use, ``trial_error`` what a small product on that
    card ended with (empty: it worked, or there is no card). ``packs``: it has the variable-length kernel.
    """

    version: str
    cuda: str | None = None
    hip: str | None = None
    architectures: tuple[str, ...] = ()
    sees: tuple[int, int] | None = None
    trial_error: str = ""
    packs: bool = False
    threads: int = 1


@dataclass(frozen=True)
class Processor:
    """The CPU: all its cores, those this process may run on, and the quota of its container in cores."""

    name: str
    cores: int
    usable_cores: int
    quota: float | None = None
    has_bfloat16: bool = False


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes; ``limit`` is the container's, ``left_in_limit`` what is left of it."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None = None
    left_in_limit_bytes: int | None = None


@dataclass(frozen=True)
class Place:
    """Free room of the disk where something is written."""

    what: str
    path: str
    free_bytes: int
    writable: bool = True


@dataclass(frozen=True)
class Package:
    """A package of our requirements: ``required`` as in ``>=2.6``, ``version`` None where it is missing.

    ``fits`` says whether the version is one of those required.
    """

    name: str
    required: str
    version: str | None
    fits: bool

    @property
    def is_there(self) -> bool:
        """Installed, in a version that is good."""
        return self.version is not None and self.fits


@dataclass(frozen=True)
class Hub:
    """The Hugging Face client: its cache, whether a token is set (never which), and whether it is offline."""

    cache: str
    has_token: bool
    offline: bool


@dataclass(frozen=True)
class Facts:
    """Everything ``examine`` judges by.

    ``torch`` is None where it cannot be imported, and ``torch_error`` says why; likewise bitsandbytes, of
    which ``bitsandbytes_error`` is None where it is not installed and empty where it works. ``extras`` maps
    the name of each extra to its packages; empty, with ``packages``, where the metadata is not there.
    ``hidden`` is a ``CUDA_VISIBLE_DEVICES`` that hides every card.
    """

    python: str
    system: str
    snugtune: str | None
    driver: Driver | None
    cards: tuple[Card, ...]
    torch: Torch | None
    processor: Processor
    memory: Memory
    places: tuple[Place, ...]
    hub: Hub
    packages: tuple[Package, ...] = ()
    extras: dict[str, tuple[Package, ...]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    torch_error: str = ""
    bitsandbytes_error: str | None = None
    hidden: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
