"""A worker that dies is followed by another; what it tells and how it ends arrives as if it ran here."""

import inspect
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from fake_worker import commit

from snugtune import supervise, worker
from snugtune.config import make_config
from snugtune.errors import ArtifactError, RunInterruptedError, SnugtuneError, TrainingError, UserInputError
from snugtune.progress import Observer, QuoteInfo, ResumedInfo, StepInfo, TrainedInfo, ValidationInfo
from snugtune.relay import RelayObserver, read_event, replay
from snugtune.supervise import Supervisor, WorkerError, has_gpu
from snugtune.train.recovery import Recovery, states_folder

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to speak of")


class Notes(Observer):
    """Keeps every call."""

    def __init__(self):
        self.calls = []

    @property
    def said(self):
        return [arguments[0] for name, *arguments in self.calls if name == "say"]

    def say(self, sentence):
        self.calls.append(("say", sentence))

    def phase(self, name, total=None):
        self.calls.append(("phase", name, total))

    def advance(self, done):
        self.calls.append(("advance", done))

    def on_step(self, info):
        self.calls.append(("on_step", info))

    def on_validation(self, info):
        self.calls.append(("on_validation", info))

    def on_resumed(self, info):
        self.calls.append(("on_resumed", info))

    def on_quote(self, info):
        self.calls.append(("on_quote", info))

    def on_trained(self, info):
        self.calls.append(("on_trained", info))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


def supervisor(out, *starts, observer=None, waits=None, **settings):
    config = make_config({"train": json.dumps(starts), **settings})
    sleep = (lambda _s: None) if waits is None else waits.append
    return Supervisor(
        config, out, overwrite=False, observer=observer or Observer(), command=FAKE, sleep=sleep
    )


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_call_arrives_in_order_and_what_libraries_print_does_not(out, capfd):
    notes = Notes()
    assert supervisor(out, ["say Grüße", "calls", "say last"], observer=notes).run() == out
    assert notes.said == ["Grüße", "last"]
    names = [name for name, *_ in notes.calls]
    assert names == ["say", "phase", "on_step", "on_validation", "phase", "advance", "say"]
    step, validation = notes.calls[2][1], notes.calls[3][1]
    assert isinstance(step, StepInfo)
    assert math.isnan(step.loss)
    assert step.elapsed_s == 0.1 + 0.2
    assert validation == ValidationInfo(1, 0.5, 0.75, math.inf, True)
    assert notes.calls[1] == ("phase", "train", 3)
    assert listing(out) == ["run.json"]
    assert listing(out.parent) == ["run"]
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "a library prints" in printed.err


def test_a_setting_that_was_left_open_stays_open_for_the_worker(out):
    """Given, it bounds micro-batches on a GPU too."""
    asked = supervisor(out, [], r=8)
    assert asked._job()["config"] == {"train": "[[]]", "r": 8}
    assert make_config(asked._job()["config"]) == asked.config


