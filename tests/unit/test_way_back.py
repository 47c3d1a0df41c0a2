"""Free memory of a card, look by look, decides when a run on the CPU tries it again."""

import sys
from types import SimpleNamespace

import pytest

from snugtune.memory import free
from snugtune.units import GIB
from snugtune.way_back import FIRST_WAIT_S, LONG_S, LOOK_S, STEADY_S, WayBack


class Card:
    """A way back by a clock and a card that the test sets."""

    def __init__(self, free_gib=0.5, peak_gib=None):
        self.free_gib, self.now_s, self.looks = free_gib, 1000.0, 0
        self.way_back = WayBack(self.free_bytes, lambda: self.now_s)
        self.way_back.peak_gib = peak_gib

    def free_bytes(self):
        self.looks += 1
        return None if self.free_gib is None else int(self.free_gib * GIB)

    def found_within(self, seconds):
        """After how many seconds a way back was found, asked every second; None if there was none."""
        for passed in range(int(seconds)):
            self.now_s += 1
            if self.way_back.found_bytes() is not None:
                return passed
        return None


def test_enough_for_a_minute():
    card = Card(0.5, peak_gib=3.0)
    card.way_back.failed()
    assert card.found_within(600) is None
    card.free_gib = 8.0
    looks = card.looks
    assert STEADY_S <= card.found_within(600) <= STEADY_S + 2 * LOOK_S
    assert card.looks - looks <= STEADY_S / LOOK_S + 2


def test_memory_that_is_free_for_a_moment_is_no_way_back():
    card = Card(0.5)
    card.way_back.failed()
    for _ in range(20):
        card.free_gib = 8.0
        assert card.found_within(STEADY_S - LOOK_S) is None
        card.free_gib = 0.5
        assert card.found_within(2 * LOOK_S) is None


@pytest.mark.parametrize(
    ("failed", "peak", "too_little", "enough"),
    [(0.5, 3.0, 3.1, 3.2), (8.0, 3.0, 9.9, 10.1), (0.2, None, 0.69, 0.71)],
)
def test_how_much_is_enough(failed, peak, too_little, enough):
    card = Card(failed, peak)
    card.way_back.failed()
    card.free_gib = too_little
    assert card.found_within(600) is None
    card.free_gib = enough
    assert card.found_within(600) is not None


def test_after_a_way_back_that_failed_the_next_takes_longer_and_more():
    card = Card(0.5)
    card.way_back.failed()
    card.free_gib, waits = 4.0, []
    for _ in range(3):
        assert card.found_within(10_000) is not None
        card.way_back.taken()
        card.now_s += 60
        card.way_back.failed()
        assert card.found_within(10_000) is None
        card.free_gib = 1.3 * card.free_gib
        card.way_back.taken()
        card.way_back.failed()
        card.free_gib = 1.3 * card.free_gib
        waits.append(card.found_within(100_000))
    assert waits[0] >= 2 * FIRST_WAIT_S
    assert waits == sorted(waits)
    assert waits[2] > 10 * waits[0]


def test_a_way_back_that_was_worth_it_is_forgotten():
    card = Card(0.5)
    card.way_back.failed()
    for _ in range(5):
        card.free_gib = 8.0
        assert card.found_within(600) is not None
        card.way_back.taken()
        card.now_s += LONG_S + 1
        card.free_gib = 0.5
        card.way_back.failed()


def test_where_nobody_can_tell_there_is_none():
    card = Card(None)
    card.way_back.failed()
    card.free_gib = 8.0
    assert card.found_within(600) is None
    assert Card(8.0).found_within(600) is None


def test_a_machine_that_slept_begins_to_count_anew():
    card = Card(0.5)
    card.way_back.failed()
    card.free_gib = 8.0
    assert card.found_within(LOOK_S + 1) is None
    card.now_s += 10_000
    assert card.found_within(LOOK_S) is None
    assert card.found_within(600) is not None


@pytest.mark.parametrize(
    ("visible", "asked"), [(None, 0), ("2,0", 2), ("GPU-abc,GPU-d", "GPU-abc"), ("", None), ("-1x", None)]
)
def test_free_memory_of_the_card_in_sight(monkeypatch, visible, asked):
    class FakeError(Exception):
        pass

    handles = []
    fake = SimpleNamespace(
        NVMLError=FakeError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=handles.append,
        nvmlDeviceGetHandleByUUID=handles.append,
        nvmlDeviceGetMemoryInfo=lambda _handle: SimpleNamespace(free=7),
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert free.free_card_bytes() == (None if asked is None else 7)
    assert handles == ([] if asked is None else [asked])

    def no_driver():
        raise FakeError

    monkeypatch.setattr(fake, "nvmlInit", no_driver)
    assert free.free_card_bytes() is None
