"""``snugtune demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")] = Path("demo"),
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 3,
) -> None:
    """Write a sample complaint workbook, train on it with the bundled MiniLM, and classify it."""
    from snugtune.cli.render import RichObserver, quiet_libraries, read_run, show_run
    from snugtune.config import make_config
    from snugtune.data.sample import write_sample
    from snugtune.fit import fit
    from snugtune.predict.predictor import Predictor
    from snugtune.predict.write import write_tables

    quiet_libraries()
    out.mkdir(parents=True, exist_ok=True)
    workbook, classified = out / "complaints.xlsx", out / "classified.xlsx"
    write_sample(workbook)
    settings = {
        "train": str(workbook),
        "text": ("Consumer complaint narrative",),
        "label": "Issue",
        "num_train_epochs": epochs,
    }
    with RichObserver() as observer:
        run = fit(make_config(settings), out / "run", overwrite=True, observer=observer)
    show_run(read_run(run), run)
    counts = write_tables(Predictor.load(run).tables(workbook), classified)
    typer.echo(f"The sample: {workbook}")
    typer.echo(
        f"The sample classified, {counts['needs_review']:,} of {counts['rows']:,} for a person: {classified}"
    )
