"""Which texts are computed together, and that each owner gets his own answer whatever happens to others."""

import asyncio
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snugtune.serve.batcher import Batcher, companions
from snugtune.serve.device import Device
from snugtune.serve.engine import Prepared
from snugtune.serve.pace import MEMORY_S, Pace
from snugtune.serve.refusal import Refusal

SIZES = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 3)), min_size=1, max_size=40
)  # longest row, rows


@pytest.fixture(scope="module")
def device():
    found = Device()
    yield found
    found.stop()


def sizes(drawn):
    longest = [length for length, _ in drawn]
    rows = [count for _, count in drawn]
    tokens = [length * count - (count - 1) for length, count in drawn]  # the last row of a window is shorter
    return longest, rows, [max(1, n) for n in tokens]


@given(SIZES, st.integers(1, 300), st.none() | st.integers(0, 100))
def test_a_batch_holds_the_oldest_and_keeps_its_limits(drawn, budget, worth):
    longest, rows, tokens = sizes(drawn)
    chosen = companions(longest, rows, tokens, budget, worth)
    assert 0 in chosen
    assert len(set(chosen)) == len(chosen)
    if len(chosen) > 1:
        padded = max(longest[i] for i in chosen) * sum(rows[i] for i in chosen)
        assert padded <= budget
        own = max(longest[0] * rows[0] - tokens[0], 0)
        added = padded - sum(tokens[i] for i in chosen) - own
        assert worth is None or added <= worth * (len(chosen) - 1)


@given(SIZES, st.integers(1, 300))
def test_a_batch_is_a_stretch_of_the_order_of_lengths(drawn, budget):
    longest, rows, tokens = sizes(drawn)
    chosen = companions(longest, rows, tokens, budget, None)
    order = sorted(range(len(longest)), key=lambda i: (longest[i], i))
    start = order.index(chosen[0])
    assert order[start : start + len(chosen)] == chosen


def test_the_neighbour_that_pads_less_comes_first():
    assert companions([10, 30, 11, 9], [1] * 4, [10, 30, 11, 9], 33, None) == [3, 0, 2]
    assert companions([10, 10, 10, 50], [1] * 4, [10, 10, 10, 50], 1000, 0) == [0, 1, 2]
    assert companions([500, 10], [1, 1], [500, 10], 100, None) == [0]


class Recorder:
    def __init__(self):
        self.batches, self.dropped, self.failures = [], [], 0

    def on_batch(self, info):
        self.batches.append(info)

    def on_dropped(self, reason, texts):
        self.dropped.append((reason, texts))

    def on_failure(self, texts):
        self.failures += texts


class FakeEngine:
    """Answers with a text's own number, and fails for batches with a text of ``bad``."""

    def __init__(self, *, bad=(), budget=64, gate=None):
        self.bad, self.batch_tokens, self.padding_worth = set(bad), budget, None
        self.gate, self.asked = gate, []

    def text(self, number, length=4):
        return Prepared(self, (np.full(length, number, dtype=np.int32),), None, 0.0)

    def answers(self, texts):
        if self.gate is not None:
            self.gate.wait(10)
        numbers = [int(text.rows[0][0]) for text in texts]
        self.asked.append(numbers)
        assert all(text.engine is self for text in texts)
        if self.bad & set(numbers):
            raise RuntimeError("this text breaks the model")
        return [SimpleNamespace(number=number) for number in numbers]


def outcomes(device, engine_of, texts, *, delays=None, deadline_s=60.0):
    """Submit ``texts`` (number, length), each ``delays[i]`` steps of the loop later; what each became."""
    recorder = Recorder()

    async def run():
        batcher = Batcher(recorder, device)
        futures = []
        for i, (number, length) in enumerate(texts):
            for _ in range(delays[i] if delays else 0):
                await asyncio.sleep(0)
            text = engine_of(i).text(number, length)
            futures += batcher.submit([text], time.monotonic() + deadline_s)
        done = await asyncio.wait_for(asyncio.gather(*futures), 30)
        assert batcher.tokens == 0
        assert batcher.size == 0
        batcher.stop()
        return [found.answer for found in done]

    return asyncio.run(run()), recorder


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3), st.booleans()), min_size=1, max_size=25),
    st.sets(st.integers(0, 24), max_size=3),
)
def test_whatever_the_order_each_gets_its_own_answer_and_bad_ones_harm_no_other(device, arrivals, bad):
    engines = [FakeEngine(bad=bad), FakeEngine(bad=bad)]
    texts = [(i, length) for i, (length, _, _) in enumerate(arrivals)]
    found, recorder = outcomes(
        device, lambda i: engines[arrivals[i][2]], texts, delays=[delay for _, delay, _ in arrivals]
    )
    for i, answer in enumerate(found):
        if i in bad:
            assert isinstance(answer, Refusal)
            assert (answer.status, answer.kind) == (424, "Backend")
        else:
            assert answer.number == i
    assert recorder.failures == len(bad & set(range(len(texts))))
    assert sum(info.texts for info in recorder.batches) == len(texts)


