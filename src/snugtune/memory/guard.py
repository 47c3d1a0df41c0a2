"""No failure for want of memory: a piece of work that does not fit is undone, cut in two and done again.

Work comes in micro-batches. One that runs out of memory leaves nothing behind (the work sees to that, see
``train/step.py``), what it had allocated is given back, and only it is cut; finished ones are not repeated.
At a single example the guard retreats: it draws the levers that keep the result, one by one. When none is
left, or when the device no longer answers or does not give its memory back, a new process must go on from
the last committed step (``snugtune/supervise.py``).
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from snugtune.data.batches import Size, padded_tokens
from snugtune.errors import DEVICE, RestartNeededError
from snugtune.faults import is_out_of_memory, is_poisoned
from snugtune.memory.meter import card_bytes
from snugtune.units import gib

GROW_AFTER = 64
"""Micro-batches in a row that must fit before a lowered limit is raised; doubled by each failed attempt."""

GROW_BY = 1.25
"""Additive steps would take hours back from a sixteenth, doubling fails at once where the cause persists."""

LEAK_BYTES = 64 * 2**20
"""What may still be allocated after an undone piece: caches that libraries keep on first use."""

NO_LIMIT = 2**31

EVALUATION = "evaluation"
"""What runs without gradients, where the guard tells of it."""

Rows = NDArray[np.int64]


class Memory(Protocol):
    """The memory of the device that computes."""

    def allocated_bytes(self) -> int:
        """Bytes of living tensors."""

    def free(self) -> None:
        """Give back what is cached; an error if the device no longer answers."""


class CudaMemory:
    """An NVIDIA card's, through PyTorch's caching allocator."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def allocated_bytes(self) -> int:
        """Bytes of living tensors."""
        return card_bytes(self.device).allocated

    def free(self) -> None:
        """Wait for what is running, give cached segments back, and see whether the card still computes."""
        # Accelerate's scaler and its optimiser hold each other.
        gc.collect()
        torch.clear_autocast_cache()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        try:
            torch.zeros(1, device=self.device).add_(1).item()
        except RuntimeError as error:
            # Another process may have taken all that was given back: an answer, too.
            if not is_out_of_memory(error):
                raise


class HostMemory:
    """A CPU's: the operating system keeps the books, so there is nothing to compare or to give back."""

    def allocated_bytes(self) -> int:
        """Not known."""
        return 0

    def free(self) -> None:
        """Nothing is cached."""


def device_memory(device: torch.device) -> Memory:
    """The memory of ``device``."""
    return CudaMemory(device) if device.type == "cuda" else HostMemory()


class Limit:
    """Tokens, padding included, that a micro-batch may hold: lowered by failures, raised again carefully.

    Args:
        planned: the limit to grow back to.
        start: the limit to begin with, if it is another.
    """

    def __init__(self, planned: int, start: int | None = None) -> None:
        self.planned = max(1, planned)
        self.tokens = max(1, planned if start is None else start)
        self._fitted = 0
        self._wait = GROW_AFTER
        self._grown = False

    def failed(self, allowed: int) -> None:
        """A micro-batch did not fit; from now on they hold at most ``allowed`` tokens."""
        if self._grown:
            self._wait, self._grown = 2 * self._wait, False
        self.lower(allowed)
        self._fitted = 0

    def lower(self, tokens: int) -> None:
        """From now on at most ``tokens``, for whatever reason."""
        self.tokens = max(1, min(self.tokens, tokens))

    def fitted(self) -> None:
        """A micro-batch did fit; enough of them in a row raise the limit."""
        self._fitted += 1
        if self.tokens < self.planned and self._fitted >= self._wait:
            self._grown = True
            self.tokens = min(self.planned, int(self.tokens * GROW_BY) + 1)
            self._fitted = 0


@dataclass(frozen=True)
class Retreat:
    """A lever that keeps the result, drawn when a single example does not fit.

    ``draw`` returns whether that changed anything. One ``of_training`` is of no help without gradients.
    """

    name: str
    draw: Callable[[], bool]
    of_training: bool = False


