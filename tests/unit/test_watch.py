"""The journal that a run writes, and what is seen of it from another window."""

import io
import json
import os
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from rich.console import Console
from typer.testing import CliRunner

from snugtune.cli import app
from snugtune.cli.watch import sparkline, view
from snugtune.errors import SnugtuneError, UserInputError
from snugtune.files import staged_folder
from snugtune.memory.meter import PeakMeter
from snugtune.progress import Observer, PhaseClock, StepInfo, Together, ValidationInfo
from snugtune.train.engine import Services
from snugtune.train.journal import Journal
from snugtune.train.live import Live, Watcher
from tiny_training import CPU, train_tiny


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_journal_holds_the_very_lines_of_the_finished_run(tmp_path):
    clock = PhaseClock(Together(Observer(), Journal(tmp_path)))
    with PeakMeter(CPU) as meter:
        result, _ = train_tiny(
            {"num_train_epochs": 2, "effective_batch_size": 8},
            services=lambda _: Services(clock, meter=meter),
        )
    assert lines(tmp_path / "metrics.jsonl") == result.metrics
    assert lines(tmp_path / "memory.jsonl") == result.memory
    assert {"steps": 8}.items() <= lines(tmp_path / "log.jsonl")[0].items()


def test_the_log_tells_phases_and_sentences(tmp_path):
    journal = Journal(tmp_path)
    journal.phase("probe", 10)
    journal.advance(4)
    journal._told_at = -1.0
    journal.advance(3)
    journal.say("Zwölf Zeilen")
    told = lines(tmp_path / "log.jsonl")
    assert [{k: v for k, v in line.items() if k != "elapsed_s"} for line in told] == [
        {"phase": "probe", "total": 10},
        {"done": 7},
        {"say": "Zwölf Zeilen"},
    ]


def test_a_disk_that_takes_nothing_ends_no_run(tmp_path):
    journal = Journal(tmp_path / "gone")
    journal.say("nobody hears it")
    journal.on_step(StepInfo(1, 2, 0.5, 1e-3, 1.0, 1.0))


def step(n, steps=4, loss=1.0):
    return StepInfo(n, steps, loss, 1e-3, float(n), float(steps - n), 1.5, {"peak_gib": 1.5})


def write_steps(journal, first, last):
    for n in range(first, last + 1):
        journal.on_step(step(n, loss=1.0 / n))


@contextmanager
def dying(run):
    """A process that claims ``run`` and ends before it is complete."""
    with suppress(SystemError), staged_folder(run, overwrite=True, marker="run.json") as folder:
        yield folder
        raise SystemError


def test_a_run_is_followed_until_it_is_complete(tmp_path):
    run = tmp_path / "run"
    with staged_folder(run, overwrite=False, marker="run.json") as folder:
        journal = Journal(folder)
        watcher = Watcher(run)
        assert watcher.is_at_work
        assert not watcher.is_complete
        journal.phase("train")
        write_steps(journal, 1, 2)
        watcher.look()
        live = watcher.live
        assert (live.phase, live.step, live.steps) == ("train", 2, 4)
        assert live.remaining_s == pytest.approx(2.0)
        assert live.peak_gib == 1.5
        journal.on_validation(ValidationInfo(2, 1.0, 0.75, 0.5, True))
        # Half a line is not read before the other half is there.
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 3, "loss": 0.25, "learning_rate": 0.001,')
            file.flush()
            watcher.look()
            assert watcher.live.step == 2
            file.write(' "elapsed_s": 3.0}\n')
        watcher.look()
        assert watcher.live.losses == [1.0, 0.5, 0.25]
        assert [look["eval_score"] for look in watcher.live.looks] == [0.75]
        (folder / "run.json").write_text("{}")
    watcher.look()
    assert watcher.is_complete
    assert not watcher.is_at_work
    assert watcher.live.losses == [1.0, 0.5, 0.25]


def test_a_run_that_goes_on_in_a_new_process_is_followed_there(tmp_path):
    run = tmp_path / "run"
    (tmp_path / ".run.states").mkdir()
    with dying(run) as folder:
        write_steps(Journal(folder), 1, 2)
        watcher = Watcher(run)
    watcher.look()
    assert watcher.is_at_work
    assert not watcher.has_writer
    with staged_folder(run, overwrite=False, marker="run.json") as folder:
        write_steps(Journal(folder), 2, 3)
        watcher.look()
        assert watcher.has_writer
        assert watcher.live.step == 3
    (tmp_path / ".run.states").rmdir()
    assert not watcher.is_at_work


