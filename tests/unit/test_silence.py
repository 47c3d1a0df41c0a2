"""What is told of a worker, second by second, decides whether it hangs; no test here waits."""

import faulthandler
import os
import subprocess
import sys
import tempfile
import time

import psutil
import pytest

from snugtune.silence import ASLEEP_TIMES, LOOKS, TIMES, Silence, Usage, innermost, is_stopped, usage_of


def pulse(done, in_hand):
    return {"event": "pulse", "done": done, "in_hand": in_hand}


def phase(name):
    return {"event": "phase", "arguments": [name, None]}


def listen(silence, *words):
    """Hear events, and wait for as many seconds as a number says; returns whether it hangs at last."""
    for word in words:
        if isinstance(word, dict):
            silence.heard(word)
            continue
        for _ in range(word):
            silence.waited(1.0)
    return silence.hangs


@pytest.fixture
def silence():
    return Silence(100.0)


def test_work_on_the_device_that_does_not_end(silence):
    assert not listen(silence, phase("train"), pulse(0, True), 99)
    assert listen(silence, 1)
    assert silence.seconds == 100


def test_a_thread_that_goes_on_talking_proves_nothing(silence):
    assert listen(silence, pulse(3, True), *[10, pulse(3, True)] * 10)


def test_one_that_says_nothing_more_at_all_since_a_call_holds_the_interpreter(silence):
    assert listen(silence, pulse(3, True), 100)


def test_pieces_that_are_done_are_news(silence):
    assert not listen(silence, *[word for done in range(50) for word in (pulse(done, True), 90)])


@pytest.mark.parametrize("word", [{"event": "on_step", "arguments": [{}]}, phase("evaluate")])
def test_whatever_else_is_said_is_news(silence, word):
    assert not listen(silence, pulse(1, True), 99, word, 99)


def test_what_is_no_work_of_the_device_takes_as_long_as_it_takes(silence):
    """A thread computes: half a processor."""
    used = iter(Usage(seconds, 0) for seconds in range(0, 10**6, 2))
    silence.begin(lambda: next(used))
    assert not listen(silence, pulse(7, True), 50, pulse(8, False), 10_000)


def test_a_piece_that_ended_between_two_pulses_is_over(silence):
    silence.begin(lambda: None)
    assert not listen(silence, pulse(7, True), 99, pulse(7, False), 200, pulse(7, True), 99)


def test_who_sleeps_without_an_end_hangs_but_not_before_the_device_had_work(silence):
    silence.begin(lambda: Usage(5.0, 100))
    assert not listen(silence, pulse(0, False), 10_000)
    assert not listen(silence, pulse(1, False), int(ASLEEP_TIMES * 100))
    assert listen(silence, 2 * 100 // LOOKS + 4)


@pytest.mark.parametrize(
    "usage", [lambda n: Usage(0.0, n * 10**6), lambda n: Usage(-float(n), 0), lambda n: None]
)
def test_who_reads_or_lost_a_child_or_cannot_be_asked_does_not_sleep(silence, usage):
    counts = iter(range(10**6))
    silence.begin(lambda: usage(next(counts)))
    assert not listen(silence, pulse(1, False), 10_000)


def test_the_longest_silence_of_a_phase_is_surpassed_many_times_before_it_is_too_long(silence):
    listen(silence, phase("train"), pulse(0, True), 50, pulse(1, True))
    assert silence.longest_s == 50
    assert not listen(silence, int(50 * TIMES) - 1)
    assert listen(silence, 1)
    # Of another phase nothing is known yet.
    assert listen(silence, pulse(2, True), phase("evaluate"), pulse(2, True), 100)


def test_patience_doubles_with_each_worker_that_was_given_up(silence):
    assert listen(silence, pulse(0, True), 100)
    silence.given_up()
    silence.begin(None)
    assert not listen(silence, pulse(0, True), 199)
    assert listen(silence, 1)


def test_who_is_stopped_is_not_silent(silence):
    listen(silence, pulse(3, True), 99)
    for _ in range(1000):
        silence.waited(1.0, is_stopped=True)
    assert not silence.hangs
    assert listen(silence, 1)


def test_what_a_process_uses_and_whether_it_is_stopped():
    code = "import time; sum(range(3 * 10**6)); print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        found = usage_of(process.pid)
        assert found is not None
        assert found.cpu_s > 0
        assert usage_of(process.pid).cpu_s - found.cpu_s < 1
        assert not is_stopped(process.pid)
        if os.name != "nt":
            psutil.Process(process.pid).suspend()
            deadline = time.monotonic() + 30
            while not is_stopped(process.pid):
                assert time.monotonic() < deadline
        process.kill()
    assert usage_of(process.pid) is None
    assert not is_stopped(process.pid)


def test_where_the_main_thread_stands():
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        found = innermost(file.read())
    assert found.startswith("test_where_the_main_thread_stands (tests/unit/test_silence.py, line ")
    assert innermost("") is None
    two = (
        'Thread 0x1 (most recent call first):\n  File "/a/b/c/other.py", line 1 in other\n\n'
        'Current thread 0x2 (most recent call first):\n  File "C:\\x\\torch\\cuda\\init.py", line 9 in wait\n'
        '  File "/y.py", line 2 in main\n'
    )
    assert innermost(two) == "wait (torch/cuda/init.py, line 9)"
