"""``snugtune audit``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from snugtune.cli import options

NOT_SETTINGS = {"data", "out", "frozen_pass", "overwrite", "json"}


def audit(
    context: typer.Context,
    data: Annotated[str, typer.Argument(help="The table to look at: CSV, Excel, Parquet, JSON lines.")],
    out: Annotated[Path, typer.Option("--out", "--output", "-o", help="The folder to write.")] = Path(
        "audit"
    ),
    test: Annotated[str | None, typer.Option(help="A table that models will be tested on.")] = None,
    frozen_pass: Annotated[
        bool,
        typer.Option(
            "--frozen-pass/--no-frozen-pass",
            help="Let the model read the texts to judge the labels, or do so by words alone.",
        ),
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the audit in --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print audit.json alone.")] = False,
    text: options.Text = None,
    label: options.Label = None,
    label_separator: options.LabelSeparator = None,
    multi_label: options.MultiLabel = False,
    problem_type: options.ProblemType = None,
    sheet: options.Sheet = None,
    test_sheet: options.TestSheet = None,
    encoding: options.Encoding = None,
    delimiter: options.Delimiter = None,
    corrections: options.Corrections = None,
    merge_label_variants: options.MergeLabelVariants = None,
    min_class_count: options.MinClassCount = None,
    seed: options.Seed = None,
    model: options.Model = None,
    revision: options.Revision = None,
    max_length: options.MaxLength = None,
    long_texts: options.LongTexts = None,
) -> None:
    """Look at a table before spending anything on it."""
    from snugtune.audit import audit as run_audit
    from snugtune.cli.audit_tables import show_audit
    from snugtune.cli.render import RichObserver
    from snugtune.config import make_config
    from snugtune.quiet import quiet_libraries

    quiet_libraries()
    given = {key: value for key, value in context.params.items() if key not in NOT_SETTINGS}
    settings = make_config({"train": data} | options.settings(given))
    with RichObserver() as observer:
        record = run_audit(settings, out, frozen_pass=frozen_pass, overwrite=overwrite, observer=observer)
    if json:
        typer.echo(json_module.dumps(record, ensure_ascii=False))
    else:
        show_audit(record, out)
