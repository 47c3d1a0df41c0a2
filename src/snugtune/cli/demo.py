"""``snugtune demo``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")] = Path("demo"),
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print run.json alone.")] = False,
) -> None:
    """Write a sample complaint workbook, train on it with the bundled MiniLM, evaluate and classify it."""
    from snugtune.cli.render import RichObserver, read_run, show_run
    from snugtune.config import make_config
    from snugtune.data.sample import write_sample
    from snugtune.predict.predictor import Predictor
    from snugtune.predict.table import predict_table
    from snugtune.quiet import quiet_libraries
    from snugtune.supervise import fit

    quiet_libraries()
    out.mkdir(parents=True, exist_ok=True)
    workbook, classified = out / "complaints.xlsx", out / "classified.xlsx"
    write_sample(workbook)
    settings = {
        "train": str(workbook),
        "text": ("Consumer complaint narrative",),
        "label": "Issue",
        "num_train_epochs": epochs,
        # Of the sample's labels 3 % are wrong on purpose: .95 would leave every row to a person.
        "precision_target": 0.85,
    }
    with RichObserver() as observer:
        run = fit(make_config(settings), out / "run", overwrite=True, observer=observer)
        counts = predict_table(Predictor.load(run), workbook, classified, overwrite=True, observer=observer)
    record = read_run(run)
    if json:
        typer.echo(json_module.dumps(record, ensure_ascii=False))
        return
    show_run(record, run)
    typer.echo(f"The sample workbook: {workbook}")
    for_review = f"{counts['needs_review']:,} of {counts['rows']:,} rows for a person"
    typer.echo(f"The same, classified, {for_review}: {classified}")
    typer.echo(f"Its report, for a browser: {run / 'report.html'}")
    typer.echo(f"Its model card: {run / 'README.md'}")
