"""Completion, asked for as bash, zsh and fish ask; and the shells themselves where they are installed."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from snugtune.cli import completion
from snugtune.cli.export import DTYPES, PUSHES, TARGETS

SCRIPT = "import sys; sys.argv[0] = 'snugtune'; from snugtune.cli import main; main()"


def ask(folder, words, incomplete, shell="bash"):
    """What the command answers when ``incomplete`` is being typed after ``words``."""
    line = [*words, incomplete]
    asked = {
        "_SNUGTUNE_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "\n".join(["snugtune", *line]),
        "COMP_CWORD": str(len(line)),
        "_TYPER_COMPLETE_ARGS": "snugtune " + " ".join(line),
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=os.environ | asked, cwd=folder,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    """Two runs, another folder, and a table."""
    for name in ("issue", "topic"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "complaints.csv").write_text("Narrative;Issue;Sub issue\na;b;c\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "", {"fit", "plan", "doctor", "data", "app"}),
        (["data"], "", {"cfpb"}),
        (["fit"], "--ma", {"--max-cost", "--max-time", "--max-length", "--max-units", "--max-grad-norm"}),
        (["plan", "--model"], "xlm-roberta-l", {"xlm-roberta-large"}),
        (["plan", "--gpu"], "v100", {"v100-16"}),
        (["plan", "--gpu"], "t4,l4", {"t4,l4", "t4,l40s"}),
        (["fit", "complaints.csv", "--label"], "", {"Narrative", "Issue", "Sub issue"}),
        (["fit", "complaints.csv", "--metric"], "", {"accuracy", "f1_macro", "f1_micro"}),
        (["fit", "complaints.csv", "--track"], "", {"tensorboard", "mlflow", "wandb", "trackio"}),
        (["export", "runs/issue", "--to"], "onnx", {"onnx", "onnx-int8"}),
        (["predict"], "", {"runs/issue", "runs/topic"}),
        (["compare", "runs/issue"], "runs/t", {"runs/topic"}),
    ],
)
def test_what_is_offered(folder, words, incomplete, expected):
    offered = ask(folder, words, incomplete).splitlines()
    assert expected <= set(offered)
    assert all(one.startswith(incomplete) for one in offered)
    if words:
        assert "runs/notes" not in offered


@pytest.mark.parametrize("words", [["predict", "runs/issue"], ["plan", "--config"]])
def test_files_are_left_to_the_shell(folder, words):
    """It falls back on its own where nothing is offered."""
    assert ask(folder, words, "comp").strip() == ""
    assert ask(folder, words, "comp", "zsh").strip() == "_files"
    assert ask(folder, words, "comp", "fish").strip() == ""


def test_zsh_and_fish_are_answered_in_their_own_words(folder):
    assert '"xlm-roberta-large"' in ask(folder, ["plan", "--model"], "xlm", "zsh")
    assert '"fit":"Train a classifier on a table."' in ask(folder, [], "fi", "zsh")
    assert "fit\tTrain a classifier on a table." in ask(folder, [], "fi", "fish")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_one_that_it_can_read(tmp_path, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    asked = os.environ | {"_SNUGTUNE_COMPLETE": f"source_{shell}"}
    script = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=asked, capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert "snugtune" in script
    path = tmp_path / f"complete.{shell}"
    path.write_text(script)
    subprocess.run([shell, "-n", str(path)], check=True, timeout=60)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_installing_it_changes_the_files_of_that_shell_alone(tmp_path, shell):
    home = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = f"import sys; sys.argv = ['snugtune', '--install-completion', '{shell}']; " + SCRIPT
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | home, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert all(shell in path or path in (".zshrc", ".zfunc/_snugtune") for path in written)


def command_on_path(folder):
    """A ``snugtune`` that shells can start."""
    path = folder / "bin" / "snugtune"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{SCRIPT}" "$@"\n')
    path.chmod(0o755)
    return os.environ | {"PATH": f"{path.parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}


def test_in_bash_itself(folder):
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    typed = (
        'eval "$(_SNUGTUNE_COMPLETE=source_bash snugtune)"; COMP_WORDS=(snugtune plan --gpu h100); '
        'COMP_CWORD=3; _snugtune_completion snugtune; printf "%s\\n" "${COMPREPLY[@]}"; complete -p snugtune'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", typed], env=command_on_path(folder), cwd=folder,
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "h100" in done.stdout.splitlines()
    assert "-o default" in done.stdout  # names of files, where nothing is offered


def test_in_fish_itself(folder):
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    asked = "env _SNUGTUNE_COMPLETE=source_fish snugtune | source; complete -C 'snugtune {}'"
    environment = command_on_path(folder)

    def offered(line):
        done = subprocess.run(
            ["fish", "--no-config", "-c", asked.format(line)], env=environment, cwd=folder,
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        return [one.partition("\t")[0] for one in done.stdout.splitlines()]

    assert offered("predict runs/i") == ["runs/issue"]
    assert "complaints.csv" in offered("fit compl")


def test_a_list_of_gpus_does_not_offer_one_twice():
    assert "t4,t4" not in completion.gpus("t4,t")


def test_what_is_not_there_is_no_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert completion.runs("no/such/folder/") == []
    assert completion._header("missing.csv") == []
    Path("broken.csv").write_bytes(b"\xff\xfe\x00")
    assert completion._header("broken.csv") == []
    assert completion._header("table.parquet") == []


def test_the_choices_of_an_export_are_the_library_s():
    from snugtune.export.export import Dtype, To
    from snugtune.export.hub import What

    assert set(TARGETS) == {*get_args(To), "hub"}
    assert set(DTYPES) == set(get_args(Dtype))
    assert set(PUSHES) == set(get_args(What))
