"""Execute a notebook from top to bottom, in a folder of its own, and write it with its outputs.

    python notebooks/execute.py notebooks/complaints.ipynb -o done.ipynb --size sample

The first cell that fails ends it, with its traceback.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

CELL_TIMEOUT_S = 6 * 3600


def execute(notebook: Path, *, folder: Path, size: str) -> nbformat.NotebookNode:
    """The notebook with outputs; what it writes lies in ``folder``."""
    os.environ["SNUGTUNE_NOTEBOOK"] = size
    found = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        found, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def main() -> None:
    """Parse, execute, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the notebook to write")
    parser.add_argument("--size", choices=("sample", "real"), default="sample")
    parser.add_argument("--folder", type=Path, help="where it runs; a temporary folder if left out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        done = execute(given.notebook, folder=given.folder or Path(temporary), size=given.size)
    nbformat.write(done, given.output)


if __name__ == "__main__":
    main()
