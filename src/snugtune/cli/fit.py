"""``snugtune fit``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

Option = typer.Option


def fit(
    train: Annotated[str, typer.Argument(help="The table to learn from: CSV, Excel, Parquet, JSON lines.")],
    out: Annotated[Path, Option("--out", "-o", help="The run folder to write.")] = Path("runs/run"),
    test: Annotated[str | None, Option(help="A table to test on, touched once at the end.")] = None,
    text: Annotated[list[str] | None, Option(help="Text column; repeat for several.")] = None,
    label: Annotated[str | None, Option(help="Label column.")] = None,
    model: Annotated[str | None, Option(help="'minilm', a folder, or a Hub name.")] = None,
    config: Annotated[Path | None, Option(help="YAML settings; the options given here win.")] = None,
    sheet: Annotated[str | None, Option(help="Sheet of a workbook.")] = None,
    encoding: Annotated[str | None, Option(help="Encoding of a CSV that is not UTF-8.")] = None,
    delimiter: Annotated[str | None, Option(help="Delimiter of a CSV, if it is not found.")] = None,
    duplicates: Annotated[str | None, Option(help="Exact duplicates: drop (default) or keep.")] = None,
    conflicts: Annotated[str | None, Option(help="Same text, other label: keep (default) or drop.")] = None,
    keep_label_variants: Annotated[
        bool, Option(help="Labels that differ by case or spacing stay apart.")
    ] = False,
    min_class_count: Annotated[int | None, Option(help="Leave out classes with fewer rows.")] = None,
    max_length: Annotated[int | None, Option(help="Tokens kept of each text.")] = None,
    method: Annotated[str | None, Option(help="lora, full or head.")] = None,
    r: Annotated[int | None, Option(help="LoRA rank.")] = None,
    lora_alpha: Annotated[float | None, Option(help="LoRA scaling.")] = None,
    target_modules: Annotated[str | None, Option(help="Module names, by commas, or all-linear.")] = None,
    learning_rate: Annotated[float | None, Option(help="Learning rate of the adapter.")] = None,
    head_learning_rate: Annotated[float | None, Option(help="Learning rate of the head.")] = None,
    num_train_epochs: Annotated[float | None, Option("--epochs", help="Passes over the data.")] = None,
    effective_batch_size: Annotated[int | None, Option(help="Examples per optimiser step.")] = None,
    seed: Annotated[int | None, Option(help="Seed of split, order and initial weights.")] = None,
    price_per_hour_usd: Annotated[
        float | None, Option("--price", help="USD per hour of this machine.")
    ] = None,
    overwrite: Annotated[bool, Option(help="Write into a folder that holds something.")] = False,
    json: Annotated[bool, Option("--json", help="Print run.json alone.")] = False,
) -> None:
    """Train a classifier on a table: snugtune fit complaints.csv --text narrative --label issue."""
    from snugtune.cli.render import RichObserver, quiet_libraries, read_run, show_run
    from snugtune.config import make_config, read_config
    from snugtune.fit import fit as run_fit

    quiet_libraries()
    given: dict[str, Any] = {
        "train": train, "test": test, "text": tuple(text) if text else None, "label": label, "model": model,
        "sheet": sheet, "encoding": encoding, "delimiter": delimiter, "duplicates": duplicates,
        "conflicts": conflicts, "merge_label_variants": False if keep_label_variants else None,
        "min_class_count": min_class_count, "max_length": max_length, "method": method, "r": r,
        "lora_alpha": lora_alpha, "target_modules": _names(target_modules), "learning_rate": learning_rate,
        "head_learning_rate": head_learning_rate, "num_train_epochs": num_train_epochs,
        "effective_batch_size": effective_batch_size, "seed": seed, "price_per_hour_usd": price_per_hour_usd,
    }  # fmt: skip
    settings = read_config(config) if config else {}
    settings |= {key: value for key, value in given.items() if value is not None}
    with RichObserver() as observer:
        run = run_fit(make_config(settings), out, overwrite=overwrite, observer=observer)
    record = read_run(run)
    if json:
        typer.echo(json_module.dumps(record, ensure_ascii=False))
    else:
        show_run(record, run)


def _names(text: str | None) -> tuple[str, ...] | str | None:
    if text is None or text == "all-linear":
        return text
    return tuple(part.strip() for part in text.split(","))
