"""The command line: parse, call the library, render. The only place that prints."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from typing import Annotated

import typer

from snugtune.cli.app import app as open_app
from snugtune.cli.audit import audit
from snugtune.cli.compare import compare
from snugtune.cli.data import app as data_app
from snugtune.cli.demo import demo
from snugtune.cli.doctor import doctor
from snugtune.cli.evaluate import evaluate
from snugtune.cli.examples import epilog
from snugtune.cli.export import export
from snugtune.cli.fit import fit
from snugtune.cli.plan import plan
from snugtune.cli.predict import predict
from snugtune.cli.report import report
from snugtune.cli.sample import sample
from snugtune.cli.search import search
from snugtune.cli.select import select
from snugtune.cli.serve import serve
from snugtune.cli.terminal import plain
from snugtune.cli.watch import watch
from snugtune.cli.weak_label import weak_label
from snugtune.errors import SnugtuneError, one_line
from snugtune.faults import is_out_of_memory
from snugtune.quiet import quiet_imports

app = typer.Typer(
    help="Fine-tune a language model into your own text classifier, on the GPU you have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "fit": fit,
    "search": search,
    "audit": audit,
    "select": select,
    "weak-label": weak_label,
    "evaluate": evaluate,
    "plan": plan,
    "doctor": doctor,
    "demo": demo,
    "sample": sample,
    "predict": predict,
    "serve": serve,
    "export": export,
    "app": open_app,
    "compare": compare,
    "watch": watch,
    "report": report,
}
"""Those that stand alone, by name."""


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"snugtune {metadata.version('snugtune')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_say_version, help="Say which version this is."),
    ] = False,
) -> None: ...


for _name, _command in COMMANDS.items():
    app.command(name=_name, epilog=epilog(_name))(_command)
app.add_typer(data_app, name="data")


def main() -> None:
    """Run the command line; exits 0 done, 1 failed, 2 the user's input, 130 interrupted."""
    quiet_imports()
    try:
        app()
    except SnugtuneError as error:
        if str(error):
            sys.stderr.write(f"{plain(str(error))}\n")
        sys.exit(error.exit_code)
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = one_line(error)
        sys.stderr.write(f"Memory ran out ({said}); free some memory, or take a smaller model.\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)
    except SystemExit as ended:
        # Typer makes this of Ctrl-C inside a command, without a word.
        if ended.code == 130:
            sys.stderr.write("Interrupted.\n")
        raise
