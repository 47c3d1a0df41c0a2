"""From the facts of a machine to a line on each: ok, a note, or a problem and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from snugtune.doctor.facts import Card, Facts, Package, Place, Torch
from snugtune.doctor.wheels import LEAST_DRIVER, build_for, has_kernels, install, parse, told
from snugtune.units import GIB

Status = Literal["ok", "note", "problem"]

BFLOAT16_FROM = (8, 0)
"""Compute capability with bfloat16 in its tensor cores (CUDA C++ Programming Guide, appendix on them)."""

PACKS_FROM = (8, 0)
"""FlashAttention 2, which PyTorch's variable-length attention is, needs Ampere
(https://github.com/Dao-AILab/flash-attention, "NVIDIA CUDA Support")."""

INT8_FROM, NF4_FROM = (7, 5), (6, 0)
"""What bitsandbytes needs (https://huggingface.co/docs/bitsandbytes/v0.50.0/installation, "NVIDIA CUDA")."""

LITTLE_MEMORY_BYTES, TOO_LITTLE_MEMORY_BYTES = 3 * GIB, GIB
"""A fit of the default model takes about 1.5 GiB (``docs/memory.md``), PyTorch alone half a GiB."""

LITTLE_DISK_BYTES, TOO_LITTLE_DISK_BYTES = 5 * GIB, GIB // 4
"""XLM-RoBERTa-large is 2.2 GB to download; a run of the default model writes some hundred MB."""

SHOWN_PACKAGES = ("torch", "transformers", "peft", "accelerate")

PURPOSE = {
    "minilm": "the default model, as a package",
    "datasets": "Hugging Face datasets as tables",
    "plots": "plan --picture, and charts in notebooks",
    "quantized": "weights in 4 bits",
    "onnx": "export --to onnx, and prediction in int8",
    "languages": "languages in the audit",
    "sql": "DuckDB and PostgreSQL",
    "track": "TensorBoard",
    "search": "snugtune search",
    "bulk": "predict --engine ray, and buckets",
    "serve": "snugtune serve",
    "app": "snugtune app",
}
"""What each extra is for; those for working on the project itself are left out."""


@dataclass(frozen=True)
class Check:
    """One line of the examination; ``stops`` marks a problem that no run gets past."""

    subject: str
    status: Status
    finding: str
    advice: str = ""
    stops: bool = False


@dataclass(frozen=True)
class Examination:
    """All checks, and on what a fit would run: ``cuda``, ``cpu``, or nothing (empty)."""

    checks: tuple[Check, ...]
    runs_on: str

    @property
    def can_run(self) -> bool:
        """Whether a fit can work here at all."""
        return not any(check.stops for check in self.checks)

    @property
    def problems(self) -> int:
        """How many checks found one."""
        return sum(check.status == "problem" for check in self.checks)

    def sentence(self) -> str:
        """The whole in one sentence."""
        if not self.can_run:
            return "A run would stop here: see what is marked as a problem."
        where = {"cuda": "the GPU", "cpu": "the CPU"}[self.runs_on]
        if self.problems:
            one = self.problems == 1
            return (
                f"A fit would run on {where}, with {self.problems} problem{'' if one else 's'} worth mending."
            )
        return f"A fit can run here, on {where}."


def examine(facts: Facts) -> Examination:
    """Judge a machine."""
    checks = (
        *torch_checks(facts),
        *card_checks(facts),
        *precision_checks(facts),
        *processor_checks(facts),
        *memory_checks(facts),
        *disk_checks(facts),
        *package_checks(facts),
        *extra_checks(facts),
        *hub_checks(facts),
        *environment_checks(facts),
    )
    stopped = any(check.stops for check in checks)
    uses_card = facts.torch is not None and facts.torch.sees is not None
    return Examination(checks, "" if stopped else "cuda" if uses_card else "cpu")


# PyTorch and the cards


def torch_checks(facts: Facts) -> Iterator[Check]:
    """Whether PyTorch is there, and is one for the card and the driver."""
    torch = facts.torch
    if torch is None:
        yield Check(
            "PyTorch", "problem", f"cannot be imported: {facts.torch_error}",
            "pip install --force-reinstall torch", stops=True,
        )  # fmt: skip
        return
    built = f"for CUDA {torch.cuda}" if torch.cuda else f"for ROCm {torch.hip}" if torch.hip else "for CPUs"
    yield _build_check(facts, torch, f"{torch.version}, built {built}")


def _build_check(facts: Facts, torch: Torch, build: str) -> Check:
    if torch.hip:
        return Check("PyTorch", "note", f"{build}; AMD cards are not tested, and texts are not packed there")
    if not facts.cards and torch.sees is None and not torch.trial_error:
        return Check("PyTorch", "ok", build)
    if facts.hidden:
        return Check(
            "PyTorch", "note", f"{build}; CUDA_VISIBLE_DEVICES hides the card", "unset CUDA_VISIBLE_DEVICES"
        )
    return _card_build_check(facts, torch, build)


def _card_build_check(facts: Facts, torch: Torch, build: str) -> Check:
    """The same where there is a card."""
    capability = torch.sees or (facts.cards[0].compute_capability if facts.cards else None)
    driver_cuda = facts.driver.cuda if facts.driver else None
    better = build_for(capability, driver_cuda) if capability else None
    command = install(better) if better else ""
    if torch.cuda is None:
        return Check("PyTorch", "problem", f"{build} alone, so the card lies idle", command)
    if driver_cuda and driver_cuda[0] < parse(torch.cuda)[0]:
        return _old_driver(facts, torch, build, command)
    return _kernels_check(torch, build, capability, command)


def _old_driver(facts: Facts, torch: Torch, build: str, command: str) -> Check:
    assert facts.driver is not None
    assert torch.cuda is not None
    least = LEAST_DRIVER.get(parse(torch.cuda)[0])
    update = f"update the driver to {least} or newer" if least else "update the driver"
    return Check(
        "PyTorch", "problem",
        f"{build}; the driver {facts.driver.version} runs CUDA {told(facts.driver.cuda)} at most, "
        "so the card lies idle",
        f"{update}, or: {command}" if command else update,
    )  # fmt: skip


def _kernels_check(torch: Torch, build: str, capability: tuple[int, int] | None, command: str) -> Check:
    if capability and torch.architectures and not has_kernels(torch.architectures, capability):
        advice = command or "no published build has kernels for it; set CUDA_VISIBLE_DEVICES= to use the CPU"
        return Check(
            "PyTorch", "problem", f"{build}; it has no kernels for the card ({_sm(capability)})", advice, True
        )
    if torch.trial_error:
        return Check(
            "PyTorch", "problem", f"{build}; a small product on the card failed: {torch.trial_error}",
            "see who else uses the card, start the machine anew, or set CUDA_VISIBLE_DEVICES= for the CPU",
            stops=True,
        )  # fmt: skip
    if torch.sees is None:
        return Check(
            "PyTorch", "problem", f"{build}; it does not find the card, which lies idle",
            "restart the machine after a driver update; in a container, give it the card (--gpus all)",
        )  # fmt: skip
    return Check("PyTorch", "ok", f"{build}; a product on the card worked")


def card_checks(facts: Facts) -> Iterator[Check]:
    """The driver, each card, and who else is on it."""
    if not facts.cards:
        sees = facts.torch is not None and facts.torch.sees is not None
        yield Check("GPU", "ok", "found by PyTorch alone; the driver's tool says nothing" if sees else "none")
        return
    if facts.driver:
        yield Check("driver", "ok", f"{facts.driver.version}, runs CUDA {told(facts.driver.cuda)}")
    for i, card in enumerate(facts.cards):
        yield _card_check(f"GPU {i}" if len(facts.cards) > 1 else "GPU", card)
    if len(facts.cards) > 1:
        yield Check(
            "GPUs", "note", f"{len(facts.cards)} are there and a fit uses one",
            "choose it with CUDA_VISIBLE_DEVICES, as CUDA_VISIBLE_DEVICES=1",
        )  # fmt: skip


def _card_check(subject: str, card: Card) -> Check:
    capability = (
        "" if card.compute_capability is None else f", sm_{''.join(map(str, card.compute_capability))}"
    )
    there = f"{card.name}{capability}, {_gib(card.free_bytes)} of {_gib(card.total_bytes)} free"
    if not card.others:
        return Check(subject, "ok", there)
    held = "" if card.others_bytes is None else f", {_gib(card.others_bytes)}"
    named = ", ".join(card.others[:3]) + (", ..." if len(card.others) > 3 else "")
    return Check(
        subject, "note", f"{there}; used by others, too: {named}{held}",
        "end them for a larger batch; the plan counts what is free",
    )  # fmt: skip


def precision_checks(facts: Facts) -> Iterator[Check]:
    """Number formats, 4-bit weights and packing, by card or processor."""
    sees = facts.torch.sees if facts.torch else None
    if sees is None:
        yield (
            Check("half precision", "ok", "bfloat16, which this processor multiplies in")
            if facts.processor.has_bfloat16
            else Check("half precision", "note", "none: this processor multiplies in float32, more slowly")
        )
    elif sees >= BFLOAT16_FROM:
        yield Check("half precision", "ok", "bfloat16 and float16")
    else:
        yield Check("half precision", "ok", f"float16; bfloat16 needs sm_80, this card is {_sm(sees)}")
    yield _quantized_check(facts.bitsandbytes_error, sees)
    if sees is not None and facts.torch is not None:
        yield _packing_check(facts.torch, sees)


def _quantized_check(error: str | None, sees: tuple[int, int] | None) -> Check:
    subject = "4-bit weights"
    if error is None:
        return Check(subject, "note", "bitsandbytes is not installed", "pip install 'snugtune[quantized]'")
    if error:
        return Check(
            subject, "note", f"bitsandbytes cannot be loaded: {error}",
            "pip install -U 'snugtune[quantized]'",
        )  # fmt: skip
    if sees is None:
        return Check(subject, "ok", "on the CPU: saves memory, is slower")
    if sees < NF4_FROM:
        return Check(subject, "note", f"need sm_60, this card is {_sm(sees)}")
    if sees < INT8_FROM:
        return Check(subject, "ok", f"yes; 8-bit ones (LLM.int8) need sm_75, this card is {_sm(sees)}")
    return Check(subject, "ok", "yes; 8-bit ones (LLM.int8), too")


def _packing_check(torch: Torch, sees: tuple[int, int]) -> Check:
    if sees < PACKS_FROM:
        return Check(
            "packing", "ok", f"no: needs sm_80, this card is {_sm(sees)}; texts of like length go together"
        )
    if not torch.packs:
        return Check(
            "packing", "note", "this PyTorch has no variable-length attention", "pip install -U torch"
        )
    return Check("packing", "ok", "texts are trained without padding")


# The machine


def processor_checks(facts: Facts) -> Iterator[Check]:
    """Cores, and whether PyTorch starts more threads than the container has."""
    cpu = facts.processor
    may = min(cpu.usable_cores, cpu.quota or cpu.usable_cores)
    there = (
        f"{cpu.name}, {may:g} of {cpu.cores} cores" if may < cpu.cores else f"{cpu.name}, {cpu.cores} cores"
    )
    threads = facts.torch.threads if facts.torch else 1
    whole = max(1, int(may))
    if threads > whole + 1:
        yield Check(
            "CPU", "note", f"{there}, and PyTorch starts {threads} threads, which then wait for each other",
            f"export OMP_NUM_THREADS={whole}",
        )  # fmt: skip
    else:
        yield Check("CPU", "ok", there)


def memory_checks(facts: Facts) -> Iterator[Check]:
    """Free memory, within the container's limit."""
    memory = facts.memory
    left = memory.available_bytes
    there = f"{_gib(left)} of {_gib(memory.total_bytes)} free"
    if memory.limit_bytes is not None and memory.limit_bytes < memory.total_bytes:
        left = min(
            left, memory.limit_bytes if memory.left_in_limit_bytes is None else memory.left_in_limit_bytes
        )
        there += f"; the container may have {_gib(memory.limit_bytes)}, {_gib(left)} of it left"
    if left < TOO_LITTLE_MEMORY_BYTES:
        yield Check("memory", "problem", there, "end other programs, or take a larger machine", stops=True)
    elif left < LITTLE_MEMORY_BYTES:
        yield Check(
            "memory", "note", f"{there}: enough for small models",
            f"ask what fits: snugtune plan TABLE --memory {left / GIB:.1f}GiB",
        )  # fmt: skip
    else:
        yield Check("memory", "ok", there)


def disk_checks(facts: Facts) -> Iterator[Check]:
    """Room where runs, models and caches go."""
    for place in facts.places:
        yield _disk_check(place)


def _disk_check(place: Place) -> Check:
    there = f"{_gib(place.free_bytes)} free for {place.what} in {place.path}"
    subject = "disk"
    if not place.writable:
        return Check(
            subject, "note", f"{place.path} for {place.what} cannot be written", "choose another folder"
        )
    if place.free_bytes < TOO_LITTLE_DISK_BYTES:
        return Check(subject, "problem", there, "free some space", stops=True)
    if place.free_bytes < LITTLE_DISK_BYTES:
        return Check(subject, "note", there, "free some space before large models")
    return Check(subject, "ok", there)


# Packages


def package_checks(facts: Facts) -> Iterator[Check]:
    """The libraries that decide most, and every other that is missing or of a version we cannot use."""
    if not facts.packages:
        yield Check("packages", "note", "snugtune itself is not installed, so nothing is known of its needs")
        return
    for package in facts.packages:
        if package.is_there and package.name in SHOWN_PACKAGES:
            yield Check(package.name, "ok", f"{package.version} ({package.required})")
        elif not package.is_there:
            yield _missing(package)


def _missing(package: Package) -> Check:
    found = "is not installed" if package.version is None else f"is {package.version}"
    return Check(
        package.name, "problem", f"{found}; {package.required or 'any version'} is needed",
        f"pip install '{package.name}{package.required}'", stops=True,
    )  # fmt: skip


def extra_checks(facts: Facts) -> Iterator[Check]:
    """Optional parts: those that are there in one line, and one for each that is not, with its command."""
    known = {name: packages for name, packages in facts.extras.items() if name in PURPOSE}
    there = [name for name, packages in known.items() if all(package.is_there for package in packages)]
    if there:
        yield Check("extras", "ok", ", ".join(there))
    for name, packages in known.items():
        lacking = [package for package in packages if not package.is_there]
        if lacking:
            told_as = ", ".join(_lacking(package) for package in lacking)
            yield Check(
                f"extra {name}", "note", f"{PURPOSE[name]}: {told_as}", f"pip install 'snugtune[{name}]'"
            )


def _lacking(package: Package) -> str:
    if package.version is None:
        return f"{package.name} is missing"
    return f"{package.name} {package.version} is not {package.required}"


def hub_checks(facts: Facts) -> Iterator[Check]:
    """The Hugging Face client."""
    hub = facts.hub
    token = "a token is set" if hub.has_token else "no token (public models need none)"
    yield Check("Hugging Face", "ok", f"cache {hub.cache}; {token}")
    if hub.offline:
        yield Check(
            "Hugging Face", "note", "offline: only models that are in the cache",
            "unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE",
        )  # fmt: skip


def environment_checks(facts: Facts) -> Iterator[Check]:
    """Our own environment variables."""
    for name, value in facts.environment.items():
        yield Check("environment", "ok", f"{name}={value}")


def _sm(capability: tuple[int, int]) -> str:
    return f"sm_{capability[0]}{capability[1]}"


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.1f} GiB"
