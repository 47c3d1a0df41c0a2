"""Run many cases and list the faults found: ``python -m fuzz.hunt FAMILY CASES [SEED]`` in ``tests/``.

The tests stop at their first fault and make it small; this goes on, and tells each kind of fault once.
"""

import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from fuzz.cases import OPERATIONS, TARGETS, Case
from fuzz.pool import Runner
from fuzz.samples import write_samples


def drawn(family, rng):
    """A case of ``family``, by chance."""
    names = sorted(OPERATIONS[family])
    ways = tuple((rng.choice(names), rng.randrange(2**32)) for _ in range(rng.choice((1, 1, 1, 2, 3))))
    return Case(family, rng.choice(TARGETS[family]), rng.randrange(4), ways)


def kind_of(told):
    """What two tracebacks of one fault have in common."""
    ours = re.findall(r'File "[^"]*snugtune/([^"]+)", line (\d+)', told)[-1:]
    last = re.sub(r"\d+|'[^']*'|\"[^\"]*\"", "#", (told.strip().splitlines() or [""])[-1])
    return f"{ours} {last[:120]}"


def _short(told):
    """The frames in our own code, and the end."""
    frames = re.findall(r'File "([^"]*)", line (\d+), in (.*)', told)
    where = [
        f"  {file.rpartition('snugtune/')[2]}:{line} {name}"
        for file, line, name in frames
        if "/snugtune/" in file
    ]
    last = [f"  {'/'.join(file.split('/')[-2:])}:{line} {name}" for file, line, name in frames[-2:]]
    return "\n".join([*where[-6:], "  ...", *last, *(line[:300] for line in told.strip().splitlines()[-3:])])


def main(family, cases, seed=0):
    """Hunt in ``family``."""
    with tempfile.TemporaryDirectory(prefix="snugtune-fuzz-") as folder:
        samples = Path(folder, "samples") if len(sys.argv) < 5 else Path(sys.argv[4])
        if not samples.is_dir():
            write_samples(samples)
        outcomes, kinds, first = Counter(), Counter(), {}
        begun = time.monotonic()
        rng = random.Random(int(seed))
        with Runner(samples, Path(folder, "home")) as run:
            for _ in range(int(cases)):
                case = drawn(family, rng)
                start = time.monotonic()
                told = run(case)
                took = time.monotonic() - start
                outcomes[case.target, told["outcome"]] += 1
                if took > 5 and told["outcome"] != "fault":
                    print(f"slow: {took:.1f} s {told['outcome']} {told['grown_mib']} MiB {case}", flush=True)
                if told["outcome"] == "fault":
                    kind = kind_of(told["told"])
                    kinds[kind] += 1
                    first.setdefault(kind, (case, told["told"]))
        for kind, (case, told) in first.items():
            print(f"\n=== {kinds[kind]} x {kind[:300]}\n{case}\n{_short(told)}")
        print(f"\n{family}: {dict(outcomes)} in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:4])
