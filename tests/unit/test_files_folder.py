"""A folder appears whole or not at all, and what was there stays until then."""

import os
import subprocess
import sys

import psutil
import pytest
from safetensors import SafetensorError

from snugtune.errors import UserInputError
from snugtune.files import check_free_space, staged_folder, system_errors

MARKER = "run.json"


def write(folder, text, *, overwrite=False):
    with staged_folder(folder, overwrite=overwrite, marker=MARKER) as staging:
        (staging / MARKER).write_text(text)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_appears_at_the_end_only(tmp_path):
    folder = tmp_path / "runs" / "a"
    with staged_folder(folder, overwrite=False, marker=MARKER) as staging:
        (staging / MARKER).write_text("1")
        assert not folder.exists()
    assert listing(folder) == [MARKER]
    assert listing(tmp_path / "runs") == ["a"]


def test_a_failure_leaves_nothing_new_and_everything_old(tmp_path):
    write(tmp_path / "a", "old")
    with pytest.raises(TypeError):
        write(tmp_path / "a", text=None, overwrite=True)
    assert (tmp_path / "a" / MARKER).read_text() == "old"
    assert listing(tmp_path) == ["a"]


def test_a_filled_folder_is_replaced_only_when_told(tmp_path):
    write(tmp_path / "a", "old")
    with pytest.raises(UserInputError, match="--overwrite"):
        write(tmp_path / "a", "new")
    write(tmp_path / "a", "new", overwrite=True)
    assert (tmp_path / "a" / MARKER).read_text() == "new"
    assert listing(tmp_path) == ["a"]


def test_files_of_the_user_are_never_overwritten(tmp_path):
    (tmp_path / "thesis.docx").write_text("ten years of work")
    with pytest.raises(UserInputError, match="was not written by this command"):
        write(tmp_path, "new", overwrite=True)
    assert listing(tmp_path) == ["thesis.docx"]


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserInputError, match="is a file"):
        write(tmp_path / "a", "new")


def test_two_at_once_are_refused_and_the_dead_are_cleared_away(tmp_path):
    staging = tmp_path / ".a.partial"
    staging.mkdir()
    (staging / ".claimed-by").write_text(str(os.getppid()))
    with pytest.raises(UserInputError, match="Another process"):
        write(tmp_path / "a", "new")
    (staging / ".claimed-by").write_text("999999999")
    (staging / "left over").write_text("")
    write(tmp_path / "a", "new")
    assert listing(tmp_path / "a") == [MARKER]


def left_by(tmp_path, claim):
    staging = tmp_path / ".a.partial"
    staging.mkdir()
    (staging / ".claimed-by").write_text(claim)
    write(tmp_path / "a", "new", overwrite=True)


def test_a_killed_owner_is_not_taken_for_whoever_has_its_number_now(tmp_path):
    parent = psutil.Process(os.getppid())
    with pytest.raises(UserInputError, match="Another process"):
        left_by(tmp_path, f"{parent.pid} {parent.create_time()}")
    (tmp_path / ".a.partial" / ".claimed-by").unlink()
    (tmp_path / ".a.partial").rmdir()
    left_by(tmp_path, f"{parent.pid} {parent.create_time() - 3600}")
    assert listing(tmp_path) == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no zombies")
def test_a_killed_owner_that_nobody_waited_for(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        claim = f"{process.pid} {psutil.Process(process.pid).create_time()}"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        left_by(tmp_path, claim)
    assert listing(tmp_path) == ["a"]


def test_a_full_disk_under_safetensors_is_one_sentence(tmp_path):
    message = "Error while serializing: I/O error: No space left on device (os error 28)"
    with (
        pytest.raises(UserInputError, match="No space left on the disk"),
        staged_folder(tmp_path / "a", overwrite=False, marker=MARKER),
        system_errors(),
    ):
        raise SafetensorError(message)
    assert listing(tmp_path) == []


def test_other_faults_of_safetensors_stay_what_they_are():
    with pytest.raises(SafetensorError), system_errors():
        raise SafetensorError("invalid header")


def test_room_is_checked_before_the_work(tmp_path):
    check_free_space(tmp_path, 1)
    with pytest.raises(UserInputError, match="MiB free and the run needs about"):
        check_free_space(tmp_path, 1 << 60)