def test_the_run_that_was_there_before_is_not_taken_for_the_new_one(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    assert Watcher(run).is_complete
    with dying(run) as folder:
        Journal(folder).phase("data")
        watcher = Watcher(run)
        assert watcher.live.phase == "data"
    assert not watcher.is_at_work
    assert not watcher.is_complete
    with staged_folder(run, overwrite=True, marker="run.json") as folder:
        watcher = Watcher(run)
        (folder / "run.json").write_text("{}")
    assert watcher.is_complete


def test_what_a_dead_process_left_is_no_run_at_work(tmp_path):
    partial = tmp_path / ".run.partial"
    partial.mkdir()
    (partial / ".claimed-by").write_text(f"{os.getpid()} 5.0")
    assert not Watcher(tmp_path / "run").is_at_work


def watched(*args):
    return CliRunner().invoke(app, ["watch", *map(str, args)])


def finished(run):
    run.mkdir()
    journal = Journal(run)
    journal.phase("data")
    journal.say("120 rows")
    write_steps(journal, 1, 4)
    journal.on_validation(ValidationInfo(4, 1.0, 0.875, 0.25, True))
    (run / "run.json").write_text("{}")
    return run


def test_a_finished_run_is_shown_and_done(tmp_path):
    done = watched(finished(tmp_path / "run"))
    assert done.exit_code == 0
    assert "120 rows" in done.output
    assert "validation score 0.8750" in done.output
    assert "complete" in done.output


def test_the_state_as_json(tmp_path):
    done = watched(finished(tmp_path / "run"), "--json")
    state = json.loads(done.output)
    assert state["complete"] is True
    assert (state["step"], state["steps"], state["peak_gib"]) == (4, 4, 1.5)


def test_nothing_to_watch_is_one_sentence(tmp_path):
    done = watched(tmp_path / "nowhere")
    assert isinstance(done.exception, UserInputError)
    assert "no run" in str(done.exception)


def grow(run, *, complete, ready):
    with staged_folder(run, overwrite=False, marker="run.json") as folder:
        journal = Journal(folder)
        journal.phase("train")
        ready.set()
        for n in range(1, 5):
            time.sleep(0.1)
            journal.on_step(step(n))
        journal.on_validation(ValidationInfo(4, 1.0, 0.5, 0.25, True))
        if not complete:
            raise SystemError
        (folder / "run.json").write_text("{}")


@pytest.mark.parametrize("complete", [True, False])
def test_a_growing_folder_is_watched_to_its_end(tmp_path, complete):
    run, ready = tmp_path / "run", threading.Event()

    def work():
        try:
            grow(run, complete=complete, ready=ready)
        except SystemError:
            assert not complete

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(10)
    done = watched(run)
    thread.join()
    if complete:
        assert done.exit_code == 0
        assert "validation score 0.5000" in done.output
    else:
        assert isinstance(done.exception, SnugtuneError)
        assert "not complete" in str(done.exception)


def test_a_sparkline_reaches_from_lowest_to_highest():
    assert sparkline([0.0, 1.0], 10) == "▁█"
    assert sparkline([3.0], 10) == "▁"
    assert sparkline([1.0, 1.0, 1.0], 2) == "▁▁"
    assert sparkline(list(range(100)), 8) == "▁▂▃▄▅▆▇█"


def test_the_view_says_what_there_is():
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(view(Live(), 120))
    live = Live(phase="probe", total=2000, done=1000)
    console.print(view(live, 120))
    live = Live(phase="train", steps=1000, step=250, elapsed_s=50.0, learning_rate=2e-3, peak_gib=1.25)
    live.losses = [2.0, 1.0]
    live.looks = [
        {"epoch": 0.0, "eval_score": 0.5, "eval_loss": 1.0, "best": True},
        {"epoch": 1.0, "eval_score": 0.6, "eval_loss": 0.9, "best": True},
    ]
    live.sentences = ["[bold]not markup"]
    console.print(view(live, 120))
    text = console.export_text()
    for words in (
        "1,000 of 2,000",
        "250 of 1,000",
        "2 min 30 s",
        "1.25 GiB",
        "2.00e-03",
        "█▁",
        "[bold]not markup",
    ):
        assert words in text, words
