"""``snugtune search``."""

from __future__ import annotations

import inspect
import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from snugtune.cli import options
from snugtune.cli.fit import NOT_SETTINGS as NOT_SETTINGS_OF_FIT
from snugtune.cli.fit import fit

if TYPE_CHECKING:
    pass

NOT_SETTINGS = NOT_SETTINGS_OF_FIT - {"resume"} | {"trials", "processes", "keep"}


def search(
    context: typer.Context,
    train: Annotated[str, typer.Argument(help="The table to learn from: CSV, Excel, Parquet, JSON lines.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The search's folder; the winner is in best/.")
    ] = Path("runs/search"),
    test: Annotated[
        str | None, typer.Option(help="A table to test on, touched once at the end, by the winner.")
    ] = None,
    trials: Annotated[int, typer.Option(help="The most trials.", rich_help_panel=options.BUDGET)] = 20,
    processes: Annotated[int, typer.Option(help="Trials at once, each in a process of its own.")] = 1,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep what every trial has trained, not the best one's alone.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="YAML settings that hold in every trial; the options given here win.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew: replace the search in --out.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print search.json alone.")] = False,
    supervise: Annotated[
        bool | None,
        typer.Option(
            "--supervise/--no-supervise",
            help="Train in a process of its own, as for fit (default: where there is a GPU).",
            show_default=False,
        ),
    ] = None,
    **settings: Any,
) -> None:
    """Try settings and keep the best; every option of fit that is given holds in all trials.

    The same command goes on with an unfinished search, and given twice both work on it. --max-cost,
    --max-time and --max-units are of the whole search; --method may name several, by commas.
    """
    from snugtune.cli.search_tables import SearchDisplay, show_search
    from snugtune.config import read_config
    from snugtune.quiet import quiet_libraries
    from snugtune.scale.search import make_plan
    from snugtune.scale.search import search as run_search

    quiet_libraries()
    given = {"train": train, "test": test, **settings}
    asked = (read_config(config) if config else {}) | options.settings(given)
    plan = make_plan(asked, out, trials=trials, keep=keep, supervised=supervise)
    with SearchDisplay(price_per_hour_usd=plan.base.price_per_hour_usd) as observer:
        folder = run_search(plan, processes=processes, overwrite=overwrite, observer=observer)
    record = json_module.loads((folder / "search.json").read_text(encoding="utf-8"))
    if json:
        typer.echo(json_module.dumps(record, ensure_ascii=False))
    else:
        show_search(record, folder)


def _with_options_of_fit() -> None:
    """The settings of a fit become options of this command, too: what fit takes, a search can hold fixed."""
    own = {name: one for name, one in inspect.signature(search).parameters.items() if name != "settings"}
    theirs = inspect.signature(fit).parameters
    hints = get_type_hints(fit, include_extras=True)
    added = {name: one for name, one in theirs.items() if name not in own and name not in NOT_SETTINGS_OF_FIT}
    annotations = {**get_type_hints(search, include_extras=True), **{name: hints[name] for name in added}}
    del annotations["settings"]
    parameters = [one.replace(annotation=annotations[name]) for name, one in {**own, **added}.items()]
    search.__annotations__ = annotations
    search.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]


_with_options_of_fit()
