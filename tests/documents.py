"""The README and the pages of docs/ as what they promise: fenced blocks that are read, checked and executed.

Sybil finds the blocks and evaluates those of Python; commands are run by ``Page`` in a folder that has the
files the page speaks of. A block under ``<!-- not executed: REASON -->`` is read and checked only.
"""

import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from sybil import Document, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

ROOT = Path(__file__).resolve().parents[1]
FRONT_PAGE = ROOT / "docs" / "index.md"
"""Made from the README, which is read in its place."""

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path != FRONT_PAGE),
]

EXECUTED = {"bash", "python"}
SHOWN = {"text", "json", "yaml"}
"""Languages of blocks that show something: output, a file."""

REASONS = {
    "needs the network",
    "needs a database server",
    "needs a program that is not part of the tests",
    "installs this very environment",
    "runs for minutes",
}
"""Why a block may be left out of what is executed."""

MARK = re.compile(r"<!-- not executed: (?P<reason>[^\n]+?) -->\s*\Z")

OUTPUTS = {"-o", "--out", "--output", "--picture"}
SERVERS = {"serve", "app"}
START_S, COMMAND_S = 180, 420


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is that of its fence, ``reason`` why it is not executed, or None."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def place(self):
        return f"{self.page.name}:{self.line}"


def blocks(page):
    """All fenced blocks of ``page``, in order."""
    text = page.read_text(encoding="utf-8")
    document = Document(text, str(page))
    return [_block(page, text, region) for region in _lexer()(document)]


def executable(*, how_to):
    """The pages with something to execute: those of ``docs/how-to``, or all others."""
    return [
        page
        for page in PAGES
        if (page.parent.name == "how-to") is how_to
        and any(block.reason is None and block.language in EXECUTED for block in blocks(page))
    ]


def _lexer():
    return RawFencedCodeBlockLexer(re.compile(r"(?P<language>[^\n]*)$\n", re.MULTILINE))


def _block(page, text, region):
    mark = MARK.search(text[: region.start])
    return Block(
        page, text.count("\n", 0, region.start) + 1, region.lexemes["language"].strip(),
        str(region.lexemes["source"]), mark and mark["reason"],
    )  # fmt: skip


