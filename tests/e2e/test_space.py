"""`--to space`: the folder alone answers as the run does, and holds nothing of this machine."""

import subprocess
import sys

import pytest
import yaml

from snugtune.errors import UserInputError
from snugtune.export.export import export_run
from trained import write_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    run = write_run(folder, "bert")
    return run, export_run(run, folder / "out", to="space")


def test_it_answers_as_the_run_does(made):
    _, exported = made
    assert exported.agreement.changed_labels == 0
    assert exported.agreement.rows > 0


def test_it_holds_what_a_space_needs(made):
    _, exported = made
    text = (exported.folder / "README.md").read_text(encoding="utf-8")
    settings = yaml.safe_load(text.split("---")[1])
    assert settings["sdk"] == "gradio"
    assert settings["app_file"] == "app.py"
    needed = (exported.folder / "requirements.txt").read_text(encoding="utf-8")
    assert "torch" in needed
    assert all("==" in line for line in needed.split() if "torch" in line)
    assert not list(exported.folder.rglob("*.pkl"))


def test_its_app_opens_from_the_folder_alone(made):
    _, exported = made
    ask = """import app
from starlette.testclient import TestClient
page = TestClient(app.app).get("/")
print(page.status_code, "gradio" in page.text)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ask], cwd=exported.folder, capture_output=True, text=True,
        timeout=300, check=False, env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.stdout.split() == ["200", "True"], done.stderr[-2000:]


def test_nothing_is_overwritten(made, tmp_path):
    run, _ = made
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(UserInputError):
        export_run(run, tmp_path / "taken", to="space")
