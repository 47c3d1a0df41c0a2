"""The command line: parse, call the library, render. The only place that prints."""

from __future__ import annotations

import sys

import typer

from snugtune.cli.app import app as open_app
from snugtune.cli.audit import audit
from snugtune.cli.compare import compare
from snugtune.cli.data import app as data_app
from snugtune.cli.demo import demo
from snugtune.cli.evaluate import evaluate
from snugtune.cli.export import export
from snugtune.cli.fit import fit
from snugtune.cli.plan import plan
from snugtune.cli.predict import predict
from snugtune.cli.report import report
from snugtune.cli.sample import sample
from snugtune.cli.serve import serve
from snugtune.cli.terminal import plain
from snugtune.cli.watch import watch
from snugtune.errors import SnugtuneError
from snugtune.quiet import quiet_imports

app = typer.Typer(
    help="Fine-tune a language model into your own text classifier, on the GPU you have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(fit)
app.command()(audit)
app.command()(evaluate)
app.command()(plan)
app.command()(demo)
app.command()(sample)
app.add_typer(data_app, name="data")
app.command()(predict)
app.command()(serve)
app.command()(export)
app.command(name="app")(open_app)
app.command()(compare)
app.command()(watch)
app.command()(report)


def main() -> None:
    """Run the command line; exits 0 done, 1 failed, 2 the user's input, 130 interrupted."""
    quiet_imports()
    try:
        app()
    except SnugtuneError as error:
        sys.stderr.write(f"{plain(str(error))}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)
