"""README and docs/ without running them: blocks are read, command lines checked against the real options.

``tests/e2e/test_documents.py`` executes them.
"""

import ast
import json
import re
from itertools import pairwise

import pytest
import typer
import yaml
from typer.core import TyperGroup

from documents import (
    EXECUTED,
    FRONT_PAGE,
    PAGES,
    REASONS,
    ROOT,
    SHOWN,
    Page,
    blocks,
    calls,
    commands,
    shortened,
)
from snugtune.cli import app
from snugtune.model.known import known_config

BLOCKS = [block for page in PAGES for block in blocks(page)]
CLI = typer.main.get_command(app)
OF_OTHERS = {"--help", "--dry-run", "--index-url", "--logdir"}
"""Options in the text that belong to other programs."""


def command_of(words):
    """The command that ``words`` after ``snugtune`` call, the words left for it, and its context."""
    context = CLI.make_context("snugtune", [], resilient_parsing=True)
    command, rest = CLI, list(words)
    while isinstance(command, TyperGroup):
        assert rest, f"{words} names no command"
        name = rest.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command = found
    return command, rest, context


def check_call(words):
    """Raises if the command line would not be taken: an unknown option, a missing or ill-typed value."""
    command, rest, context = command_of(words)
    with command.make_context(command.name, rest, parent=context):
        pass


def calls_of(program, block):
    return [w[1:] for c in commands(block.text) for w in calls(c) if w[0] == program]


def test_every_block_says_what_it_is():
    for block in BLOCKS:
        assert block.language in EXECUTED | SHOWN, f"{block.place}: {block.language!r}"
        if block.language == "text":
            assert not re.search(r"^(\$ )?snugtune [a-z]", block.text, re.M), block.place


def test_reasons_for_not_executing_are_few_and_known():
    marked = [block for block in BLOCKS if block.reason is not None]
    assert {block.reason for block in marked} <= REASONS
    assert all(block.language in EXECUTED for block in marked)
    executed = [block for block in BLOCKS if block.language in EXECUTED and block.reason is None]
    assert len(marked) <= len(executed) / 3


def test_no_mark_is_lost():
    # A mark that stands anywhere but before a block would be read by nobody.
    for page in PAGES:
        marks = len(re.findall(r"^<!-- not executed", page.read_text(encoding="utf-8"), re.M))
        assert marks == sum(block.reason is not None for block in blocks(page)), page.name


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "bash"], ids=lambda b: b.place)
def test_options_of_every_command_exist(block):
    for words in calls_of("snugtune", block):
        check_call(words)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for words in calls_of("make", block):
        assert {word for word in words if "=" not in word} <= targets
    for words in calls_of("pip", block):
        check_extras(" ".join(words))


def test_models_of_the_commands_are_known():
    """What executes the documents takes a small model for those that they name, so names are checked here."""
    for block in BLOCKS:
        for words in calls_of("snugtune", block) if block.language == "bash" else []:
            for model in (after for word, after in pairwise(words) if word == "--model"):
                assert model == "minilm" or known_config(model, 2) is not None, f"{block.place}: {model}"