def test_what_arrives_while_a_batch_is_computed_makes_the_next_one(device):
    gate = threading.Event()
    engine, recorder = FakeEngine(gate=gate), Recorder()

    async def run():
        batcher = Batcher(recorder, device)
        first = batcher.submit([engine.text(0)], time.monotonic() + 60)
        while batcher.size:
            await asyncio.sleep(0.001)
        later = [batcher.submit([engine.text(i)], time.monotonic() + 60)[0] for i in range(1, 6)]
        assert batcher.tokens == 6 * 4
        gate.set()
        await asyncio.gather(*first, *later)
        batcher.stop()

    asyncio.run(run())
    assert engine.asked == [[0], [1, 2, 3, 4, 5]]
    assert [info.padded_tokens for info in recorder.batches] == [4, 20]


def test_texts_of_two_versions_are_never_computed_together(device):
    gate = threading.Event()
    old, new = FakeEngine(gate=gate), FakeEngine(gate=gate)

    async def run():
        batcher = Batcher(Recorder(), device)
        texts = [(old, 0), (old, 1), (new, 2), (old, 3), (new, 4)]
        futures = [
            batcher.submit([engine.text(number)], time.monotonic() + 60)[0] for engine, number in texts
        ]
        gate.set()
        answers = [found.answer.number for found in await asyncio.gather(*futures)]
        batcher.stop()
        return answers

    assert asyncio.run(run()) == [0, 1, 2, 3, 4]
    assert {number for batch in old.asked for number in batch} == {0, 1, 3}
    assert {number for batch in new.asked for number in batch} == {2, 4}


def test_late_and_abandoned_texts_are_not_computed(device):
    gate = threading.Event()
    engine, recorder = FakeEngine(gate=gate, budget=4), Recorder()

    async def run():
        batcher = Batcher(recorder, device)
        (first,) = batcher.submit([engine.text(0)], time.monotonic() + 60)
        while batcher.size:
            await asyncio.sleep(0.001)
        (late,) = batcher.submit([engine.text(1)], time.monotonic() - 1)
        (gone,) = batcher.submit([engine.text(2)], time.monotonic() + 60)
        (kept,) = batcher.submit([engine.text(3)], time.monotonic() + 60)
        gone.cancel()
        gate.set()
        await asyncio.gather(first, late, kept)
        assert late.result().answer.status == 424
        assert kept.result().answer.number == 3
        assert batcher.tokens == 0
        batcher.stop()

    asyncio.run(run())
    assert engine.asked == [[0], [3]]
    assert sorted(recorder.dropped) == [("gone", 1), ("late", 1)]


def test_after_the_end_waiting_texts_are_told_so(device):
    gate = threading.Event()
    engine = FakeEngine(gate=gate, budget=4)

    async def run():
        batcher = Batcher(Recorder(), device)
        (first,) = batcher.submit([engine.text(0)], time.monotonic() + 60)
        while batcher.size:
            await asyncio.sleep(0.001)
        (second,) = batcher.submit([engine.text(1)], time.monotonic() + 60)
        batcher.stop()
        (third,) = batcher.submit([engine.text(2)], time.monotonic() + 60)
        gate.set()
        found = [outcome.answer for outcome in await asyncio.gather(first, second, third)]
        assert found[0].number == 0
        assert [answer.status for answer in found[1:]] == [503, 503]

    asyncio.run(run())
    assert engine.asked == [[0]]


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), ValueError("x")])
def test_no_error_of_any_kind_ends_the_worker(device, error):
    class Breaking(FakeEngine):
        def answers(self, texts):
            if int(texts[0].rows[0][0]) == 0:
                raise error
            return super().answers(texts)

    engine = Breaking(budget=4)
    found, _ = outcomes(device, lambda _i: engine, [(0, 4), (1, 4)])
    assert found[0].status == 424
    assert found[1].number == 1