@dataclass
class Guard:
    """Runs micro-batches so that none fails for want of memory, and remembers what happened.

    Args:
        memory: of the device that computes.
        training, evaluation: limits of their micro-batches, learned while they run.
        say: told, in one sentence, of everything that was done.
        retreats: levers for when a single example does not fit, the cheapest first.
        alone: whether work that broke off can be done again here. It cannot where other processes compute
            the same layers at the same time and wait for this one in the middle of them.
        at_work: told True before the device is asked for a piece of work, and False when that is done.

    ``events`` are JSON-ready: ``event`` (out_of_memory, retreat, leak), ``during``, ``rows``,
    ``longest_tokens``, ``message``, ``action``.
    """

    memory: Memory
    training: Limit = field(default_factory=lambda: Limit(NO_LIMIT))
    evaluation: Limit = field(default_factory=lambda: Limit(NO_LIMIT))
    say: Callable[[str], None] = lambda _sentence: None
    retreats: list[Retreat] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    alone: bool = True
    at_work: Callable[[bool], None] = lambda _is_at_work: None
    _told: int = 0

    def new_events(self) -> list[dict[str, Any]]:
        """The events since the last call."""
        new = self.events[self._told :]
        self._told = len(self.events)
        return new

    def give_way(self) -> None:
        """Draw every lever that is left, before anything has failed."""
        for retreat in self.retreats:
            retreat.draw()
        self.retreats = []

    def each(
        self,
        parts: Iterable[Rows],
        lengths: NDArray[np.int64],
        work: Callable[[Rows], None],
        limit: Limit,
        *,
        during: str,
        size: Size = padded_tokens,
    ) -> None:
        """Do ``work`` on every micro-batch of ``parts`` (indices into ``lengths``), in order.

        ``size`` counts a micro-batch's tokens, which ``limit`` bounds.

        ``work`` must leave nothing behind when it raises, and parts of parts must add up to the whole.

        Raises:
            RestartNeededError: a single example does not fit whatever is tried, or the device is lost.
        """
        waiting = deque(parts)
        while waiting:
            part = waiting.popleft()
            if len(part) > 1 and size(part, lengths) > limit.tokens:
                waiting.extendleft(reversed(_halves(part)))
                continue
            failure = self._attempt(lambda part=part: work(part))  # type: ignore[misc]
            if failure is None:
                limit.fitted()
                continue
            if len(part) > 1:
                halves = _halves(part)
                limit.failed(max(size(half, lengths) for half in halves))
                self._tell(during, failure, "cut in two", part, lengths)
                waiting.extendleft(reversed(halves))
            else:
                self._retreat(during, failure, part, lengths)
                waiting.appendleft(part)

    def whole(
        self, work: Callable[[], None], snapshot: Callable[[], Callable[[], None]] | None, *, during: str
    ) -> None:
        """Do ``work`` that cannot be cut; after a failure undo it, free memory, and do it again.

        ``snapshot`` returns what undoes the work; without it, a failure cannot be made good here.

        Raises:
            RestartNeededError: it does not fit whatever is tried, or the device is lost.
        """
        undos: list[Callable[[], None]] = []
        if snapshot is not None:
            self.again(lambda: undos.append(snapshot()), during=during)
        self._repeat(work, undos[0] if undos else None, during)

    def again(self, work: Callable[[], None], *, during: str) -> None:
        """Do ``work`` that can simply be done again after a failure.

        Raises:
            RestartNeededError: it does not fit whatever is tried, or the device is lost.
        """
        self._repeat(work, lambda: None, during)

    def _repeat(self, work: Callable[[], None], undo: Callable[[], None] | None, during: str) -> None:
        failures = 0
        while (failure := self._attempt(work)) is not None:
            failures += 1
            if undo is None:
                raise RestartNeededError(f"Memory ran out in {during} ({failure}).")
            undo()
            if failures > 1:
                self._retreat(during, failure)
            else:
                self._tell(during, failure, "done again")

    def _attempt(self, work: Callable[[], None]) -> str | None:
        """None if ``work`` is done, else what the failure said; memory is free again then."""
        self.at_work(True)
        try:
            return self._guarded(work)
        finally:
            self.at_work(False)

    def _guarded(self, work: Callable[[], None]) -> str | None:
        before = self.memory.allocated_bytes()
        failure = _failure(work)
        # The handler is left: its traceback, which holds the frames and so the tensors, is gone.
        if failure is not None and not self.alone:
            raise RestartNeededError(
                f"Memory ran out while several devices computed one layer together ({failure}); start "
                "them again, with smaller micro-batches (--tokens-per-micro-batch) if it happens again."
            )
        if failure is not None:
            self._recover(before, failure)
        return failure

    def _recover(self, allocated_before: int, failure: str) -> None:
        gc.collect()
        lost = _failure(self.memory.free, of_any_kind=True)
        if lost is not None:
            raise RestartNeededError(f"The device no longer answers after running out of memory ({lost}).")
        leaked = self.memory.allocated_bytes() - allocated_before
        if leaked > LEAK_BYTES:
            self.events.append({"event": "leak", "message": failure, "leaked_gib": gib(leaked)})
            raise RestartNeededError(
                f"{gib(leaked):.2f} GiB did not come back after running out of memory ({failure})."
            )

    def _retreat(
        self, during: str, failure: str, part: Rows | None = None, lengths: NDArray[np.int64] | None = None
    ) -> None:
        for retreat in list(self.retreats):
            if retreat.of_training and during == EVALUATION:
                continue
            self.retreats.remove(retreat)
            if retreat.draw():
                self._tell(during, failure, retreat.name, part, lengths, event="retreat")
                return
        raise RestartNeededError(
            f"Memory ran out in {during}{_size(part, lengths)} and nothing is left to give way with "
            f"({failure}); free some memory, shorten the texts with --max-length, or take a smaller model."
        )

    def _tell(
        self,
        during: str,
        failure: str,
        action: str,
        part: Rows | None = None,
        lengths: NDArray[np.int64] | None = None,
        event: str = "out_of_memory",
    ) -> None:
        self.events.append(
            {
                "event": event,
                "during": during,
                "rows": None if part is None else len(part),
                "longest_tokens": None if part is None or lengths is None else int(lengths[part].max()),
                "message": failure,
                "action": action,
            }
        )
        self.say(f"Memory ran out in {during}{_size(part, lengths)}: {action}; nothing is lost.")


def _size(part: Rows | None, lengths: NDArray[np.int64] | None) -> str:
    if part is None or lengths is None:
        return ""
    texts = "one text" if len(part) == 1 else f"{len(part)} texts"
    return f" with {texts} of up to {int(lengths[part].max())} tokens"


def _failure(work: Callable[[], None], *, of_any_kind: bool = False) -> str | None:
    """The first line of the error if ``work`` runs out of memory (or fails ``of_any_kind``); None if not."""
    try:
        work()
    except Exception as error:
        if is_poisoned(error):
            raise RestartNeededError(f"The device is lost: {_first_line(error)}.", kind=DEVICE) from None
        if not of_any_kind and not is_out_of_memory(error):
            raise
        return _first_line(error)
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _halves(part: Rows) -> list[Rows]:
    middle = (len(part) + 1) // 2
    return [part[:middle], part[middle:]]
