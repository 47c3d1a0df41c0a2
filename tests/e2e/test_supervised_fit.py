"""The real job in workers that are killed on the way ends as the undisturbed one does, to the last bit."""

import json
import os
import signal
import sys

import numpy as np
import polars as pl
import psutil
import pytest
from safetensors.numpy import load_file

from snugtune.config import make_config
from snugtune.progress import Observer
from snugtune.silence import Silence
from snugtune.supervise import Supervisor
from tiny import texts_and_labels, write_model

UNDISTURBED = """
from snugtune.worker import main
main()
"""

DYING_AT_STEP_12 = """
import os, signal
from snugtune.train.checkpoints import Checkpoints
commit = Checkpoints.commit_behind
def commit_and_die(self, state, copy_s):
    commit(self, state, copy_s)
    if state.step == 12:
        assert self.finished(wait=True) is None
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.due, Checkpoints.commit_behind = lambda self: True, commit_and_die
"""


HANGING_AFTER_STEP_12 = """
import time
from snugtune.train import engine
from snugtune.train.checkpoints import Checkpoints
commit, add_gradients = Checkpoints.commit_behind, engine.add_gradients
committed = []
def note(self, state, copy_s):
    commit(self, state, copy_s)
    committed.append(state.step)
def hang(*args, **kwargs):
    if committed[-1:] == [12]:
        time.sleep(600)
    return add_gradients(*args, **kwargs)
Checkpoints.due, Checkpoints.commit_behind, engine.add_gradients = lambda self: True, note, hang
"""


class Killer(Observer):
    """Kills a worker while the run folder is being written, once."""

    def __init__(self):
        self.said, self.steps, self.has_killed = [], [], False

    def say(self, sentence):
        self.said.append(sentence)

    def on_step(self, info):
        self.steps.append(info.step)

    def phase(self, name, total=None):
        if name == "save" and not self.has_killed:
            self.has_killed = True
            # Not simply the first child: libraries start some of their own, such as resource trackers.
            children = psutil.Process(os.getpid()).children()
            (worker,) = (child for child in children if "snugtune.worker" in " ".join(child.cmdline()))
            worker.kill()


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    texts, labels = texts_and_labels(200)
    pl.DataFrame({"text": [f"{text} {i % 10}" for i, text in enumerate(texts)], "label": labels}).write_csv(
        folder / "table.csv"
    )
    return make_config(
        {
            "train": str(folder / "table.csv"), "text": ("text",), "label": "label", "num_train_epochs": 2,
            "duplicates": "keep", "effective_batch_size": 16, "hidden_dropout": 0.1,
            "probe_start": False, "head_learning_rate": 1e-2,
            "model": str(write_model(folder / "model")),
        }
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="nothing tells there where a process stands")
def test_a_real_worker_that_hangs_is_noticed_and_followed(settings, tmp_path):
    """The next one goes on behind step 12, and so does not hang."""
    notes = Killer()
    notes.has_killed = True
    command = (sys.executable, "-c", HANGING_AFTER_STEP_12 + UNDISTURBED)
    supervisor = Supervisor(
        settings, tmp_path / "run", overwrite=False, observer=notes, command=command, silence=Silence(10.0),
        look_s=0.1,
    )  # fmt: skip
    supervisor.run()
    (told,) = [said for said in notes.said if "A new process goes on" in said]
    assert " in the phase train" in told
    assert "; it stood in hang (" in told
    assert told.endswith("from step 12, as planned.")
    assert notes.steps == list(range(1, 21))
    record = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert len(record["memory"]["restarts"]) == 1


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to speak of")
def test_killed_twice_it_trains_the_same_model(settings, tmp_path):
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    killer = Killer()
    for out, observer, code in (
        (disturbed, killer, DYING_AT_STEP_12 + UNDISTURBED),
        (undisturbed, Observer(), UNDISTURBED),
    ):
        command = (sys.executable, "-c", code)
        supervisor = Supervisor(settings, out, overwrite=False, observer=observer, command=command)
        assert supervisor.run() == out

    restarts = [said for said in killer.said if "A new process goes on" in said]
    assert len(restarts) == 2
    assert all("was killed (SIGKILL)" in said and said.endswith("as planned.") for said in restarts)
    # The second worker goes on from step 12, the third has nothing left to train.
    assert killer.steps == list(range(1, 21))

    records = [json.loads((run / "run.json").read_text("utf-8")) for run in (disturbed, undisturbed)]
    assert records[0]["metrics"] == records[1]["metrics"]
    assert records[0]["training"]["best_step"] == records[1]["training"]["best_step"] == 20
    assert [len(record["memory"]["restarts"]) for record in records] == [2, 0]
    weights = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (disturbed, undisturbed)]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disturbed", "undisturbed"]
