"""What lies beside a run folder before a fit: an unfinished run, another's work, the mark of a death."""

import json
import os
import subprocess
import sys
from contextlib import suppress

import pytest
from test_checkpoints import state_of

from snugtune.config import make_config
from snugtune.errors import EndedElsewhereError, RestartNeededError, UserInputError
from snugtune.files import CLAIM, staged_folder
from snugtune.train import standing
from snugtune.train.checkpoints import Checkpoints
from snugtune.train.recovery import ALL_LEVERS, identity_of_settings, states_folder
from snugtune.train.standing import ATTEMPT, attempted, clear_states, prepare

CONFIG = make_config({"train": "a.csv"})


def commit(out, config=CONFIG, step=7):
    states = Checkpoints(states_folder(out), identity={**identity_of_settings(config), "data": "abc"})
    assert states.commit(state_of(step)) is None


def write_record(out, *, interrupted, config=CONFIG):
    out.mkdir()
    record = {"config": config.model_dump(mode="json"), "training": {"interrupted": interrupted}}
    (out / "run.json").write_text(json.dumps(record))


def ask(out, *, resume=None, config=CONFIG, overwrite=False):
    said = []
    return prepare(config, out, overwrite=overwrite, resume=resume, say=said.append), said


def test_a_first_run_and_one_that_goes_on(tmp_path):
    out = tmp_path / "run"
    assert ask(out) == ((False, False), [])
    commit(out)
    assert ask(out) == ((False, False), [])
    assert ask(out, resume=True) == ((False, False), [])


def test_what_ctrl_c_completed_is_replaced_by_its_own_continuation_only(tmp_path):
    out = tmp_path / "run"
    write_record(out, interrupted=True)
    assert ask(out) == ((False, False), [])
    commit(out)
    assert ask(out) == ((False, True), [])
    (is_complete, may_replace), said = ask(out, config=make_config({"train": "a.csv", "r": 4}))
    assert (is_complete, may_replace) == (False, False)
    assert "other settings (r was 16 and is 4), so this run begins anew" in said[0]
    assert states_folder(out).is_dir()


def test_settings_without_effect_on_the_weights_may_change(tmp_path):
    out = tmp_path / "run"
    commit(out)
    changed = make_config({"train": "a.csv", "max_time_s": "2h", "price_per_hour_usd": 1})
    assert ask(out, resume=True, config=changed) == ((False, False), [])


def test_a_complete_run_is_left_as_it_is(tmp_path):
    out = tmp_path / "run"
    write_record(out, interrupted=False)
    assert ask(out, resume=True) == ((True, False), [f"The run {out} is complete already."])
    with pytest.raises(UserInputError, match="no saved training state"):
        ask(out, resume=True, config=make_config({"train": "a.csv", "r": 4}))


def test_who_died_in_the_last_moments_had_completed_the_run(tmp_path):
    out = tmp_path / "run"
    write_record(out, interrupted=False)
    assert ask(out) == ((False, False), [])  # refused later, as any run that is there
    states_folder(out).mkdir()  # its states were being removed
    assert ask(out) == ((True, False), [f"The run {out} is complete already."])
    assert ask(out, overwrite=True) == ((False, True), [])
    assert ask(out, config=make_config({"train": "a.csv", "r": 4})) == ((False, False), [])


def test_no_resume_forgets(tmp_path):
    out = tmp_path / "run"
    commit(out)
    assert ask(out, resume=False) == ((False, False), [])
    assert not states_folder(out).exists()


def test_a_second_fit_is_refused_and_touches_nothing(tmp_path):
    out = tmp_path / "run"
    code = "import sys; from test_standing import hold; hold(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as first:
        assert first.stdout.readline()
        unfinished = states_folder(out) / ".000001"
        for resume in (None, True, False):
            with pytest.raises(UserInputError, match="Another process is writing"):
                ask(out, resume=resume, overwrite=True)
        clear_states(out)
        assert unfinished.is_dir()
        first.stdin.close()
    clear_states(out)
    assert not unfinished.exists()


def hold(out):
    with staged_folder(out, overwrite=False, marker="run.json"):
        (states_folder(out) / ".000001").mkdir(parents=True)
        print("here", flush=True)
        sys.stdin.read()