def check_extras(text):
    section = (
        (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    )
    known = set(re.findall(r"^([a-z0-9]+) = \[", section.split("\n[")[0], re.M))
    for extras in re.findall(r"(?:snugtune|\.)\[([a-z,0-9]+)\]", text):
        assert set(extras.split(",")) <= known, extras


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_the_text_exist(page):
    text = page.read_text(encoding="utf-8")
    check_extras(text)
    known = OF_OTHERS | all_options(CLI)
    for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
        for option in re.findall(r"(?<![\w-])--[a-z0-9][a-z0-9-]*", span):
            assert option in known, f"{option} in `{span}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_in_the_repository_too(page):
    """The site's build checks its own links and anchors; some pages of the site are not in the repository."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|#", target):
            path = (page.parent / target.partition("#")[0]).resolve()
            assert path.exists(), target
            assert path != FRONT_PAGE, f"{target} is made from the README"


def all_options(command):
    found = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    for inner in getattr(command, "commands", {}).values():
        found |= all_options(inner)
    return found


def help_texts(command, name="snugtune"):
    yield name, command.help or ""
    for key, inner in getattr(command, "commands", {}).items():
        yield from help_texts(inner, f"{name} {key}")


def examples(text):
    """Command lines in a help text: after a colon or at the beginning of a line; sentences may be wrapped."""
    unwrapped = re.sub(r"\\?\n(?!\n|\s*snugtune )(?<!\n\n)\s*", " ", text)
    return re.findall(r"(?:^\s*|: )(snugtune .+?)(?:, or .*|\.?)$", unwrapped, re.M)


EXAMPLES = [(name, example) for name, text in help_texts(CLI) for example in examples(text)]


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_examples_of_the_help_texts_are_commands(name, example):
    for words in calls(example.partition("  #")[0]):
        check_call(words[1:])


def test_examples_are_found_in_help_texts():
    assert examples("Score a run: snugtune evaluate r may.csv.\n\nIt tells: snugtune fit T --add\nr.db") == [
        "snugtune evaluate r may.csv",
        "snugtune fit T --add r.db",
    ]
    assert EXAMPLES


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=lambda b: b.place)
def test_python_is_python(block):
    ast.parse(block.text)


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language in ("json", "yaml")], ids=lambda b: b.place
)
def test_data_are_data(block):
    (json.loads if block.language == "json" else yaml.safe_load)(block.text)


@pytest.mark.parametrize(
    "line",
    [
        "snugtune fit complaints.csv --no-such-option 3",
        "snugtune predict runs/issue new.csv",  # the output is missing
        "snugtune fit complaints.csv --epochs many",
        "snugtune nothing",
    ],
)
def test_the_check_finds_a_wrong_command(line):
    with pytest.raises((AssertionError, typer._click.exceptions.UsageError)):
        check_call(calls(line)[0][1:])


def test_lines_are_read_as_a_shell_reads_them():
    block = (
        "# a comment\ncat a.csv | snugtune predict r - -o - | head   # the first\n"
        "snugtune fit a.csv \\\n    --r 8\n"
    )
    assert [calls(c) for c in commands(block)] == [
        [["cat", "a.csv"], ["snugtune", "predict", "r", "-", "-o", "-"], ["head"]],
        [["snugtune", "fit", "a.csv", "--r", "8"]],
    ]


def test_short_settings_are_accepted():
    for line in ("sample a.csv", "fit a.csv --label x", "audit a.csv -o b", "demo", "fit --help"):
        words = shortened(line.split(), "m")
        if "--help" not in words:
            check_call(words)


PAGE = """A page.

```bash
cat given.txt > made.txt
cat runs/one/inside.txt | head -1
```

<!-- not executed: needs the network -->
```bash
no-such-program
```

```python
from pathlib import Path

given = Path("made.txt").read_text()
```

```python
assert given == "given"
```
"""


def run(text, tmp_path):
    template, folder, page = tmp_path / "template", tmp_path / "folder", tmp_path / "page.md"
    (template / "runs" / "one").mkdir(parents=True)
    folder.mkdir()
    (template / "given.txt").write_text("given")
    (template / "never_named.txt").write_text("")
    (template / "runs" / "one" / "inside.txt").write_text("inside")
    page.write_text(text)
    Page(page, folder, template, tmp_path, {}).run()
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.txt"))


def test_a_page_is_executed_in_order_with_what_it_names(tmp_path):
    assert run(PAGE, tmp_path) == ["given.txt", "made.txt", "runs/one/inside.txt"]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("cat given.txt", "cat gone.txt"),
        ("cat runs/one/inside.txt | head -1", "false | cat"),
        ('== "given"', '== "taken"'),
        ("<!-- not executed: needs the network -->\n", ""),
    ],
)
def test_a_page_with_a_fault_fails(right, wrong, tmp_path):
    assert right in PAGE
    with pytest.raises(AssertionError):
        run(PAGE.replace(right, wrong), tmp_path)


def test_what_sample_writes_is_not_given(tmp_path):
    (tmp_path / "snugtune").write_text("#!/bin/sh\ntest ! -e given.txt\n")
    (tmp_path / "snugtune").chmod(0o755)
    assert run("```bash\nsnugtune sample given.txt\n```\n", tmp_path) == []