@posix
def test_the_last_worker_sees_no_card(out, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    notes = Notes()
    dies = ["tell cards", "signal SIGKILL"]
    supervisor(out, dies, dies, dies, ["tell cards"], observer=notes, waits=[]).run()
    assert [said for said in notes.said if said in ("", "0")] == ["0", "0", "0", ""]


def test_who_is_told_to_stop_has_time_for_a_state_of_the_size_there_is(tmp_path):
    assert worker.grace_s(tmp_path) == worker.GRACE_S
    commit(tmp_path, 3)
    with (tmp_path / "000001-step-3" / "state.safetensors").open("wb") as file:
        file.truncate(int(20 * worker.STATE_BYTES_PER_S))
    assert worker.grace_s(tmp_path) == pytest.approx(worker.GRACE_S + 20, abs=0.1)


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_closed_terminal_stops_a_worker_as_it_should_be_stopped(out, number):
    job = {
        "config": {"train": json.dumps([["work"]])}, "out": str(out), "overwrite": False,
        "recovery": Recovery(states_folder(out)).to_json(),
    }  # fmt: skip
    with subprocess.Popen(
        FAKE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=supervise.environment(),
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 - there is one thread
    ) as process:  # fmt: skip
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        assert b"working" in process.stdout.readline()
        process.send_signal(number)
        assert process.wait(30) == worker.TOLD_TO_STOP
    assert listing(out.parent) == []


@posix
def test_nohup_goes_on_when_the_terminal_is_closed():
    code = "import signal; from snugtune import worker; worker._run = lambda *_: 0; "
    code += "signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    code += "ignored = lambda: signal.getsignal(signal.SIGHUP) == signal.SIG_IGN; "
    code += "worker._take_standard_streams = lambda: (print(ignored()), exit(0)); "
    code += "worker.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


def test_no_method_of_an_observer_is_forgotten(tmp_path):
    methods = [name for name, _ in inspect.getmembers(Observer, inspect.isfunction)]
    assert set(methods) == {name for name in vars(RelayObserver) if name in methods}
    path, notes = tmp_path / "lines", Notes()
    handle = os.open(path, os.O_CREAT | os.O_WRONLY)
    relay = RelayObserver(handle)
    expected = [
        ("say", "a"),
        ("phase", "b", None),
        ("advance", 1),
        ("on_step", StepInfo(1, 2, 3.0, 4.0, 5.0, 6.0, 7.0)),
        ("on_validation", ValidationInfo(1, 2.0, 3.0, 4.0, False)),
        ("on_resumed", ResumedInfo(1, 2, 3.0, [{"step": 1, "loss": 0.1 + 0.2}], [])),
        ("on_quote", QuoteInfo(1.0, 2.0, 3.0, 4.0, {"usd_per_hour": 0.5}, None)),
        ("on_trained", TrainedInfo(1, 2, 3.0, stopped_early=True)),
    ]
    for name, *arguments in expected:
        getattr(relay, name)(*arguments)
    os.close(handle)
    for line in path.read_bytes().splitlines():
        replay(read_event(line), notes)
    assert notes.calls == expected
    assert {name for name, *_ in expected} == set(methods)


@pytest.mark.parametrize(
    "line", [b"", b"warning!", b"7", b"[]", b'{"event": "what"}', b'{"a": 1}', b"\xff\n"]
)
def test_lines_that_are_not_ours(line):
    assert read_event(line) == {}


def test_the_settings_arrive_as_they_are(out):
    notes = Notes()
    settings = {
        "learning_rate": 0.1 + 0.2,
        "target_modules": ("query", "value"),
        "init_lora_weights": "pissa",
    }
    run = supervisor(out, ["tell config"], observer=notes, **settings)
    run.run()
    assert notes.said == [run.config.model_dump_json()]


@posix
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_killed_worker_is_followed_by_another(out, name):
    notes, waits = Notes(), []
    starts = [[f"signal {name}"], ["recovery"]]
    supervisor(out, *starts, observer=notes, waits=waits).run()
    assert notes.said[1:] == ["1 1 1"]
    assert f"was killed ({name})" in notes.said[0]
    assert "goes on from the beginning, with micro-batches of half the size, in 1 s" in notes.said[0]
    assert waits == [1.0]
    assert listing(out.parent) == ["run"]


@posix
def test_progress_keeps_the_caution_and_waits_for_nothing(out):
    notes, waits = Notes(), []
    starts = [
        ["commit 10", "signal SIGKILL"],
        ["recovery", "commit 20", "raise RestartNeededError Memory leaked."],
        ["recovery", "exit 75"],
        ["recovery", "commit 30", "exit 75"],
        ["recovery"],
    ]
    supervisor(out, *starts, observer=notes, waits=waits).run()
    assert [said for said in notes.said if said[0].isdigit()] == ["1 0 1", "2 0 2", "3 1 3", "4 1 4"]
    assert waits == [1.0]
    restarts = [said for said in notes.said if not said[0].isdigit()]
    assert restarts[1] == "Memory leaked. A new process goes on from step 20, as planned."
    assert restarts[2].endswith("goes on from step 20, with micro-batches of half the size, in 1 s.")
    assert listing(out.parent) == ["run"]


def test_without_progress_it_gives_up_in_the_end(out):
    notes, waits = Notes(), []
    starts = [["recovery", "raise RestartNeededError Memory ran out in training (no more)."]] * 4
    with pytest.raises(TrainingError, match=r"gets no further.*on the CPU: Memory ran out.*max_length"):
        supervisor(out, *starts, observer=notes, waits=waits).run()
    assert [said for said in notes.said if said[0].isdigit()] == ["0 0 0", "1 1 1", "2 2 2", "3 3 3"]
    assert waits == [1.0, 5.0, 30.0]
    assert listing(out.parent) == []


def test_a_state_left_by_another_run_is_no_progress_and_hides_none(out):
    notes = Notes()
    commit(states_folder(out), 1000)
    manifest = next(states_folder(out).glob("*/manifest.json"))
    manifest.write_text(manifest.read_text().replace("fake", "another run"))
    starts = [["exit 75"], ["recovery", "commit 5", "exit 75"], ["recovery"]]
    supervisor(out, *starts, observer=notes).run()
    assert [said for said in notes.said if said[0].isdigit()] == ["1 1 1", "2 1 2"]


def test_memory_that_runs_out_where_nothing_guards_it(out):
    notes = Notes()
    supervisor(out, ["raise MemoryError no room"], ["recovery"], observer=notes).run()
    assert notes.said[0].startswith("Memory ran out (no room). A new process goes on from the beginning")
    assert notes.said[1] == "1 1 1"


@pytest.mark.parametrize("kind", [UserInputError, TrainingError, ArtifactError, RunInterruptedError])
def test_errors_of_ours_arrive_as_they_were_raised(out, kind):
    with pytest.raises(SnugtuneError, match=r"^The column 'Grüße' is missing\.$") as caught:
        supervisor(out, [f"raise {kind.__name__} The column 'Grüße' is missing."]).run()
    assert type(caught.value) is kind
    assert listing(out.parent) == []


def test_an_error_nobody_foresaw_brings_its_traceback(out):
    with pytest.raises(WorkerError, match=r"(?s)Traceback.*fake_worker.py.*KeyError: 'abc'"):
        supervisor(out, ["raise KeyError abc"]).run()


def test_a_worker_that_ends_in_the_middle_without_a_word_is_followed_by_another(out):
    notes = Notes()
    supervisor(out, ["say training", "exit 1"], ["recovery"], observer=notes).run()
    assert notes.said[1].startswith("The training process ended with exit code 1 and did not say why. A new")
    assert notes.said[2] == "1 1 1"


def test_the_state_that_training_begins_with_is_no_progress(out):
    notes = Notes()
    supervisor(out, ["commit 0", "exit 75"], ["recovery"], observer=notes).run()
    assert "1 1 1" in notes.said


def test_a_worker_that_says_nothing(out):
    with pytest.raises(WorkerError, match="exit code 9 and said nothing"):
        supervisor(out, ["exit 9"]).run()
    with pytest.raises(WorkerError, match="exit code 0 and said nothing"):
        supervisor(out, ["exit 0"]).run()


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_worker_that_someone_stopped_is_not_started_again(out, name):
    with pytest.raises(RunInterruptedError, match="told to stop by a signal"):
        supervisor(out, [f"signal {name}"]).run()


def test_states_are_kept_where_the_run_is_not_complete(out):
    notes = Notes()
    with pytest.raises(TrainingError, match="not finite"):
        supervisor(out, ["commit 40", "raise TrainingError The loss is not finite."], observer=notes).run()
    assert notes.said[-1].startswith(f"The training state of step 40 is kept in {states_folder(out)}")
    assert listing(out.parent) == [".run.states"]
    supervisor(out, ["recovery"]).run()
    assert listing(out.parent) == ["run"]


def test_an_observer_that_raises_ends_the_worker(out):
    class Nervous(Notes):
        def say(self, sentence):
            super().say(sentence)
            if sentence == "working":
                raise ZeroDivisionError

    notes = Nervous()
    with pytest.raises(ZeroDivisionError):
        supervisor(out, ["tell pid", "work"], observer=notes).run()
    assert not psutil.pid_exists(int(notes.said[0]))
    assert listing(out.parent) == []


def test_beside_the_main_thread(out):
    thread = threading.Thread(target=supervisor(out, ["exit 75"], ["say a"]).run)
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    thread.join()
    assert listing(out.parent) == ["run"]
    assert signal.getsignal(signal.SIGINT) == before


PARENT = """
import sys
from test_supervise import Notes, supervisor
class Printer(Notes):
    def say(self, sentence): print(sentence, flush=True)
out, *words = sys.argv[1:]
try:
    supervisor(__import__("pathlib").Path(out), words, ["say restarted"], observer=Printer()).run()
except KeyboardInterrupt:
    sys.exit(130)
print("torch" in sys.modules)
"""


class Parent:
    """A supervisor in a process of its own, with its worker."""

    def __init__(self, out, *words):
        # A session of its own, as a terminal would give it: Ctrl-C goes to the whole group.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", PARENT, str(out), "tell pid", *words]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        self.worker = int(self.process.stdout.readline())

    def until(self, word):
        for line in self.process.stdout:
            if line.strip() == word:
                return
        raise AssertionError(f"{word} was never said")

    def rest(self):
        return self.process.communicate(timeout=60)[0].split("\n")

    def press_ctrl_c(self):
        os.killpg(self.process.pid, signal.SIGINT)

    def worker_is_gone(self):
        try:
            return psutil.Process(self.worker).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


@posix
@pytest.mark.parametrize("who", ["both", "the parent alone"])
def test_ctrl_c_keeps_what_was_learned(out, who):
    parent = Parent(out, "train", "save")
    parent.until("training")
    if who == "both":
        parent.press_ctrl_c()
    else:
        parent.process.send_signal(signal.SIGINT)
    assert parent.rest()[:3] == ["stopping", "saved", "False"]
    assert parent.process.returncode == 0
    assert listing(out.parent) == ["run"]


@posix
def test_ctrl_c_twice_gives_up(out):
    parent = Parent(out, "train", "work")
    parent.until("training")
    parent.press_ctrl_c()
    parent.until("working")
    parent.press_ctrl_c()
    parent.rest()
    assert parent.process.returncode == 130
    assert parent.worker_is_gone()
    assert listing(out.parent) == []


@posix
def test_sigterm_is_passed_on(out):
    parent = Parent(out, "commit 3", "work")
    parent.until("working")
    parent.process.terminate()
    assert "step 3 is kept" in parent.rest()[0]
    assert parent.process.returncode == -signal.SIGTERM
    assert parent.worker_is_gone()
    assert listing(out.parent) == [".run.states"]


@posix
def test_a_parent_that_is_killed_leaves_no_orphan(out):
    parent = Parent(out, "work")
    parent.until("working")
    parent.process.kill()
    deadline = time.monotonic() + 30
    while not parent.worker_is_gone():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.rest()
    assert listing(out.parent) == []


def test_by_default_only_a_gpu_is_supervised(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert not has_gpu(tmp_path)
    (tmp_path / "nvidia-uvm").touch()
    assert not has_gpu(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert has_gpu(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert not has_gpu(tmp_path)


def test_who_watches(monkeypatch, out):
    watched = []
    monkeypatch.setattr(Supervisor, "run", lambda self: watched.append(self.out))
    monkeypatch.setattr(supervise, "has_gpu", lambda: True)
    supervise.fit(make_config({"train": "a.csv"}), out)
    assert watched == [out]
    with pytest.raises(UserInputError, match=r"a\.csv"):
        supervise.fit(make_config({"train": "a.csv"}), out, supervised=False)
    monkeypatch.setattr(supervise, "has_gpu", lambda: False)
    with pytest.raises(UserInputError, match=r"a\.csv"):
        supervise.fit(make_config({"train": "a.csv"}), out)
    assert watched == [out]
