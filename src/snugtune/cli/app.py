"""``snugtune app``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snugtune.cli import completion

REVIEW, ACCESS = "Review", "Who may use it, and how much"


def app(
    run: Annotated[
        Path, typer.Argument(autocompletion=completion.runs, help="The run folder that fit wrote.")
    ],
    queue: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=REVIEW,
            help="A table whose uncertain rows go into the review queue; repeat for several.",
        ),
    ] = None,
    reviews: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=REVIEW, help="Where decisions are kept (RUN.reviews.db beside the run)."
        ),
    ] = None,
    review: Annotated[
        bool,
        typer.Option(
            "--review/--no-review", rich_help_panel=REVIEW, help="Leave the review page out: nothing is kept."
        ),
    ] = True,
    audit_share: Annotated[
        float,
        typer.Option(
            rich_help_panel=REVIEW,
            help="Share of the confident predictions that are reviewed, too, drawn at random.",
        ),
    ] = 0.02,
    guidelines: Annotated[
        Path | None,
        typer.Option(rich_help_panel=REVIEW, help="Rules for reviewers, in Markdown, shown beside the text."),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            rich_help_panel=ACCESS,
            help="Address to listen at; others than this machine's own need a password.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, rich_help_panel=ACCESS, help="Port to listen at; 0 takes any.")
    ] = 7860,
    password_file: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=ACCESS,
            help="A file with the password on its first line; or set SNUGTUNE_APP_PASSWORD.",
        ),
    ] = None,
    max_upload_mb: Annotated[
        int, typer.Option(min=1, rich_help_panel=ACCESS, help="The largest table that may be uploaded, MiB.")
    ] = 50,
    max_rows: Annotated[
        int, typer.Option(min=1, rich_help_panel=ACCESS, help="The most rows it may have.")
    ] = 100_000,
    dtype: Annotated[
        str,
        typer.Option(
            autocompletion=completion.choice_of(*completion.DTYPES),
            help="Arithmetic: auto (float32, as measured); bfloat16, often faster; int8, a CPU: less exact.",
        ),
    ] = "auto",
) -> None:
    """A web page for a run: try texts, predict tables, review predictions.

    What reviewers decide is kept in a SQLite file that fit takes: snugtune fit TABLE --add
    runs/run.reviews.db
    """
    from snugtune.cli.render import RichObserver
    from snugtune.errors import UserInputError
    from snugtune.quiet import quiet_libraries
    from snugtune.serve.web.application import (
        AppSettings,
        check_opening,
        create_app,
        default_reviews,
        require_gradio,
    )
    from snugtune.serve.web.guard import LOOPBACK
    from snugtune.serve.web.opening import listen, read_guidelines, read_password, serve, temporary_files
    from snugtune.serve.web.queue import check_share, fill_queue
    from snugtune.serve.web.reviews import ReviewStore

    require_gradio()
    password = read_password(password_file)
    check_opening(host, password)
    check_share(audit_share)
    settings = AppSettings(
        reviews=(reviews or default_reviews(run)) if review else None,
        guidelines=None if guidelines is None else read_guidelines(guidelines),
        password=password, most_upload_bytes=max_upload_mb * 2**20, most_rows=max_rows,
        audit_share=audit_share,
        hosts=LOOPBACK if password is None else None,
    )  # fmt: skip
    if queue and settings.reviews is None:
        raise UserInputError("--queue is for the review page; leave out --no-review.")
    quiet_libraries()
    from snugtune.predict.predictor import Predictor

    with listen(host, port) as socket, temporary_files():
        with RichObserver() as observer:
            predictor = Predictor.load(run, dtype=dtype, observer=observer)  # type: ignore[arg-type]  # checked there
            application = create_app(run, predictor, settings)
            for table in queue or ():
                assert settings.reviews is not None
                labels = predictor.labels
                store = ReviewStore.open(settings.reviews, labels.names, labels.separator)
                observer.phase("predict")
                added = fill_queue(predictor, store, table, audit_share=audit_share, observer=observer)
                observer.say(f"{added:,} texts of {table} are new in the review queue.")
        serve(application, socket, started=lambda address: typer.echo(f"{address}  (Ctrl-C ends it)"))
