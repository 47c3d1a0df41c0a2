"""A worker that dies is followed by another; what it tells and how it ends arrives as if it ran here."""

import inspect
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from fake_worker import commit

from snugtune import supervise, worker, worker_process
from snugtune.config import make_config
from snugtune.errors import ArtifactError, RunInterruptedError, SnugtuneError, TrainingError, UserInputError
from snugtune.progress import (
    Observer,
    PlanInfo,
    QuoteInfo,
    ResumedInfo,
    StepInfo,
    TrainedInfo,
    ValidationInfo,
)
from snugtune.relay import RelayObserver, read_event, replay
from snugtune.silence import Silence
from snugtune.supervise import Supervisor, WorkerError, has_gpu
from snugtune.train.recovery import Recovery, states_folder
from snugtune.units import GIB
from snugtune.way_back import WayBack

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

    def on_plan(self, info):
        self.calls.append(("on_plan", info))

    def on_quote(self, info):
        self.calls.append(("on_quote", info))

    def on_trained(self, info):
        self.calls.append(("on_trained", info))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


def supervisor(out, *starts, observer=None, waits=None, more=None, **settings):
    config = make_config({"train": json.dumps(starts), **settings})
    sleep = (lambda _s: None) if waits is None else waits.append
    return Supervisor(
        config, out, overwrite=False, observer=observer or Observer(), command=FAKE, sleep=sleep,
        **(more or {}),
    )  # fmt: skip


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
        FAKE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=worker_process.environment(),
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
        ("on_plan", PlanInfo(1.5, 14.5, True)),
        ("on_trained", TrainedInfo(1, 2, 3.0, stopped_early=True)),
    ]
    for name, *arguments in expected:
        getattr(relay, name)(*arguments)
    os.close(handle)
    for line in path.read_bytes().splitlines():
        replay(read_event(line), notes)
    assert notes.calls == expected
    # What goes over as a pulse now and then.
    assert {name for name, *_ in expected} | {"at_work"} == set(methods)


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


def impatient(least_s=1.0):
    """Looks fifty times a second, with a patience of so many seconds."""
    return {"silence": Silence(least_s), "look_s": 0.02}


@posix
def test_a_worker_that_hangs_on_the_device_is_followed_by_another(out, monkeypatch):
    monkeypatch.setattr(supervise, "grace_s", lambda _states: 0.2)
    notes, waits = Notes(), []
    starts = [["phase train", "commit 10", "pieces 2", "hang"], ["recovery"]]
    supervisor(out, *starts, observer=notes, waits=waits, more=impatient()).run()
    told = notes.said[0]
    assert re.match(
        r"The training process has got no further for \d\.\d s in the phase train, after no", told
    )
    # Where it stood, as faulthandler saw it.
    assert "it stood in act (tests/unit/fake_worker.py, line " in told
    assert told.endswith("It was ended. A new process goes on from step 10, as planned.")
    assert notes.said[1] == "1 0 1"
    assert listing(out.parent) == ["run"]


@posix
def test_a_worker_taken_for_one_that_hangs_leaves_as_it_should_and_the_next_has_more_time(out):
    notes = Notes()
    slow = ["pieces 1", "device 3", "say fast enough"]
    supervisor(out, slow, slow, observer=notes, waits=[], more=impatient(2.0)).run()
    assert notes.said[0].startswith("The training process has got no further for 2.")
    assert notes.said[1:] == ["fast enough"]


@posix
def test_work_that_goes_on_and_what_is_no_work_of_the_device_may_be_long(out):
    notes = Notes()
    long = ["device 0.4", "pieces 15", "wait 1.5", "say done"]
    supervisor(out, long, observer=notes, more=impatient(0.9)).run()
    assert notes.said == ["done"]


@posix
def test_a_worker_that_somebody_stopped_does_not_hang(out):
    notes = Notes()

    def wake():
        deadline = time.monotonic() + 30
        while not notes.said:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(2.0)
        os.kill(int(notes.said[0]), signal.SIGCONT)

    thread = threading.Thread(target=wake)
    thread.start()
    words = ["tell pid", "busy-and-stopped", "say awake"]
    more = impatient()
    supervisor(out, words, observer=notes, more=more).run()
    thread.join()
    assert notes.said[1:] == ["awake"]
    assert more["silence"].seconds < 1


