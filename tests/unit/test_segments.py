import os

import pytest

from snugtune.memory.segments import VARIABLES, prefer_expandable_segments


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_segments_that_grow_are_asked_for(monkeypatch):
    monkeypatch.setenv(VARIABLES[0], "")
    prefer_expandable_segments()
    assert os.environ[VARIABLES[0]] == "expandable_segments:True"


@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_user_has_set_stays(monkeypatch, name):
    monkeypatch.setenv(name, "backend:cudaMallocAsync")
    prefer_expandable_segments()
    assert [os.environ.get(variable) for variable in VARIABLES if variable != name] == [None]
    assert os.environ[name] == "backend:cudaMallocAsync"
