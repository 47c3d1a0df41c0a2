"""Bulk prediction: many files of short rows, by each engine, the whole command from start to end.

The rows are generated, the model is a BERT of one layer with random weights: what is measured is how fast
rows go through the program. How long a larger model takes for them is told by ``prediction.py``. That every
row came out once, in its place, is looked at in what was written.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from lib import common, page

from snugtune.container import usable_cores
from snugtune.units import gib


def main() -> None:
    options = _arguments()
    common.quiet_libraries()
    from lib.table import write_run

    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        folder = Path(temporary)
        run = write_run(folder / "run")
        size = _write_shards(folder / "in", options)
        engines = {name: _measure(name, run, folder, options) for name in options.engines}
    result = {
        "settings": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(options).items()
            if name not in {"out", "scratch"}
        },
        "megabytes": size / 1e6,
        "engines": engines,
    }
    common.save_result("bulk", result, options.out, machine=common.hardware())
    page.refresh(options.out)


def _arguments() -> Any:
    parser = common.parser("How fast many files of short rows are predicted, by each engine.")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=40, help="Parquet files that the rows are in")
    parser.add_argument("--words", type=float, default=10, help="mean words of a text")
    parser.add_argument("--engines", nargs="+", default=["local", "ray"])
    parser.add_argument("--workers", type=int, default=usable_cores(), help="of Ray")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scratch", type=Path, default=None, help="folder for the files (default: the system's)"
    )
    return parser.parse_args()


def _write_shards(folder: Path, options: Any) -> int:
    """Parquet files of ``id`` and ``text``; the bytes of all."""
    import polars as pl
    from lib.table import write_table

    folder.mkdir()
    each = options.rows // options.shards
    options.rows = each * options.shards
    size = 0
    for i in range(options.shards):
        table = folder / "rows.csv"
        write_table(table, each, options.words, options.seed + i)
        path = folder / f"part-{i:05d}.parquet"
        frame = pl.read_csv(table, columns=["id", "text"])
        frame.with_columns(pl.col("id") + i * each).write_parquet(path)
        size += path.stat().st_size
        table.unlink()
    return size


def _measure(engine: str, run: Path, folder: Path, options: Any) -> dict[str, Any]:
    """One engine's command: its seconds, rows a second, memory, and whether every row is there once."""
    out = folder / "out"
    command = [sys.executable, "-m", "snugtune", "predict", str(run), f"{folder / 'in'}/*.parquet"]
    command += ["-o", str(out), "--engine", engine, "--json"]
    command += ["--workers", str(options.workers)] if engine == "ray" else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    environment.pop("TOKENIZERS_PARALLELISM", None)
    began = time.perf_counter()
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process,
        _Memory(process.pid) as memory,
    ):
        said = process.communicate()[0]
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{engine} ended with {process.returncode}.")
    told = json.loads(said)
    found = {
        "seconds": seconds,
        "work_seconds": told["seconds"],
        "rows": told["rows"],
        "rows_per_s": told["rows"] / seconds,
        "peak_gib": gib(memory.peak),
        "every_row_once": _every_row_once(out, options.rows),
    }
    print(
        f"{engine}: {told['rows']:,} rows in {seconds:.1f} s, {found['rows_per_s']:,.0f} a second, at most "
        f"{found['peak_gib']:.2f} GiB, every row once: {found['every_row_once']}"
    )
    shutil.rmtree(out)
    return found


def _every_row_once(out: Path, rows: int) -> bool:
    """Whether the outputs, in the order of their names, have the ids 0, 1, 2, ... and a label each."""
    import polars as pl

    expected = 0
    for path in sorted(out.glob("*.parquet")):
        frame = pl.read_parquet(path, columns=["id", "predicted_label"])
        if frame["predicted_label"].null_count() or frame["id"].to_list() != list(
            range(expected, expected + frame.height)
        ):
            return False
        expected += frame.height
    return expected == rows


class _Memory:
    """The most memory that a process and its descendants have of their own, looked at twice a second.

    Proportional set size: what processes share is counted once.
    """

    def __init__(self, process_id: int) -> None:
        self._process_id, self.peak = process_id, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        import psutil

        while not self._ended.wait(0.5):
            total = 0
            try:
                root = psutil.Process(self._process_id)
                for process in [root, *root.children(recursive=True)]:
                    try:
                        total += process.memory_full_info().pss
                    except (psutil.Error, AttributeError):
                        continue
            except psutil.Error:
                return
            self.peak = max(self.peak, total)


if __name__ == "__main__":
    main()
