"""When a run that went to the CPU for want of card memory tries the card again. Needs no torch."""

from __future__ import annotations

import time
from collections.abc import Callable

from snugtune.memory.free import free_card_bytes
from snugtune.units import GIB

LOOK_S = 15.0
"""Between two looks at what is free."""

STEADY_S = 60.0
"""So long there must have been enough: another job lets go of its memory between two phases, too."""

LEAST_LEFT_S = 300.0
"""A run that is done on the CPU sooner stays there: to load the model again takes a minute or so."""

GROWTH, LEAST_GROWTH_BYTES = 1.25, GIB // 2
"""By so much more must be free than when the card failed; so attempts without end are impossible, too."""

PLAN_MARGIN = 1.05
"""Of the predicted peak that must be free."""

FIRST_WAIT_S = 300.0
"""After a way back that was not one for long; twice as long after each further one."""

LONG_S = 1800.0
"""So long on the card is a way back that was worth it."""


class WayBack:
    """What was free on the card when it failed, and whether enough is free now.

    Args:
        free_bytes: of the card, None if nobody can tell.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        free_bytes: Callable[[], int | None] = free_card_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free_bytes, self._clock = free_bytes, clock
        self.peak_gib: float | None = None
        self._failed_bytes: int | None = None
        self._wait_s = FIRST_WAIT_S
        self._taken: float | None = None
        self._not_before: float | None = None
        self._looked: float | None = None
        self._enough_since: float | None = None

    def taken(self) -> None:
        """The run is on the card again, for a try."""
        self._taken = self._clock()

    def failed(self) -> None:
        """Memory ran out on the card just now."""
        now, free = self._clock(), self._free_bytes()
        self._looked = self._enough_since = self._not_before = None
        if self._taken is not None and now - self._taken < LONG_S:
            # What was not enough then is not enough later.
            free = max(free or 0, self._failed_bytes or 0)
            self._not_before = now + self._wait_s
            self._wait_s *= 2
        else:
            self._wait_s = FIRST_WAIT_S
        self._failed_bytes = free

    def found_bytes(self) -> int | None:
        """What is free, once it has been enough for long enough; a look every ``LOOK_S`` and None between."""
        now = self._clock()
        if self._failed_bytes is None or (self._looked is not None and now - self._looked < LOOK_S):
            return None
        # A clock that stood still while the machine slept, or went on: a gap begins anew.
        if self._looked is None or now - self._looked > 4 * LOOK_S:
            self._enough_since = None
        self._looked = now
        free = self._free_bytes()
        if free is None or free < self._needed_bytes(self._failed_bytes):
            self._enough_since = None
            return None
        if self._enough_since is None:
            self._enough_since = now
        is_steady = now - self._enough_since >= STEADY_S
        return free if is_steady and (self._not_before is None or now >= self._not_before) else None

    def _needed_bytes(self, failed_bytes: int) -> float:
        planned = PLAN_MARGIN * (self.peak_gib or 0.0) * GIB
        return max(GROWTH * failed_bytes, failed_bytes + LEAST_GROWTH_BYTES, planned)
