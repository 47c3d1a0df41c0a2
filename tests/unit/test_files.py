import errno
import json
import os
import sys
from pathlib import Path

import pytest

from snugtune.cli import main
from snugtune.errors import UserInputError
from snugtune.files import replacing, write_json, write_text


def test_json_is_written_whole(tmp_path):
    write_json(tmp_path / "a.json", {"ü": 1})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ü": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError):
        _fail_halfway(target)
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_missing_folder_is_explained(tmp_path):
    with pytest.raises(UserInputError, match="does not exist"), replacing(tmp_path / "no" / "a.txt"):
        pass


def _fail_halfway(target):
    with replacing(target) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise RuntimeError


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write into")
@pytest.mark.parametrize(
    "command",
    [
        ["sample", "/proc/sample.xlsx"],
        ["fit", "TABLE", "--out", "/proc/run"],
        ["audit", "TABLE", "--no-frozen-pass", "--out", "/proc/audit"],
    ],
)
def test_a_folder_that_cannot_be_written_into_is_one_sentence(command, table, capsys, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["snugtune", *(str(table) if word == "TABLE" else word for word in command)]
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("Cannot ")
    assert told.endswith(("; choose another output path.", "; choose another output."))
    assert "\n" not in told


def test_a_folder_in_the_place_of_the_file_is_one_sentence(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(UserInputError, match=r"Cannot write .*a\.txt: Is a directory; choose another"):
        write_text(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_read_only_file_system(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(UserInputError, match="no permission; choose another output path"):
        write_text(tmp_path / "a.txt", "new")
