"""Several processes that train together, as functions of a test; forked from one that has all imported."""

import multiprocessing
import os
import sys
import tempfile
import traceback
from pathlib import Path

import torch.distributed as dist

from snugtune.train.group import Group

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["groups", "tiny_training"])

TIMEOUT_S = 90
"""For processes that wait for each other forever."""


def run_group(size, work, *arguments, sharded=False):
    """What ``work(group, *arguments)`` returns in each of ``size`` processes, in their order.

    ``work`` is a function of a module; it returns what can be sent: no tensors.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    with tempfile.TemporaryDirectory() as folder:
        pipes = [CONTEXT.Pipe(duplex=False) for _ in range(size)]
        processes = [
            CONTEXT.Process(
                target=_process,
                args=(Group(rank, size, rank, size, sharded), folder, work, arguments, mine),
                daemon=True,
            )
            for rank, (_, mine) in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        for _, mine in pipes:
            mine.close()
        try:
            answers = [_answer(theirs, rank) for rank, (theirs, _) in enumerate(pipes)]
        finally:
            for process in processes:
                process.join(1)
                process.kill()
    failures = [failure for failure, _ in answers if failure]
    assert not failures, "\n".join(failures)
    return [result for _, result in answers]


def _answer(pipe, rank):
    if not pipe.poll(TIMEOUT_S):
        return f"process {rank} does not answer", None
    try:
        return pipe.recv()
    except EOFError:
        return f"process {rank} died", None


def _process(group, folder, work, arguments, pipe):
    try:
        store = dist.FileStore(str(Path(folder) / "store"), group.size)
        dist.init_process_group("gloo", store=store, rank=group.rank, world_size=group.size)
        pipe.send((None, work(group, *arguments)))
    except BaseException:
        pipe.send((traceback.format_exc(), None))
    finally:
        pipe.close()
    # No farewell of the others: one of them may have failed.
    os._exit(0)
