"""Whether this process was started as one of several, and starting several on this machine.

Needs no torch until processes are started: a command asks here first.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from snugtune.container import usable_cores
from snugtune.errors import EndedElsewhereError, RestartNeededError, UserInputError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells each process it starts (torchrun's names, which all others use)."""

MOST_RESTARTS = 3


def in_group() -> bool:
    """Whether a launcher has started this process together with others.

    Raises:
        UserInputError: a launcher has told some of what it must, and not the rest.
    """
    return size_of_group() > 1


def is_first() -> bool:
    """Whether this process is the one that talks: the first of its group, or alone."""
    return not in_group() or number(os.environ, "RANK", 0) == 0


def size_of_group(environment: Mapping[str, str] | None = None) -> int:
    """How many processes a launcher has started together with this one; 1 if none has.

    Raises:
        UserInputError: as ``in_group``.
    """
    found = os.environ if environment is None else environment
    size = number(found, "WORLD_SIZE", 1)
    missing = [name for name in VARIABLES if name not in found]
    if size > 1 and missing:
        raise UserInputError(
            f"WORLD_SIZE is {size}, but {' and '.join(missing)} is not set; start with torchrun or "
            "accelerate launch, or unset WORLD_SIZE."
        )
    return size


def number(environment: Mapping[str, str], name: str, default: int) -> int:
    """A number of a launcher's.

    Raises:
        UserInputError: it is none.
    """
    value = environment.get(name, str(default))
    if not value.isdigit():
        raise UserInputError(f"{name}={value} is no number; start with torchrun or accelerate launch.")
    return int(value)


def run_on_devices(arguments: Sequence[str], devices: int, *, say: Callable[[str], None]) -> None:
    """Run ``python -m snugtune ARGUMENTS`` as so many processes of this machine; return when all are done.

    As torchrun does, whose agent this is: when one dies, all end. Here they are started again only if that
    may help, three times at most, and go on from the last committed state.

    Raises:
        UserInputError: there are fewer GPUs, or processor cores, than ``devices``.
        EndedElsewhereError: a process has ended with an error, and told it.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if devices < 1:
        raise UserInputError(f"--devices must be at least 1, not {devices}.")
    _check_devices(devices)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // devices)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    for restarts in range(MOST_RESTARTS + 1):
        try:
            with _interrupts_are_theirs():
                _start(arguments, devices)
        except ChildFailedError as failed:
            code = failed.get_first_failure()[1].exitcode
            if not may_start_again(code) or restarts == MOST_RESTARTS:
                raise EndedElsewhereError(code if code > 0 else 128 - code) from None
            say(f"A process was ended ({_how(code)}); all {devices} start again from the last saved state.")
        else:
            return


def may_start_again(exit_code: int) -> bool:
    """Whether another attempt may get further: after a kill, and where memory ran out.

    Not after signals that people and job schedulers send.
    """
    stopped = {-signal.SIGINT, -signal.SIGTERM}
    return exit_code == RestartNeededError.exit_code or (exit_code < 0 and exit_code not in stopped)


def _start(arguments: Sequence[str], devices: int) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=devices, run_id=f"snugtune-{os.getpid()}",
        # Port 0: the system chooses a free one, so that two fits of one machine do not meet.
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost", max_restarts=0,
        # Ctrl-C reaches the processes without its help; twice would mean to give up what was learned.
        signals_to_handle="SIGTERM,SIGHUP",
    )  # fmt: skip
    elastic_launch(config, sys.executable)("-m", "snugtune", *arguments)


def _check_devices(devices: int) -> None:
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and devices > gpus:
        raise UserInputError(f"There are {gpus} GPUs here, not {devices}; give --devices {gpus} at most.")
    cores = usable_cores()
    if not gpus and devices > cores:
        raise UserInputError(
            f"There is no GPU and there are {cores} processor cores here, not {devices}; leave --devices out."
        )


def _how(code: int) -> str:
    if code == RestartNeededError.exit_code:
        return "memory ran out"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


@contextmanager
def _interrupts_are_theirs() -> Iterator[None]:
    """Inside, Ctrl-C is left to the processes that were started, to which a terminal sends it too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A function, not SIG_IGN, which the processes would inherit.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
