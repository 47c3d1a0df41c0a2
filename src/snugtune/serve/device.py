"""The one thread in which a server's models compute, and short-lived ones for what is beside it.

OpenMP's runtime gives each thread that computes in parallel helpers of its own. As soon as the process has
more of them than cores, they sleep between two pieces of work, and each of the hundreds of products of a text
begins with waking someone. So batches, checks and first answers are computed in one thread, whichever model
they are of, and a model is loaded in a thread that ends when that is done, and its helpers with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Device:
    """What computes, one piece of work after the other in the order in which they were given."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "snugtune-device")

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have ``work`` done after what was given before."""
        return self._thread.submit(work)

    def stop(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)


async def in_passing(work: Callable[[], T]) -> T:
    """The value of ``work``, done in a thread of its own that ends with it."""
    thread = ThreadPoolExecutor(1, "snugtune-passing")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, work)
    finally:
        thread.shutdown(wait=False)
