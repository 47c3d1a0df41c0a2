"""Hostile clients, and a server at twice what it can do: the benchmark's trial, made short."""

import asyncio
import importlib
import importlib.util
import random

import pytest

from benchmarking import load_package
from serving import live_process
from trained import write_run


@pytest.fixture(scope="module", autouse=True)
def lib():
    """``benchmarks/lib`` under the name that ``test_benchmarks.py`` gives it, too."""
    load_package()


def test_hostile_requests_get_what_they_should(tmp_path):
    hostile = importlib.import_module("benchmark_lib.load_hostile")
    run = write_run(tmp_path, "bert")
    key = tmp_path / "key"
    key.write_text("a-key-of-some-length", encoding="utf-8")
    limits = ("--read-timeout", "1", "--payload-limit", "100000", "--threads", "1", "--key-file", key)
    with live_process(f"live={run}", *limits) as (_, address, _listener):
        target = hostile.Target(int(address.rsplit(":", 1)[1]), key.read_text(), 1.0, 100_000, "a card")
        rng = random.Random(0)

        async def all_at_once():
            works = [work for work in hostile.attacks(target) if work is not hostile.does_not_read]
            return await asyncio.gather(*(work(target, rng) for work in works))

        seen = asyncio.run(all_at_once())
    assert [one for one in seen if not one.good] == []
    assert len({one.kind for one in seen}) > 25


@pytest.mark.long
@pytest.mark.timeout(1_200)
def test_at_twice_its_capacity_no_answer_is_wrong(tmp_path):
    trial_of = importlib.import_module("benchmark_lib.load_trial")
    # The real MiniLM: of a tiny model a thousand requests a second would measure the clients.
    limits = {"timeout": 20.0, "read-timeout": 3.0, "payload-limit": 200_000}
    trial = trial_of.run_trial(
        tmp_path, "minilm", trial_of.Plan.of(2.5), classes=12, texts=40, threads=1, seed=1, limits=limits
    )
    found = trial.found
    assert found.faults == []
    assert found.compared > 100
    assert len(found.versions) == 2
    assert found.kills
    assert len({kind for kind, _ in found.hostile}) > 25