def test_a_clock_that_is_set_does_not_hand_the_folder_to_another(tmp_path, monkeypatch):
    import psutil

    created = psutil.Process.create_time
    claim = tmp_path / ".run.partial" / CLAIM
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        claim.parent.mkdir()
        from snugtune.files import _start_of

        claim.write_text(f"{owner.pid} {_start_of(owner.pid)}")
        if sys.platform == "linux":
            # The system tells a process's start by the clock that was set since.
            monkeypatch.setattr(psutil.Process, "create_time", lambda self: created(self) - 86_400)
        with pytest.raises(UserInputError, match="Another process"):
            ask(tmp_path / "run")


def test_an_overwritten_run_comes_back_if_its_replacement_died_between_two_names(tmp_path):
    out = tmp_path / "run"
    write_record(tmp_path / ".run.replaced", interrupted=False)
    with (
        pytest.raises(UserInputError, match="already holds something"),
        staged_folder(out, overwrite=False, marker="run.json"),
    ):
        pass
    assert (out / "run.json").exists()


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Sets how many processes the kernel has ended for want of memory."""
    counters = tmp_path / "vmstat"
    monkeypatch.setattr(standing, "KERNEL_COUNTERS", counters)
    monkeypatch.setattr(standing, "_boot", lambda: "this boot")

    def kills(n):
        counters.write_text(f"nr_free_pages 7\noom_kill {n}\n")

    kills(3)
    return kills


def die(out, *, out_of_memory=None):
    """An attempt that is killed, as its mark shows; what it was told."""
    said = []
    with attempted(out, said.append) as recovery:
        mark = (states_folder(out) / ATTEMPT).read_text()
        if out_of_memory:
            out_of_memory()
    states_folder(out).mkdir(exist_ok=True)
    (states_folder(out) / ATTEMPT).write_text(mark)
    return recovery, said


def test_only_want_of_memory_makes_the_next_process_careful(tmp_path, kernel):
    out = tmp_path / "run"
    assert die(out)[1] == []
    recovery, said = die(out, out_of_memory=lambda: kernel(4))
    assert recovery.caution == 0
    assert said == [
        "The process before was killed, or the power went. Going on from the beginning, as planned."
    ]
    recovery, said = die(out, out_of_memory=lambda: kernel(5))
    assert recovery.caution == 1
    assert said == [
        "The process before was ended by the system, which had run out of memory. Going on from the "
        "beginning, with micro-batches of half the size."
    ]
    commit(out)
    recovery, said = die(out, out_of_memory=lambda: kernel(6))
    assert recovery.caution == 1  # a step was gained
    assert said[0].endswith("Going on from step 7, with micro-batches of half the size.")
    assert die(out, out_of_memory=lambda: kernel(7))[0].caution == ALL_LEVERS
    assert die(out)[0].caution == ALL_LEVERS


def test_a_process_that_ran_out_of_memory_leaves_word_of_it(tmp_path, kernel):
    out, said = tmp_path / "run", []
    for caution in (0, 1, ALL_LEVERS, ALL_LEVERS):
        with pytest.raises(RestartNeededError), attempted(out, said.append) as recovery:
            raise RestartNeededError("Memory ran out in training.")
        clear_states(out)
        assert recovery.caution == caution
    assert said[0] == (
        "The process before ran out of memory. Going on from the beginning, with micro-batches of half "
        "the size."
    )
    with attempted(out, said.append) as recovery:
        pass
    clear_states(out)
    assert not states_folder(out).exists()


def test_one_whose_group_ended_for_want_of_memory_does_too(tmp_path, kernel):
    out = tmp_path / "run"
    with suppress(EndedElsewhereError), attempted(out, print):
        raise EndedElsewhereError(RestartNeededError.exit_code)
    with attempted(out, print) as recovery:
        assert recovery.caution == 1
    with suppress(EndedElsewhereError), attempted(out, print):
        raise EndedElsewhereError(2)
    with attempted(out, print) as recovery:
        assert recovery.caution == 0


def test_an_end_that_python_sees_leaves_no_mark(tmp_path, kernel):
    out = tmp_path / "run"
    with suppress(KeyboardInterrupt), attempted(out, print):
        kernel(9)
        raise KeyboardInterrupt
    said = []
    with attempted(out, said.append) as recovery:
        assert (recovery.caution, said) == (0, [])
    clear_states(out)
    assert not states_folder(out).exists()