@posix
def test_what_nobody_takes_is_no_silence(out):
    class Slow(Notes):
        def say(self, sentence):
            super().say(sentence)
            time.sleep(1.5)

    notes = Slow()
    supervisor(out, ["pieces 1", "say a", "pieces 1", "say b"], observer=notes, more=impatient()).run()
    assert notes.said == ["a", "b"]


@posix
def test_a_process_that_cannot_be_ended_ends_the_run_with_a_sentence(out, monkeypatch):
    """As one that waits in a driver; here it cannot because signals do not reach it."""
    monkeypatch.setattr(supervise, "grace_s", lambda _states: 0.1)
    monkeypatch.setattr(worker_process, "KILL_S", 0.1)
    held = []
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: held.append(process))  # noqa: PLW0108
    notes = Notes()
    words = ["commit 3", "pieces 1", "hang"]
    with pytest.raises(TrainingError, match=r"no further.*cannot be ended.*restart the machine"):
        supervisor(out, words, observer=notes, more=impatient()).run()
    assert "step 3 is kept" in notes.said[-1]
    held[0].send_signal(signal.SIGKILL)
    held[0].wait(30)
    for thread in threading.enumerate():
        if thread.name == "snugtune-worker-reader":
            thread.join(30)
    held[0].stdout.close()


def test_numbers_that_float16_does_not_hold_are_computed_in_float32_from_then_on(out):
    notes, waits = Notes(), []
    starts = [["format", "commit 7", "raise overflow"], ["format", "recovery", "exit 75"], ["format"]]
    supervisor(out, *starts, observer=notes, waits=waits).run()
    told = "Gradients overflow in float16. A new process goes on from step 7, as planned and in float32."
    assert notes.said[:3] == ["True False", told, "True True"]
    assert notes.said[3] == "1 0 1"
    assert "float32" not in notes.said[4]
    assert notes.said[5] == "True True"
    assert waits == [1.0]


ILLEGAL = "raise lost CUDA error: an illegal memory access was encountered"


@posix
def test_a_fault_of_the_card_that_repeats_itself_is_not_tried_again_and_again(out):
    notes, waits = Notes(), []
    at_7 = ["phase train", "commit 5", "step 6", "step 7", ILLEGAL]
    starts = [at_7, at_7[:1] + at_7[2:], at_7[:1] + at_7[2:], ["recovery", "tell cards"]]
    supervisor(out, *starts, observer=notes, waits=waits).run()
    told = [said for said in notes.said if "new process" in said]
    assert told[0].endswith(
        "illegal memory access was encountered. A new process goes on from step 5, as planned."
    )
    assert told[1].endswith("from step 5, with micro-batches of half the size, in 1 s.")
    assert "It is the same at the same place as before, so it would come there again." in told[2]
    assert told[2].endswith("A new process goes on from step 5, on the CPU.")
    assert waits == [1.0]
    assert "3 3 3" in notes.said
    assert notes.said[-1] == ""


@posix
def test_a_hang_that_repeats_itself_leads_to_the_cpu(out):
    notes, waits = Notes(), []
    at_7 = ["phase train", "step 7", "device 60"]
    supervisor(out, at_7, at_7, ["recovery"], observer=notes, waits=waits, more=impatient()).run()
    assert "it would come there again. A new process goes on from the beginning, on the CPU." in notes.said[1]
    assert notes.said[2] == "2 3 2"
    assert waits == [1.0]


@posix
@pytest.mark.parametrize(
    "second",
    [
        ["phase train", "step 9", ILLEGAL],
        ["phase probe", "step 7", ILLEGAL],
        ["phase train", "step 7", "raise lost CUDA error: device-side assert triggered"],
        ["phase train", "step 7", "raise RestartNeededError Memory ran out."],
    ],
)
def test_another_fault_or_place_is_tried_with_more_care(out, second):
    notes = Notes()
    starts = [["phase train", "step 7", ILLEGAL], second, ["recovery"]]
    supervisor(out, *starts, observer=notes, waits=[]).run()
    assert notes.said[-1] == "2 2 2"


def test_a_card_that_is_gone_may_come_back(out):
    notes, waits = Notes(), []
    gone = ["phase data", "raise lost CUDA error: all CUDA-capable devices are busy or unavailable"]
    supervisor(out, gone, gone, gone, ["recovery"], observer=notes, waits=waits).run()
    assert waits == [1.0, 5.0, 30.0]
    assert notes.said[-1] == "3 3 3"


