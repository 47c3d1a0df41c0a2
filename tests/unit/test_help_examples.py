"""The examples below each command's help: every one is a command that the options of today take."""

import re
import shlex
from importlib.metadata import version

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from snugtune.cli import COMMANDS, app
from snugtune.cli.examples import EXAMPLES
from snugtune.cli.options import SHORTHANDS, settings
from snugtune.config import FitConfig, make_config

ALL = [(name, example) for name, examples in EXAMPLES.items() for _, example in examples]


def parse(example):
    """The settings that an example gives, by the command that it is of."""
    words = shlex.split(example.replace("\\\n", " "))
    assert words.pop(0) == "snugtune"
    for sign in ("<", ">"):
        if sign in words:
            del words[words.index(sign) : words.index(sign) + 2]
    command, path = get_command(app), []
    while hasattr(command, "commands"):
        path.append(words.pop(0))
        command = command.commands[path[-1]]
    return " ".join(path), command.make_context(path[-1], words).params


@pytest.mark.parametrize(("name", "example"), ALL)
def test_an_example_is_a_command_that_can_be_given(name, example):
    command, params = parse(example)
    # Under audit stands how to go on from it.
    assert command == name or example.startswith("snugtune fit")
    if command == "search":
        params = {key: value for key, value in params.items() if key != "method"}
    if command in ("fit", "plan", "audit", "search"):
        known = {key: value for key, value in params.items() if key in {*FitConfig.model_fields, *SHORTHANDS}}
        make_config({"train": "table.csv"} | settings(known))


def test_a_stale_example_would_be_found():
    with pytest.raises(Exception, match="No such option"):
        parse("snugtune fit complaints.csv --no-such-option 1")


def test_every_command_has_two_to_four_examples():
    assert set(EXAMPLES) == {*COMMANDS, "data cfpb"}
    assert all(2 <= len(examples) <= 4 for examples in EXAMPLES.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_stand_below_the_help_line_by_line_in_a_terminal(name, monkeypatch):
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(app, [*name.split(), "--help"])
    assert done.exit_code == 0
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines()]
    assert "Examples" in lines
    for _, example in EXAMPLES[name]:
        for line in example.split("\n"):
            assert line.strip() in lines  # not wrapped: it can be copied


def test_the_version_is_told():
    told = CliRunner().invoke(app, ["--version"])
    assert (told.exit_code, told.output) == (0, f"snugtune {version('snugtune')}\n")