@given(st.lists(st.tuples(st.integers(1, 9_000), st.floats(0.001, 20.0)), min_size=1, max_size=30))
def test_the_pace_lies_between_the_slowest_and_the_fastest_batch(batches):
    pace = Pace(None)
    assert pace.seconds(100) == 0.0
    for tokens, busy_s in batches:
        pace.add(tokens, busy_s)
    found = 1_000 / pace.seconds(1_000)
    rates = [tokens / busy_s for tokens, busy_s in batches]
    assert min(rates) * 0.999 <= found <= max(rates) * 1.001


def test_the_pace_soon_follows_a_machine_that_slows_down_whatever_small_batches_say():
    pace = Pace(1_000.0)
    assert pace.seconds(2_000) == pytest.approx(2.0)
    for _ in range(100):
        pace.add(1, 0.0002)  # alone a text is fast: 5,000 tokens/s, for a fiftieth of a second
    assert pace.seconds(1_000) == pytest.approx(1.0, rel=0.1)
    pace.add(1_000, 2.0)
    pace.add(1_000, 2.0)
    pace.add(1_000, 2.0)
    assert pace.seconds(1_000) == pytest.approx(2.0, rel=0.15)
    pace.add(500_000, 50 * MEMORY_S)
    assert pace.seconds(1_000) == pytest.approx(0.5, rel=1e-6)


def test_what_others_compute_in_between_counts_for_the_pace(device):
    """A batch that had waited for another model's is told with that one's seconds."""
    slow = FakeEngine(budget=4, gate=SimpleNamespace(wait=lambda _: time.sleep(0.05)))
    _, recorder = outcomes(device, lambda _: slow, [(1, 4), (2, 4)])
    first, second = recorder.batches
    assert first.busy_s == pytest.approx(first.seconds)
    assert second.busy_s >= second.seconds

    async def two_models():
        recorders = [Recorder(), Recorder()]
        batchers = [Batcher(recorder, device) for recorder in recorders]
        futures = []
        for batcher in batchers:
            futures += batcher.submit([slow.text(1), slow.text(2)], time.monotonic() + 30)
        await asyncio.gather(*futures)
        for batcher in batchers:
            batcher.stop()
        return recorders

    for recorder in asyncio.run(two_models()):
        _, second = recorder.batches
        assert second.busy_s >= 1.8 * second.seconds  # the other model's turn lies between


@pytest.mark.parametrize(
    ("padding_worth", "timeout_s", "expected"),
    [
        (None, 5.0, [[0], [1, 3], [2]]),  # within a fifth of five seconds
        (None, 0.5, [[0], [1], [2], [3]]),
        (16, 5.0, [[0], [1], [2], [3]]),  # far more than a fifth of what 1 has waited
    ],
)
def test_what_came_much_later_overtakes_nobody(device, padding_worth, timeout_s, expected):
    """While the first batch is computed texts of 4, 8 and 4 tokens come, the last one .3 s later."""
    gate = threading.Event()
    engine = FakeEngine(budget=8, gate=gate)
    engine.padding_worth = padding_worth

    async def run():
        batcher = Batcher(Recorder(), device, timeout_s=timeout_s)
        futures = batcher.submit([engine.text(0, 8)], time.monotonic() + 60)
        for number, length in ((1, 4), (2, 8)):
            futures += batcher.submit([engine.text(number, length)], time.monotonic() + 60)
        await asyncio.sleep(0.3)
        futures += batcher.submit([engine.text(3, 4)], time.monotonic() + 60)
        gate.set()
        await asyncio.gather(*futures)
        batcher.stop()

    asyncio.run(run())
    assert engine.asked == expected


def test_texts_of_one_request_came_together(device):
    engine = FakeEngine(budget=64)
    engine.padding_worth = 16

    async def run():
        batcher = Batcher(Recorder(), device)
        texts = [engine.text(number) for number in range(9)]
        await asyncio.gather(*batcher.submit(texts, time.monotonic() + 60))
        batcher.stop()

    asyncio.run(run())
    assert engine.asked == [list(range(9))]
