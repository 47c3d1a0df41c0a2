"""Coverage-guided fuzzing of one reader: ``python -m fuzz.atheris_readers csv -max_total_time=60``.

libFuzzer keeps the inputs that reach new lines of the readers and of the libraries in Python below them, and
damages those further. It ends at the first error that is no sentence of ours, and writes the input down.
``make fuzz`` runs all four; Atheris has wheels for Linux and needs Python 3.11 or newer.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["snugtune.data", "snugtune.config", "openpyxl", "yaml", "csv", "json"]
):
    import openpyxl  # noqa: F401
    import yaml  # noqa: F401

    from snugtune.config import make_config, read_config
    from snugtune.data.table import read_table

from fuzz.samples import write_samples
from snugtune.errors import SnugtuneError

SUFFIXES = {"csv": ".csv", "json": ".jsonl", "yaml": ".yaml", "xlsx": ".xlsx"}


def call(kind, path):
    """What the command line does with a file of this kind."""
    if kind == "yaml":
        make_config(read_config(path) | {"train": "a.csv"})
    else:
        read_table(path)


def main():
    kind, options = sys.argv[1], sys.argv[2:]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="snugtune-fuzz-") as folder:
        samples = write_samples(Path(folder, "samples"), families=(kind,))
        path = Path(folder, f"input{SUFFIXES[kind]}")

        def one(content):
            path.write_bytes(content)
            try:
                call(kind, path)
            except SnugtuneError as error:
                if "\n" in str(error):
                    raise RuntimeError("not one sentence") from error

        # Inputs that reach something new are kept in the first folder, beside the samples.
        atheris.Setup([sys.argv[0], str(samples / kind), "-rss_limit_mb=2048", "-timeout=30", *options], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
