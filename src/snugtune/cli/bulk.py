"""``snugtune predict`` of many files: what it says, and what it says before."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

import typer

from snugtune.errors import UserInputError
from snugtune.units import duration


def predict_many(
    run: Path,
    source: str,
    output: str,
    *,
    engine: str,
    workers: int | None,
    address: str | None,
    plan: bool,
    price: float | None,
    overwrite: bool,
    table: str | None,
    json: bool,
    text: list[str] | None,
    **options: Any,
) -> None:
    """Predict all files of ``source`` into ``output``, or say only what that would take."""
    from snugtune.cli.pipe import PIPE
    from snugtune.cli.render import RichObserver
    from snugtune.quiet import quiet_libraries
    from snugtune.scale.bulk import predict_bulk, refuse_failed
    from snugtune.scale.work import Options
    from snugtune.table_url import is_table_url

    if PIPE in (source, output) or table is not None or is_table_url(source) or is_table_url(output):
        raise UserInputError("Many files are files: neither pipes nor databases go together with them.")
    if price is not None and not (plan and 0 < price < float("inf")):
        raise UserInputError("--price is for --plan, and more than 0: USD per hour of one worker's machine.")
    given = Options(text=tuple(text) if text else None, **options)
    quiet_libraries()
    with RichObserver() as observer:
        if plan:
            _plan(run, source, output, given, workers, price, overwrite, json, observer)
            return
        result = predict_bulk(
            run, source, output, options=given, engine=engine, workers=workers, address=address,
            overwrite=overwrite, observer=observer,
        )  # fmt: skip
    if json:
        typer.echo(json_module.dumps(result.as_dict()))
    else:
        skipped = f" ({result.skipped:,} were finished before)" if result.skipped else ""
        rate = f", {result.rows_now / result.seconds:,.0f} rows a second" if result.rows_now else ""
        typer.echo(
            f"{result.done + result.skipped:,} files{skipped}, {result.rows:,} rows, "
            f"{result.needs_review:,} for a person to look at: {output} "
            f"({duration(result.seconds)}{rate})"
        )
    refuse_failed(result)


def _plan(
    run: Path, source: str, output: str, options: Any, workers: int | None, price: float | None,
    overwrite: bool, json: bool, observer: Any,
) -> None:  # fmt: skip
    from snugtune.cost.prices import price_of
    from snugtune.memory.devices import this_device
    from snugtune.predict.predictor import Predictor
    from snugtune.scale.bulk import prepare
    from snugtune.scale.bulk_forecast import begin_sentence, forecast

    job = prepare(run, source, output, options=options, overwrite=overwrite, observer=observer)
    predictor = Predictor.load(run, dtype=options.dtype, observer=observer)
    found = forecast(
        predictor, job.source, job.standing, job.amount, options, workers=workers or 1,
        price=price_of(this_device().card, price),
    )  # fmt: skip
    if json:
        typer.echo(json_module.dumps(None if found is None else found.as_dict()))
        return
    typer.echo(begin_sentence(job.source.shown(""), job.standing, job.amount))
    if found is None:
        return
    rows = f"{found.rows:,} rows" if found.rows_are_counted else f"about {found.rows:,} rows"
    typer.echo(
        f"{rows} at {found.rows_per_s:,.0f} rows a second and worker (measured here, on the first "
        f"{found.sample_rows:,} rows): {duration(found.seconds)} with {found.workers:,} "
        f"{'worker' if found.workers == 1 else 'workers'}."
    )
    if found.price is not None:
        source = ", ".join(filter(None, (found.price.provider, found.price.date)))
        typer.echo(
            f"{found.usd:,.2f} USD at {found.price.usd_per_hour:g} USD an hour of each worker's machine "
            f"({source}), without storage and transfer."
        )
