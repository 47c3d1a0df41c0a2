"""How work grows from a thousand rows to a million: time, and memory beyond the model.

A generated table is prepared as ``fit`` prepares it, predicted from CSV to CSV, and evaluated, with a tiny
model, each in a fresh process. Linear work has slope 1 on logarithmic axes; the smallest tables are left out
of the slope, because fixed costs flatter them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lib import common, page

LIMIT_GIB = 2.0
"""The goal: no step takes more than this beyond the model, whatever the number of rows."""

LINEAR_UP_TO = 1.1
"""A slope up to this is called linear: caches and hash tables get a little slower as they grow."""


def main() -> None:
    options = _arguments()
    common.quiet_libraries()
    from lib.table import write_run

    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        folder = Path(temporary)
        run = write_run(folder / "run")
        sizes = {rows: _measure(rows, run, folder, options) for rows in sorted(options.rows)}
    result = {
        "settings": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(options).items()
            if name not in {"out", "scratch"}
        },
        "limit_gib": LIMIT_GIB,
        "linear_up_to": LINEAR_UP_TO,
        "sizes": {str(rows): of for rows, of in sizes.items()},
        "slopes": slopes(sizes, options.slope_from),
    }
    for step, value in result["slopes"].items():
        print(f"{step}: slope {value:.2f}" if value is not None else f"{step}: one size only")
    common.save_result("growth", result, options.out, machine=common.hardware())
    page.refresh(options.out)


def _arguments() -> Any:
    parser = common.parser("How preparation, prediction and evaluation grow with the rows.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--slope-from", type=int, default=10_000, help="rows from which slopes are fitted")
    parser.add_argument("--words", type=float, default=30, help="mean words of a text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scratch", type=Path, default=None, help="folder for the tables (default: the system's)"
    )
    return parser.parse_args()


def _measure(rows: int, run: Path, folder: Path, options: Any) -> dict[str, Any]:
    """Every kind of work on a table of ``rows``, each in a process of its own."""
    from lib.growth import WORK
    from lib.memory import in_child
    from lib.table import write_table

    table = folder / f"{rows}.csv"
    write_table(table, rows, options.words, options.seed)
    found: dict[str, Any] = {"megabytes": table.stat().st_size / 1e6}
    for name, work in WORK.items():
        found[name] = in_child(work, table, run, options.threads)
        told = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in found[name]["seconds"].items())
        print(f"{rows:,} rows: {told}; {found[name]['memory']['grown_gib']:.2f} GiB beyond the model")
    for path in folder.glob(f"{rows}*.csv"):
        path.unlink()
    return found


def slopes(sizes: dict[int, dict[str, Any]], slope_from: int) -> dict[str, float | None]:
    """The slope of every step over the tables of at least ``slope_from`` rows; of all, if too few are."""
    from lib.growth import WORK, slope

    large = [rows for rows in sizes if rows >= slope_from]
    chosen = large if len(large) > 1 else list(sizes)
    first = sizes[chosen[0]]
    return {
        step: slope(chosen, [sizes[rows][work]["seconds"][step] for rows in chosen])
        for work in WORK
        for step in first[work]["seconds"]
    }


if __name__ == "__main__":
    main()
