"""The process that serves for a keeper: ``python -m snugtune.serve.worker``.

The first line of standard input holds the settings and the number of the socket as JSON; its end means that
the keeper is gone. Standard output carries what ``snugtune.relay`` describes.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from typing import NoReturn

from snugtune.errors import SnugtuneError
from snugtune.quiet import quiet_imports, quiet_libraries
from snugtune.relay import RelayObserver
from snugtune.serve.server import Stop, serve_here
from snugtune.serve.settings import ServeSettings


def main() -> NoReturn:
    """Serve what standard input describes, until told to stop."""
    events = RelayObserver(os.dup(1))
    os.dup2(2, 1)  # what libraries print is not for the keeper
    job = json.loads(sys.stdin.buffer.readline() or b"null")
    if job is None:
        sys.exit(0)
    quiet_imports()
    settings = ServeSettings.from_json(job["settings"])
    try:
        quiet_libraries()
        serve_here(
            settings, listening=socket.socket(fileno=job["socket"]), observer=events, watch=_stop_with_keeper
        )
    except SnugtuneError as error:
        events.send("error", type=type(error).__name__, message=str(error))
        sys.exit(error.exit_code)
    events.send("done")
    sys.exit(0)


def _stop_with_keeper(stop: Stop) -> None:
    loop = asyncio.get_running_loop()

    def on_input() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop()

    loop.add_reader(0, on_input)


if __name__ == "__main__":
    main()