def commands(text):
    """The commands of a block of ``bash``, one a line: continued lines are joined, comments left out."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = (line.strip() for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def calls(command):
    """The words of each program that a line runs: of pipes, loops, what && and ; join; no redirections."""
    lexer = shlex.shlex(command, punctuation_chars="|&;<>")  # leaves quotes, so that ";" is no operator
    lexer.whitespace_split = True
    found = [[]]
    for word in lexer:
        if set(word) <= set("|&;"):
            found.append([])
        else:
            found[-1] += shlex.split(word)
    return [words for words in map(_plain, found) if words]


def _plain(words):
    words = words[1:] if words and words[0] in ("do", "then") else words
    return [w for before, w in zip(["", *words], words, strict=False) if not {before, w} & {">", ">>", "<"}]


def shortened(arguments, model):
    """Arguments of ``snugtune`` for the same work in seconds: fewer rows, ``model``, shorter texts."""
    name, rest = (arguments[0], list(arguments[1:])) if arguments else ("", [])
    if {"-h", "--help"} & set(rest):
        return list(arguments)
    if name == "sample":
        rest += ["--rows", "500"]
    elif name in ("fit", "audit", "search", "select"):
        rest += ["--model", str(model), "--max-length", "40"]
        rest += ["--epochs", "1"] if name in ("fit", "search") else []
        rest += ["--trials", "2"] if name == "search" else []
    elif name == "plan" and "--recipe" not in rest:
        rest += ["--model", str(model)]
    elif name == "demo":
        rest += ["--epochs", "0.2"]
    return [name, *rest] if name else []


class Page:
    """A page that is executed, in ``folder``; ``close`` ends the servers it started.

    ``template`` is a folder of files that pages speak of: one that a command names and that is not there yet
    is copied. ``programs`` goes to the front of ``PATH``.
    """

    def __init__(self, path, folder, template, programs, environment):
        self.path, self.folder, self.template = path, folder, template
        self.files = sorted((str(p.relative_to(template)) for p in _offered(template)), key=len, reverse=True)
        self.environment = {
            **os.environ, **environment, "COLUMNS": "100",
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        self.servers, self.ports = {}, {}

    def run(self):
        """Execute every block that is not marked, in order."""
        document = Document.parse(str(self.path), self._parser)
        here = Path.cwd()
        os.chdir(self.folder)
        try:
            for example in document.examples():
                example.evaluate()
        finally:
            os.chdir(here)
            self.close()

    def _parser(self, document):
        python = PythonEvaluator()
        for region in _lexer()(document):
            block = _block(self.path, document.text, region)
            if block.reason is None and block.language in EXECUTED:
                evaluate = self._python(python) if block.language == "python" else self._bash(block)
                yield Region(region.start, region.end, parsed=region.lexemes["source"], evaluator=evaluate)

    def _python(self, evaluator):
        def evaluate(example):
            self.provide([str(example.parsed)])
            evaluator(example)

        return evaluate

    def _bash(self, block):
        def evaluate(_example):
            for command in commands(block.text):
                self.execute(command, block.place)

        return evaluate

    def execute(self, command, place="-"):
        """Run one line; a server stays until the page ends or another takes its port."""
        self.provide([w for words in calls(command) for w in _inputs(words)])
        words = calls(command)[0]
        command = re.sub(r"(?<=localhost:)\d+", lambda found: str(self._port(int(found[0]))), command)
        if words[0] == "snugtune" and words[1] in SERVERS:
            return self._serve(command, 8080 if words[1] == "serve" else 7860, place)
        if calls(command)[-1][:3] == ["python", "-m", "http.server"]:
            return self._serve(command, 8000, place)
        # What head has seen enough of ends with an error, as it should.
        flags = "-eu" if calls(command)[-1][0] == "head" else "-euo pipefail"
        result = subprocess.run(
            ["bash", *flags.split(), "-c", command], env=self.environment, text=True, timeout=COMMAND_S,
            cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            check=False,
        )  # fmt: skip
        assert result.returncode == 0, (
            f"{place}: exit {result.returncode}\n{command}\n{result.stdout[-4000:]}"
        )
        return result.stdout

    def provide(self, words):
        """Copy what ``words`` name and the page has not made itself."""
        for name in self.files:
            named = re.compile(rf"(?:(?<![\w./-])|(?<=:///)){re.escape(name)}(?![\w.-])")
            source, target = self.template / name, self.folder / name
            if not target.exists() and any(named.search(word) for word in words):
                target.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy)(source, target)

    def _port(self, written):
        if written not in self.ports:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.ports[written] = free.getsockname()[1]
        return self.ports[written]

    def _serve(self, command, usual_port, place):
        port = self._port(usual_port)
        self._end(port)
        said = self.folder / f".server-{usual_port}.txt"
        asks = f" {port}" if usual_port == 8000 else f" --port {port}"
        with said.open("w") as out:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", command.partition(" #")[0].rstrip() + asks],
                env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.servers[port] = process
        ends = time.monotonic() + START_S
        while not _answers(port):
            told = said.read_text(encoding="utf-8", errors="replace")
            assert process.poll() is None, f"{place}: the server has ended\n{command}\n{told[-4000:]}"
            assert time.monotonic() < ends, f"{place}: no answer from the server\n{command}\n{told[-4000:]}"
            time.sleep(0.2)
        return ""

    def _end(self, port):
        process = self.servers.pop(port, None)
        if process is not None and process.poll() is None:
            os.killpg(process.pid, 15)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()

    def close(self):
        """End the servers."""
        for port in list(self.servers):
            self._end(port)


def _answers(port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _offered(template):
    """Files, and runs as a whole."""
    for path in template.iterdir():
        if path.name == "runs":
            yield from path.iterdir()
        else:
            yield path


def _inputs(words):
    """The words of a call that are not what it writes."""
    if words[:2] == ["snugtune", "sample"]:
        return []
    return [word for before, word in zip(["", *words], words, strict=False) if before not in OUTPUTS]
