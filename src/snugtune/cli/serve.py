"""``snugtune serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snugtune.cli import completion

ACCESS = "Access"

LIMITS = "Limits"


def serve(
    runs: Annotated[
        list[str],
        typer.Argument(
            autocompletion=completion.runs,
            metavar="RUN...",
            help="Run folders, or NAME=FOLDER; the first is the default model.",
        ),
    ],
    host: Annotated[
        str, typer.Option(rich_help_panel=ACCESS, help="Address to listen on; this machine only by default.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option("--port", "-p", rich_help_panel=ACCESS, help="Port to listen on; 0: any that is free."),
    ] = 8080,
    key_file: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=ACCESS, help="File with the key that requests must bring; or set SNUGTUNE_KEY."
        ),
    ] = None,
    no_key: Annotated[
        bool,
        typer.Option(
            "--no-key", rich_help_panel=ACCESS, help="Answer everyone, also on an address others can reach."
        ),
    ] = False,
    dtype: Annotated[
        str,
        typer.Option(
            autocompletion=completion.choice_of(*completion.DTYPES),
            help="Arithmetic: auto (float32, as measured), bfloat16, float16 (a GPU), int8 (a CPU).",
        ),
    ] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of the model (all cores).")] = None,
    share_weights: Annotated[
        bool,
        typer.Option(
            "--share-weights",
            help="Keep what runs of one backbone have in common in memory once: room for many, each slower.",
        ),
    ] = False,
    watch: Annotated[
        float, typer.Option(help="Seconds between looks for a new run in the folders; 0: never.")
    ] = 2.0,
    supervise: Annotated[
        bool, typer.Option("--supervise/--no-supervise", help="Start the server again should it die.")
    ] = True,
    max_concurrent_requests: Annotated[
        int, typer.Option(help="Texts of a model taken on at once; past it 429.", rich_help_panel=LIMITS)
    ] = 512,
    max_batch_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens computed together, with padding (by device).", rich_help_panel=LIMITS),
    ] = None,
    max_client_batch_size: Annotated[
        int, typer.Option(help="Texts in a request.", rich_help_panel=LIMITS)
    ] = 32,
    payload_limit: Annotated[
        int, typer.Option(help="Bytes of a request's body.", rich_help_panel=LIMITS)
    ] = 2_000_000,
    auto_truncate: Annotated[
        bool,
        typer.Option(
            "--auto-truncate/--no-auto-truncate",
            help="Read texts that are too long as the run does, or refuse them, if a request does not say.",
            rich_help_panel=LIMITS,
        ),
    ] = True,
    tokenization_workers: Annotated[
        int, typer.Option(help="Threads that tokenize, for each model.", rich_help_panel=LIMITS)
    ] = 2,
    max_text_tokens: Annotated[
        int, typer.Option(help="Tokens of a text that is read in windows.", rich_help_panel=LIMITS)
    ] = 32_768,
    max_queue_tokens: Annotated[
        int, typer.Option(help="Tokens that may wait, for each model.", rich_help_panel=LIMITS)
    ] = 262_144,
    max_connections: Annotated[int, typer.Option(help="Open connections.", rich_help_panel=LIMITS)] = 1024,
    timeout: Annotated[
        float, typer.Option(help="Seconds until a request has its answer or fails.", rich_help_panel=LIMITS)
    ] = 30.0,
    read_timeout: Annotated[
        float, typer.Option(help="Seconds a client may take to send or to receive.", rich_help_panel=LIMITS)
    ] = 10.0,
    grace: Annotated[
        float,
        typer.Option(help="Seconds to finish what was taken on, after SIGTERM.", rich_help_panel=LIMITS),
    ] = 30.0,
) -> None:
    """Serve one or several runs over HTTP.

    POST /predict takes what text-embeddings-inference takes; POST /v1/classify answers with label,
    confidence and needs_review. What a run says here is what snugtune predict says.
    """
    from snugtune.progress import Observer
    from snugtune.serve.keeper import serve as run_server
    from snugtune.serve.settings import Limits, ServeSettings, named_runs

    settings = ServeSettings(
        runs=named_runs(runs), host=host, port=port, key_file=None if key_file is None else str(key_file),
        no_key=no_key, dtype=dtype, threads=threads, watch_s=watch, share_weights=share_weights,
        limits=Limits(
            max_concurrent_requests=max_concurrent_requests, max_batch_tokens=max_batch_tokens,
            max_client_batch_size=max_client_batch_size, payload_limit=payload_limit,
            auto_truncate=auto_truncate, tokenization_workers=tokenization_workers,
            max_text_tokens=max_text_tokens, max_queue_tokens=max_queue_tokens,
            max_connections=max_connections, timeout_s=timeout, read_timeout_s=read_timeout, grace_s=grace,
        ),
    )  # fmt: skip

    class Told(Observer):
        def say(self, sentence: str) -> None:
            typer.echo(sentence, err=True)

    run_server(settings, observer=Told(), supervised=supervise)
