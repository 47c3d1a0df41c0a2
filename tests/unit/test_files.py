import json

import pytest

from snugtune.errors import UserInputError
from snugtune.files import replacing, write_json


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
