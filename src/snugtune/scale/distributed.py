"""A fit by several processes, one for each device, that torchrun or ``accelerate launch`` has started.

Every process is given the same command and runs the same fit (``snugtune/fit.py``); the first one writes and
talks. Whoever started them is their supervisor: it ends all when one dies and, told so, starts them again,
and they go on from the last committed state. So no worker is started here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from snugtune import supervise
from snugtune.config import FitConfig
from snugtune.errors import (
    EndedElsewhereError,
    RunInterruptedError,
    SnugtuneError,
    UserInputError,
    one_line,
)
from snugtune.progress import Observer
from snugtune.scale.launch import number, size_of_group
from snugtune.scale.meeting import meet
from snugtune.train.group import ALONE, Group
from snugtune.train.recovery import Recovery

PATIENCE = timedelta(minutes=30)
"""For another process to arrive where all must meet: a machine may have a model to download first."""

ENDING, ENDING_S, FIRST_S = "snugtune/ending", 5.0, 2.0
"""Where the process that ends leaves word, how long one that lost it waits for that, and how long one with an
error of its own waits whether the first process has the same."""

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "NCCL",
        "gloo", "Gloo", "Timed out waiting", "recvValue failed", "sendBytes failed")  # fmt: skip
"""What PyTorch's back ends say when another process of the group is gone."""


def fit(
    config: FitConfig,
    out: str | Path,
    *,
    overwrite: bool = False,
    observer: Observer | None = None,
    supervised: bool | None = False,
    resume: bool | None = None,
) -> Path:
    """Train as one of the processes of a group, and write the run folder ``out`` if this is the first.

    Arguments are those of ``supervise.fit``; every process must be given the same, and none is ``supervised``
    by another one.

    Raises:
        UserInputError: the data, a setting or the folder cannot be used, or there are fewer GPUs than
            processes on this machine.
        EndedElsewhereError: another process has ended the group, and told why.
    """
    if supervised:
        raise UserInputError("A process of a group is watched by what has started it; leave --supervise out.")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UserInputError(
            "Accelerate's own FSDP is set in its configuration; leave it out there, and say --sharding full."
        )
    out = Path(out)
    with joined(config.sharding) as group:
        if group.is_first:
            return supervise.fit(
                config,
                out,
                overwrite=overwrite,
                observer=observer,
                supervised=False,
                resume=resume,
                group=group,
                # What ends the training here may be what ended another process.
                around=partial(_ending_together, group),
            )
        return follow(config, out, group)


def follow(config: FitConfig, out: Path, group: Group) -> Path:
    """Compute what the first process of the ``group`` cannot compute alone; nothing is written or said."""
    from snugtune.fit import fit as fit_here

    try:
        with supervise.told_to_stop():
            recovery = Recovery.from_json(group.from_first())
            return fit_here(config, out, recovery=recovery, group=group)
    except supervise.ToldToStop as stopped:
        signal.raise_signal(stopped.number)
        raise RunInterruptedError("Told to stop before the run was complete.") from None


@contextmanager
def joined(sharding: str = "none") -> Iterator[Group]:
    """The group that this process was started in; left again at the end, however that comes.

    Raises:
        UserInputError: there are fewer GPUs than processes on this machine.
        EndedElsewhereError: another process ended; carries that one's exit code.
    """
    from torch import distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    size = size_of_group()
    if size == 1:
        yield ALONE
        return
    group = Group(
        number(os.environ, "RANK", 0), size, number(os.environ, "LOCAL_RANK", 0),
        number(os.environ, "LOCAL_WORLD_SIZE", 1), sharding == "full",
    )  # fmt: skip
    backend = _take_device(group)
    found, rank, size = next(rendezvous("env://", group.rank, size, timeout=PATIENCE))
    name = meet(found, rank, size, PATIENCE.total_seconds())
    dist.init_process_group(
        backend, store=PrefixStore(name, found), rank=rank, world_size=size, timeout=PATIENCE
    )
    try:
        with _ending_together(group):
            yield group
    finally:
        with suppress(Exception):
            dist.destroy_process_group()


def _take_device(group: Group) -> str:
    """Make this process's GPU, if there are any, the one it computes on; returns the back ends to use."""
    import torch

    if not torch.cuda.is_available():
        return "gloo"
    if group.local_rank >= torch.cuda.device_count():
        raise UserInputError(
            f"There are {group.local_size} processes on {socket.gethostname()}, but "
            f"{torch.cuda.device_count()} GPUs; start one process for each."
        )
    torch.cuda.set_device(group.local_rank)
    return "cpu:gloo,cuda:nccl"


@contextmanager
def _ending_together(group: Group) -> Iterator[None]:
    """Of an error that ends the group one process tells, in one sentence; the others leave in silence."""
    try:
        yield
    except EndedElsewhereError:
        raise
    except SnugtuneError as error:
        if _told_first(group, error.exit_code):
            raise _of_process(error, group) from None
        raise EndedElsewhereError(error.exit_code) from None
    except RuntimeError as error:
        if not _is_of_lost_process(error):
            raise
        code = _told_by_another()
        if code is not None or not group.is_first:
            raise EndedElsewhereError(1 if code is None else code) from None
        raise SnugtuneError(
            "Another process of the group has ended without a word, so training cannot go on here; give the "
            f"same command again, or start with --max-restarts ({one_line(error)})."
        ) from None
    except BaseException:
        _told_first(group, 1)
        raise
    else:
        # The others are done before the first one is, whose word still counts.
        if group.is_first:
            _told_first(group, 0)


def _told_first(group: Group, exit_code: int) -> bool:
    """Leave word of this process's end; whether no other has before."""
    try:
        store = _store()
        if not group.is_first:
            # What is wrong for all of them is the first one's to tell.
            with suppress(RuntimeError):
                store.wait([ENDING], timedelta(seconds=FIRST_S))
        mine = json.dumps({"rank": group.rank, "exit_code": exit_code})
        # Set if nobody has: of several that try, one is the first.
        return bool(store.compare_set(ENDING, "", mine).decode() == mine)
    except (RuntimeError, ValueError):
        # The one who kept the store is gone.
        return group.is_first


def _told_by_another() -> int | None:
    """The exit code that the process which ended first left; None if it was killed."""
    try:
        store = _store()
        store.wait([ENDING], timedelta(seconds=ENDING_S))
        return int(json.loads(store.get(ENDING))["exit_code"])
    except (RuntimeError, ValueError, KeyError):
        return None


def _store() -> Any:
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _get_default_store

    if not dist.is_initialized():
        raise ValueError("there is no group")
    return _get_default_store()


def _of_process(error: SnugtuneError, group: Group) -> SnugtuneError:
    """The error, with the process and machine it comes from unless that is the first."""
    if group.is_first:
        return error
    told = f"Process {group.rank} on {socket.gethostname()}: {error}"
    found: SnugtuneError = type(error)(told)
    found.exit_code = error.exit_code
    return found


def _is_of_lost_process(error: RuntimeError) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(form in str(error) for form in LOST)
