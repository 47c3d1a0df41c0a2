"""Whatever is done to a file: a correct result or one clear sentence, within limits, and nothing half done.

``fuzz/cases.py`` says what is damaged and how, ``fuzz/targets.py`` what is called and must hold, and
``fuzz/child.py`` what else is watched: memory, processor time, files, connections, programs and pickles.
A failure prints its case; ``run(Case(...))`` in a test of one's own repeats it.
"""

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzz.cases import OPERATIONS, TARGETS, Case
from fuzz.pool import Runner
from fuzz.samples import write_samples

CASES = {
    "csv": 1_000,
    "json": 800,
    "xlsx": 1_500,
    "parquet": 800,
    "sqlite": 300,
    "yaml": 700,
    "reviews": 200,
    "dataset": 100,
    "run": 900,
    "model": 200,
}
"""Of the long test: 6,500."""

QUICK = {
    "csv": 15,
    "json": 15,
    "xlsx": 25,
    "parquet": 12,
    "sqlite": 8,
    "yaml": 15,
    "reviews": 5,
    "run": 15,
    "model": 3,
}

ALL = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("fuzz") / "samples")


@pytest.fixture(scope="module")
def run(samples):
    with Runner(samples, samples.parent / "home") as runner:
        yield runner


def cases(family):
    """Any damage to any sample of ``family``: one to four operations."""
    ways = st.tuples(st.sampled_from(sorted(OPERATIONS[family])), st.integers(0, 2**32 - 1))
    return st.builds(
        Case,
        st.just(family),
        st.sampled_from(TARGETS[family]),
        st.integers(0, 3),
        st.lists(ways, min_size=1, max_size=4).map(tuple),
    )


def told(family, n, run):
    """Run ``n`` cases and count what became of them."""
    outcomes = Counter()

    @settings(ALL, max_examples=n)
    @given(cases(family))
    def each(case):
        found = run(case)
        outcomes[found["outcome"]] += 1
        assert found["outcome"] != "fault", f"{case}\n{found['told']}"

    each()
    return outcomes


@pytest.mark.parametrize("family", sorted(QUICK))
def test_some_damaged_files(family, run):
    rng = random.Random(0)
    names = sorted(OPERATIONS[family])
    for i in range(QUICK[family]):
        ways = ((rng.choice(names), rng.randrange(2**32)),)
        case = Case(family, TARGETS[family][i % len(TARGETS[family])], i, ways)
        found = run(case)
        assert found["outcome"] != "fault", f"{case}\n{found['told']}"


FOUND = (
    # A count of bits that becomes an allocation of 2^61 bytes ends the process in which polars 2.1 reads it.
    Case("parquet", "read", 0, (("page", 2517396711),)),
    # A panic of the tokenizers library, which is no Exception.
    Case("run", "load", 1, (("json_field", 4024580530),)),
    # A configuration that speaks of very many layers, all of which Transformers would make.
    Case("run", "load", 0, (("json_field", 505),)),
    # A tokenizer whose configuration is gone, and with it the token to pad with.
    Case("run", "load", 0, (("file_gone", 0), ("file_gone", 16))),
    # Lists that hold each other, twenty of them in one message.
    Case("yaml", "config", 0, (("emptied", 1), ("yaml_pieces", 3733))),
)


@pytest.mark.parametrize("case", FOUND, ids=lambda case: case.family)
def test_what_was_found_before(case, run):
    found = run(case)
    assert found["outcome"] != "fault", found["told"]


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("family", sorted(CASES))
def test_thousands_of_damaged_files(family, run):
    outcomes = told(family, CASES[family], run)
    assert outcomes.total() >= 0.95 * CASES[family], outcomes
    assert outcomes["refused"], "nothing was refused, so nothing was damaged"
    assert outcomes["result"], "nothing was read, so nothing was tested behind the door"


def test_the_watch_sees_what_must_not_happen(samples):
    """The harness itself: each kind of fault is found, and the next case is run all the same."""
    with Runner(samples, samples.parent / "watched", cpu_s=6) as run:
        for target, word in (
            ("prints_traceback", "ZeroDivisionError"),
            ("connects", "socket.connect"),
            ("unpickles", "code was run"),
            ("leaves_file", "left stray"),
            ("writes_elsewhere", "wrote /"),
            ("hoards", "MiB of memory"),
            ("dies", "process died"),
            ("spins", "processor time"),
            ("starts_program", "subprocess.Popen"),
        ):
            found = run(Case("yaml", target, 0, (("yaml_only", 1),)))
            assert found["outcome"] == "fault", target
            assert word in found["told"], found["told"]
        assert run(Case("yaml", "config", 0, ()))["outcome"] == "result"