def test_a_run_whose_card_fails_does_not_go_on_for_days_on_the_cpu(out):
    notes = Notes()
    at_7 = ["phase train", "step 7", ILLEGAL]
    days = 3 * 86_400.0 / 0.5
    starts = [["commit 500000", *at_7], at_7, at_7, [f"quote {days}", "work"]]
    with pytest.raises(
        TrainingError, match=r"illegal memory.*On the CPU, the rest would take about 3\.0 days"
    ):
        supervisor(out, *starts, observer=notes, waits=[], more=impatient()).run()
    assert "step 500000 is kept" in notes.said[-1]


def test_a_run_whose_card_fails_may_take_some_hours_on_the_cpu(out):
    at_7 = ["phase train", "step 7", ILLEGAL]
    notes = Notes()
    hours = ["quote 36000", "wait 0.5", "recovery"]
    supervisor(out, at_7, at_7, hours, observer=notes, waits=[], more=impatient()).run()
    assert notes.said[-1] == "2 3 2"


class Card:
    """A card's free memory as the supervisor sees it, by a clock on which each look takes a minute."""

    def __init__(self, *free_gib):
        self.free_gib, self.looks = list(free_gib), 0

    def free_bytes(self):
        self.looks += 1
        free = self.free_gib.pop(0) if len(self.free_gib) > 1 else self.free_gib[0]
        return None if free is None else int(free * GIB)

    def way_back(self):
        ticks = iter(range(0, 10**9, 30))
        return WayBack(self.free_bytes, lambda: float(next(ticks)))


NO_ROOM = "raise RestartNeededError Memory ran out in moving the model to the device (no more)."


@posix
def test_a_run_that_lacked_card_memory_comes_back_to_the_card(out):
    notes, waits = Notes(), []
    full = ["plan 3.0", NO_ROOM]
    starts = [["plan 12.0", NO_ROOM], full, full, ["tell cards", "phase train", "steps 1"],
              ["tell cards", "recovery"]]  # fmt: skip
    more = {"way_back": Card(0.5, 0.5, 2.0, 8.0).way_back(), **impatient(30)}
    supervisor(out, *starts, observer=notes, waits=waits, more=more).run()
    back = next(said for said in notes.said if "free again" in said)
    assert back.startswith("The card has 8.0 GiB free again. A new process goes on from step ")
    assert back.endswith(", with micro-batches of half the size.")
    # From the state that was saved on the way out, with the card in sight.
    told = [call[1].step for call in notes.calls if call[0] == "on_step"]
    assert f"step {told[-1]}," in back or f"step {told[-1] + 1}," in back
    assert notes.said[-1] == "4 1 4"
    assert waits == [1.0, 5.0, 30.0]
    assert listing(out.parent) == ["run"]


@posix
def test_a_way_back_that_fails_leads_straight_to_the_cpu_again(out):
    notes, waits = Notes(), []
    starts = [[NO_ROOM]] * 3 + [["phase train", "steps 1"], [NO_ROOM], ["recovery"]]
    more = {"way_back": Card(0.5, 8.0).way_back(), **impatient(30)}
    supervisor(out, *starts, observer=notes, waits=waits, more=more).run()
    assert notes.said[-1] == "5 3 5"
    assert notes.said[-2].endswith("on the CPU.")
    assert waits == [1.0, 5.0, 30.0]


@posix
@pytest.mark.parametrize("free", [(0.5, 0.7), (None, 8.0), (0.5, 2.9)])
def test_a_run_stays_on_the_cpu_where_the_card_has_no_room_for_the_plan(out, free):
    notes, card = Notes(), Card(*free)
    steps = ["phase train", *(f"step {i}" for i in range(1, 9))]
    words = [word for step in steps for word in (step, "commit 8", "wait 0.1")]
    starts = [["plan 3.0", NO_ROOM]] * 3 + [[*words, "recovery"]]
    supervisor(
        out, *starts, observer=notes, waits=[], more={"way_back": card.way_back(), **impatient(30)}
    ).run()
    assert notes.said[-1] == "3 3 3"
    assert card.looks > 3 or free[0] is None


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
