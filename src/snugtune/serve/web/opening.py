"""What is done before and while the app is open: password and guidelines read, an address, a folder for
uploads.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from snugtune.errors import UserInputError

PASSWORD = "SNUGTUNE_APP_PASSWORD"  # the name of an environment variable

MOST_GUIDELINES = 200_000
"""Characters of guidelines."""


def read_password(path: Path | None) -> str | None:
    """The first line of the file, or what the environment says; None where neither does.

    Raises:
        UserInputError: the file cannot be read, or holds nothing.
    """
    if path is None:
        return os.environ.get(PASSWORD) or None
    found = _read(path, "password").split("\n", 1)[0].strip()
    if not found:
        raise UserInputError(
            f"The password file {path} has nothing on its first line; write the password there."
        )
    return found


def read_guidelines(path: Path) -> str:
    """The text of the file.

    Raises:
        UserInputError: it cannot be read or is very long.
    """
    text = _read(path, "guidelines")
    if len(text) > MOST_GUIDELINES:
        raise UserInputError(
            f"The guidelines in {path} are longer than {MOST_GUIDELINES:,} characters; shorten them."
        )
    return text


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserInputError(f"The {what} file {path} cannot be read: {reason}.") from None


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket, taken before the model is loaded.

    Raises:
        UserInputError: the address is taken or not of this machine.
    """
    name = host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserInputError(f"The app cannot listen at {host}: {error.strerror}.") from None
    with found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(address)
            found.listen(128)
        except OSError as error:
            raise UserInputError(
                f"The app cannot listen at {host}, port {port}: {error.strerror}; choose another --port."
            ) from None
        yield found


@contextmanager
def temporary_files() -> Iterator[None]:
    """A folder for what is uploaded and what comes back, which goes when the app does."""
    with TemporaryDirectory(prefix="snugtune-app-") as folder:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def serve(application: Any, listening: socket.socket, started: Callable[[str], None]) -> None:
    """Answer until Ctrl-C; ``started`` is told the address."""
    import uvicorn

    host, port = listening.getsockname()[:2]
    shown = "localhost" if host in ("127.0.0.1", "::1") else f"[{host}]" if ":" in host else host
    started(f"http://{shown}:{port}")
    config = uvicorn.Config(
        application, log_level="warning", server_header=False, timeout_graceful_shutdown=3
    )
    uvicorn.Server(config).run(sockets=[listening])
