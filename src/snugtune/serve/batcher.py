"""Which of the waiting texts are computed together.

Nothing waits on purpose: what arrives while a batch is computed makes the next one. The oldest text is always
part of it, so none is passed over for long; its companions are those closest to it in length, so that little
is padded.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from snugtune.serve.device import Device
from snugtune.serve.engine import Answered, Prepared
from snugtune.serve.refusal import Refusal, draining, failed

log = logging.getLogger("snugtune.serve")

OVERTAKE = 0.2
"""Share of a time by which a text may have come later than the oldest one and be computed with it.

Of the time limit where full batches are worth much; else of the time that the oldest has waited, for on a CPU
a batch gains little, and free choice lets texts of rare lengths wait twice as long as others
(`decisions/0022-serving.md`)."""

NOT_COMPUTED = "Inference failed."
TOO_LATE = "No answer within the time limit."


@dataclass
class Waiting:
    """A text in the queue, and who waits for it until ``deadline`` (``time.monotonic``)."""

    text: Prepared
    future: asyncio.Future[Computed]
    deadline: float
    arrived: float


@dataclass(frozen=True)
class Computed:
    """An answer with the seconds it waited and those its batch took."""

    answer: Answered
    queue_s: float
    inference_s: float


@dataclass(frozen=True)
class BatchInfo:
    """What was computed together: texts, their tokens, those with padding, and seconds.

    ``busy_s`` also counts what passed since the batch before if this one had waited for it: other models'
    batches, and what the system gave to other programs.
    """

    texts: int
    tokens: int
    padded_tokens: int
    seconds: float
    busy_s: float


class BatchObserver(Protocol):
    """Is told, in the event loop, of what the worker did."""

    def on_batch(self, info: BatchInfo) -> None:
        """A batch was computed."""

    def on_dropped(self, reason: str, texts: int) -> None:
        """Texts left the queue without having been computed: ``late`` or ``gone``."""

    def on_failure(self, texts: int) -> None:
        """Texts could not be computed, not even one by one."""


def companions(
    longest: Sequence[int], rows: Sequence[int], tokens: Sequence[int], budget: int, worth: int | None
) -> list[int]:
    """Indices of the texts computed with the first one, the oldest: itself and others, in order of length.

    A text has ``rows`` rows of ``tokens`` in all, the longest with ``longest``. Those taken lie side by side
    in the order of lengths, together at most ``budget`` tokens with padding, to which each adds at most
    ``worth`` tokens of padding (None: any number); of the two neighbours that which adds less comes first. A
    first text beyond the budget goes alone.
    """
    order = sorted(range(len(longest)), key=lambda i: (longest[i], i))
    low = high = order.index(0)
    count, width = rows[0], longest[0]

    def padded(i: int) -> int:
        return (count + rows[i]) * max(width, longest[i])

    def added(i: int) -> int:
        return padded(i) - count * width - tokens[i]

    while True:
        beside = [order[k] for k in (low - 1, high + 1) if 0 <= k < len(order)]
        fitting = [
            (added(i), i) for i in beside if padded(i) <= budget and (worth is None or added(i) <= worth)
        ]
        if not fitting:
            return order[low : high + 1]
        _, best = min(fitting)
        if low and order[low - 1] == best:
            low -= 1
        else:
            high += 1
        count, width = count + rows[best], max(width, longest[best])


class Batcher:
    """The queue of one model. All methods are for the event loop's thread.

    Args:
        observer: is told of batches.
        device: computes; models that share one take turns, a batch each.
        max_batch_tokens: padded tokens computed together; None: what the engine says.
        timeout_s: the time limit, of which ``OVERTAKE`` is the most that a text may be overtaken by.
    """

    def __init__(
        self,
        observer: BatchObserver,
        device: Device,
        *,
        max_batch_tokens: int | None = None,
        timeout_s: float = math.inf,
    ) -> None:
        self._observer, self._device = observer, device
        self._max_batch_tokens, self._timeout_s = max_batch_tokens, timeout_s
        self._waiting: list[Waiting] = []
        self._lock = threading.Lock()
        self._at_work = False
        self._stopped = False
        self._ended: float | None = None  # when the batch before ended, if others had waited for it
        self.tokens = 0
        """Tokens of texts that wait or are computed."""

    @property
    def size(self) -> int:
        """Texts that wait."""
        return len(self._waiting)

    def submit(self, texts: Sequence[Prepared], deadline: float) -> list[asyncio.Future[Computed]]:
        """Put ``texts`` into the queue; each future will hold what became of its text.

        A future that is cancelled takes its text out of the queue.
        """
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        items = [Waiting(text, loop.create_future(), deadline, now) for text in texts]
        if self._stopped:
            for item in items:
                item.future.set_result(Computed(draining(), 0.0, 0.0))
            return [item.future for item in items]
        self.tokens += sum(item.text.tokens for item in items)
        with self._lock:
            self._waiting += items
            if items and not self._at_work:
                self._at_work = True
                self._device.submit(partial(self._work, loop))
        return [item.future for item in items]

    def stop(self) -> None:
        """Compute nothing more; what still waits is told so."""
        with self._lock:
            self._stopped, left = True, self._waiting
            self._waiting = []
        for item in left:
            self._deliver(item, Computed(draining(), time.monotonic() - item.arrived, 0.0))

    # --- in the device's thread -------------------------------------------------------------------

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Compute a batch, and have the next one computed after what other models want."""
        try:
            if batch := self._take(loop):
                self._compute(batch, loop)
        finally:
            with self._lock:
                self._at_work = bool(self._waiting) and not self._stopped
                self._ended = time.monotonic() if self._at_work else None
                if self._at_work:
                    self._device.submit(partial(self._work, loop))

    def _take(self, loop: asyncio.AbstractEventLoop) -> list[Waiting]:
        """The next batch, empty if all that waited had to be dropped."""
        with self._lock:
            now = time.monotonic()
            gone = [item for item in self._waiting if item.future.cancelled()]
            late = [item for item in self._waiting if item.deadline <= now and not item.future.cancelled()]
            if gone or late:
                dropped = {id(item) for item in (*gone, *late)}
                self._waiting = [item for item in self._waiting if id(item) not in dropped]
            batch = self._choose(self._waiting)
            taken = {id(item) for item in batch}
            self._waiting = [item for item in self._waiting if id(item) not in taken]
        if gone or late:
            _call(loop, self._drop, gone, late)
        return batch

    def _choose(self, waiting: Sequence[Waiting]) -> list[Waiting]:
        if not waiting:
            return []
        oldest = waiting[0]
        engine = oldest.text.engine  # after a reload the queue may hold texts of two versions
        waited_s = time.monotonic() - oldest.arrived
        latest = oldest.arrived + OVERTAKE * (self._timeout_s if engine.padding_worth is None else waited_s)
        same = [item for item in waiting if item.text.engine is engine and item.arrived <= latest]
        chosen = companions(
            [item.text.longest for item in same],
            [len(item.text.rows) for item in same],
            [item.text.tokens for item in same],
            self._max_batch_tokens or engine.batch_tokens,
            engine.padding_worth,
        )
        return [same[i] for i in chosen]

    def _compute(self, batch: list[Waiting], loop: asyncio.AbstractEventLoop) -> None:
        began = time.monotonic()
        answers = answers_of([item.text for item in batch])
        ended = time.monotonic()
        seconds, busy_s = ended - began, ended - (self._ended or began)
        computed = [
            Computed(answer, began - item.arrived, seconds)
            for item, answer in zip(batch, answers, strict=True)
        ]
        width = max(item.text.longest for item in batch)
        info = BatchInfo(
            texts=len(batch),
            tokens=sum(item.text.tokens for item in batch),
            padded_tokens=width * sum(len(item.text.rows) for item in batch),
            seconds=seconds,
            busy_s=busy_s,
        )
        _call(loop, self._finish, batch, computed, info)

    # --- back in the event loop -------------------------------------------------------------------

    def _finish(self, batch: list[Waiting], computed: list[Computed], info: BatchInfo) -> None:
        for item, found in zip(batch, computed, strict=True):
            self._deliver(item, found)
        self._observer.on_batch(info)
        failures = sum(isinstance(found.answer, Refusal) for found in computed)
        if failures:
            self._observer.on_failure(failures)

    def _drop(self, gone: list[Waiting], late: list[Waiting]) -> None:
        for item in (*gone, *late):
            self._deliver(item, Computed(failed(TOO_LATE), time.monotonic() - item.arrived, 0.0))
        for reason, items in (("gone", gone), ("late", late)):
            if items:
                self._observer.on_dropped(reason, len(items))

    def _deliver(self, item: Waiting, found: Computed) -> None:
        self.tokens -= item.text.tokens
        if not item.future.done():
            item.future.set_result(found)


def answers_of(texts: Sequence[Prepared]) -> list[Answered]:
    """The answers to ``texts``, all of one engine; if they fail together, each is asked by itself."""
    try:
        return texts[0].engine.answers(texts)
    except BaseException as error:  # whatever it is, the texts' owners must be told
        log.warning("A batch of %d failed: %s", len(texts), type(error).__name__)
    # The handler is left: its traceback held the batch's tensors.
    if len(texts) == 1:
        return [failed(NOT_COMPUTED)]
    return [answer for text in texts for answer in answers_of([text])]


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: object) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        log.debug("The event loop is closed; nobody waits any more.")
