"""A server in this process: load, listen, watch for new runs, and end in good order."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from snugtune.errors import SnugtuneError, UserInputError
from snugtune.progress import Observer
from snugtune.serve.settings import ServeSettings, read_key

if TYPE_CHECKING:
    from snugtune.serve.app import State
    from snugtune.serve.models import Models

BACKLOG = 2048
"""Connections that may wait to be accepted."""

_LAST_S = 5.0
"""For answers that are ready to be sent, after the grace time."""

CHECK_EVERY_S = 1.0
CHECKS = 3
"""A model that fails so many checks in a row is broken; what fails once may have met with a shortage."""

Watch = Callable[["Stop"], None]


class BrokenModelError(SnugtuneError):
    """A model answers nothing any more, so the process ends; whoever keeps it starts the next one."""


class Stop:
    """Tells a server to end: once in good order, twice at once. Safe to call from the event loop."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()

    def __call__(self) -> None:
        """Ask it to end, or to end at once."""
        if self.asked.is_set():
            self.at_once.set()
        self.asked.set()


def listen(settings: ServeSettings) -> socket.socket:
    """A socket that listens where ``settings`` say.

    Raises:
        UserInputError: there is no such address, or the port is taken or not allowed.
    """
    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        found = socket.socket(family, kind)
        if os.name == "posix":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserInputError(
            f"Cannot listen on {settings.host} port {settings.port}: {reason}; choose another "
            "--host or --port."
        ) from None
    return found


def address_of(listening: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve_here(
    settings: ServeSettings,
    *,
    listening: socket.socket | None = None,
    observer: Observer | None = None,
    watch: Watch | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what was taken on.

    Args:
        settings: what, where, to whom.
        listening: a socket, in the place of one that ``settings`` describe.
        observer: is told when the server is ready, and of new runs.
        watch: is given what ends the server, once the event loop runs.

    Raises:
        UserInputError: a setting is wrong, the ``serve`` extra is missing, or a run cannot be loaded.
        BrokenModelError: a model stopped answering.
    """
    settings.limits.check()
    key = read_key(settings, os.environ)
    check_extra()
    listening = listening or listen(settings)
    observer = observer or Observer()
    with listening:
        # In a thread that ends: see ``device.py``.
        with ThreadPoolExecutor(1) as loading:
            models, app, state = loading.submit(_application, settings, key, observer).result()
        server = _server(app, settings)
        factory = server.config.get_loop_factory()
        loop = asyncio.new_event_loop() if factory is None else factory()
        try:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(_serve(server, models, state, settings, listening, observer, watch))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def check_extra() -> None:
    """Say what to install if the server's libraries are not there.

    Raises:
        UserInputError: they are not.
    """
    try:
        import fastapi  # noqa: F401
        import httptools  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserInputError(f"snugtune serve needs {error.name}: pip install 'snugtune[serve]'.") from None


def _application(settings: ServeSettings, key: bytes | None, observer: Observer) -> tuple[Models, Any, State]:
    import torch

    from snugtune.serve.app import State, make_app
    from snugtune.serve.metrics import Metrics
    from snugtune.serve.models import load_models

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    metrics, state = Metrics(), State()
    models = load_models(
        dict(settings.runs),
        dtype=settings.dtype,  # type: ignore[arg-type]  # checked by Predictor.load
        limits=settings.limits,
        metrics=metrics,
        say=observer.say,
        share_weights=settings.share_weights,
    )
    return models, make_app(models, settings.limits, metrics, key=key, state=state), state


def _server(app: Any, settings: ServeSettings) -> Any:
    import uvicorn

    from snugtune.serve.connection import protocol_for

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Signals are `Stop`'s: uvicorn would close the door first and end with the signal's code."""
            yield

    limits = settings.limits
    return Server(
        uvicorn.Config(
            app, http=protocol_for(limits), ws="none", lifespan="off", log_config=None, access_log=False,
            log_level="critical", server_header=False, backlog=BACKLOG,
            timeout_keep_alive=int(limits.keep_alive_s), timeout_graceful_shutdown=int(_LAST_S),
        )
    )  # fmt: skip


async def _serve(
    server: Any,
    models: Models,
    state: State,
    settings: ServeSettings,
    listening: socket.socket,
    observer: Observer,
    watch: Watch | None,
) -> None:
    stop = Stop()
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    with _signals(stop):
        if watch is not None:
            watch(stop)
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        observer.say(f"Serving {', '.join(models.by_name)} on {address_of(listening)} (its page: /docs).")
        looking = asyncio.create_task(_look_for_new_runs(models, settings.watch_s, observer))
        asked = asyncio.create_task(stop.asked.wait())
        broken = asyncio.create_task(until_broken(models))
        await asyncio.wait({asked, serving, broken}, return_when=asyncio.FIRST_COMPLETED)
        for task in (looking, asked, broken):
            task.cancel()
        if not serving.done():
            await _drain(server, models, state, stop, settings.limits.grace_s)
        await serving
        if broken.done() and not broken.cancelled():
            raise BrokenModelError("A model no longer answers.")


async def until_broken(models: Models, *, every_s: float = CHECK_EVERY_S) -> None:
    """Wait until a model has failed ``CHECKS`` checks in a row, as after a CUDA error that outlasts it."""
    failed = 0
    while failed < CHECKS:
        await asyncio.sleep(every_s)
        if not models.healthy:
            await models.check()
        failed = 0 if models.healthy else failed + 1


async def _drain(server: Any, models: Models, state: State, stop: Stop, grace_s: float) -> None:
    """Take on nothing more, finish what is in the house, close the door."""
    state.draining = True
    ends = time.monotonic() + grace_s
    while models.in_house and time.monotonic() < ends and not stop.at_once.is_set():
        await asyncio.sleep(0.02)
    models.stop()
    server.should_exit = True


async def _look_for_new_runs(models: Models, every_s: float, observer: Observer) -> None:
    while every_s > 0:
        await asyncio.sleep(every_s)
        for model in models.by_name.values():
            if (sentence := await model.look()) is not None:
                observer.say(sentence)


@contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    loop, handled = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
    taken = []
    for number in handled:
        # Not on Windows, and not outside the main thread: there others end the server.
        with suppress(NotImplementedError, ValueError, RuntimeError):
            loop.add_signal_handler(number, stop)
            taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
