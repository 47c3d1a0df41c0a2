import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# One thread each: the models are tiny, and on a busy machine threads that wait for each other take minutes.
os.environ["OMP_NUM_THREADS"] = "1"
# Derived models of the tests do not belong into the user's cache.
os.environ["SNUGTUNE_CACHE"] = tempfile.mkdtemp(prefix="snugtune-tests-")
atexit.register(shutil.rmtree, os.environ["SNUGTUNE_CACHE"], ignore_errors=True)

# A shell's background job ignores Ctrl-C, and so would the programs that are to be ended by it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more of the machine's other work than of the code.
usual = settings.get_profile("ci" if os.environ.get("CI") else "default")
settings.register_profile("snugtune", usual, deadline=None)
settings.load_profile("snugtune")

REAL_DATA = Path(__file__).resolve().parents[1] / "../shared/data"
FILLER = "please help me the bank did not answer my call about it yesterday morning again"


@pytest.fixture(scope="session")
def real_data():
    """The folder of the real data sets, not part of the repository; mark such tests ``realdata``."""
    if not REAL_DATA.is_dir():
        pytest.skip("the real data sets are not here: they belong in ../shared/data, beside the repository")
    return REAL_DATA.resolve()


@pytest.fixture
def table(tmp_path):
    """A small CSV whose label can be read off the text, with some of what real tables have."""
    topics = {"Card lost": "card stolen wallet", "Fees": "fee charged twice", "Löan": "loan interest rate"}
    words = FILLER.split()
    lines = ["Text;Category"]
    for i in range(120):
        label = list(topics)[i % 3]
        text = " ".join([*topics[label].split()[: 1 + i % 3], *words[i % 7 : i % 7 + 4], f"ref{i}"])
        lines.append(f'"{text}\nsecond line";{label}')
    lines += [";Fees", "no label here;", lines[1], "shouting fee;FEES"]
    path = tmp_path / "complaints.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
