"""How a server is set: what it serves, where, to whom, and its limits."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from snugtune.errors import UserInputError

KEY_VARIABLE = "SNUGTUNE_KEY"
"""Environment variable that holds the key, where no file is named."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Limits:
    """What is taken on, and for how long. The first five are text-embeddings-inference's, by its names."""

    max_concurrent_requests: int = 512
    """Texts of one model that may be in the house at once: tokenized, queued or computed."""

    max_batch_tokens: int | None = None
    """Tokens, padding included, computed together; None: by device (``engine.py``)."""

    max_client_batch_size: int = 32
    """Texts in one request."""

    payload_limit: int = 2_000_000
    """Bytes of a request's body."""

    auto_truncate: bool = True
    """Whether a text that is too long is read as the run reads such texts where a request does not say."""

    tokenization_workers: int = 2
    """Threads per model that tokenize: a huge text holds up one of them only."""

    max_text_tokens: int = 32_768
    """Of a text that is read whole, in windows."""

    max_queue_tokens: int = 262_144
    """Tokens of one model that may wait: 512 texts of 512."""

    max_buffered_bytes: int = 64_000_000
    """Bodies that are still being read, all together."""

    max_connections: int = 1024
    """Open connections."""

    timeout_s: float = 30.0
    """From the last byte of a request to its answer."""

    read_timeout_s: float = 10.0
    """For a client to send the headers, to send the body, and to take the answer."""

    keep_alive_s: float = 75.0
    """That a connection may be idle between requests: longer than the 60 s of usual load balancers, so that
    they are the ones who close it."""

    grace_s: float = 30.0
    """To finish what was taken on, after SIGTERM."""

    def check(self) -> None:
        """Refuse limits that no request could meet.

        Raises:
            UserInputError: one is not positive.
        """
        for name, value in asdict(self).items():
            if value is not None and not isinstance(value, bool) and value <= 0:
                raise UserInputError(f"--{name.replace('_', '-')} must be above 0, not {value}.")


@dataclass(frozen=True)
class ServeSettings:
    """Everything that decides a server. ``runs`` are folders by the name they are served under."""

    runs: Mapping[str, str]
    host: str = "127.0.0.1"
    port: int = 8080
    key_file: str | None = None
    no_key: bool = False
    dtype: str = "auto"
    threads: int | None = None
    watch_s: float = 2.0
    share_weights: bool = False
    limits: Limits = field(default_factory=Limits)

    def as_json(self) -> str:
        """For a process of its own; the key is never part of it."""
        return json.dumps(asdict(self) | {"runs": dict(self.runs)})

    @classmethod
    def from_json(cls, text: str) -> ServeSettings:
        """What `as_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields | {"limits": Limits(**fields["limits"])})


def named_runs(words: Sequence[str]) -> dict[str, str]:
    """Folders by name, from ``FOLDER`` (named as the folder is) or ``NAME=FOLDER``; the first is the default.

    Raises:
        UserInputError: a name cannot stand in an address, or is there twice.
    """
    runs: dict[str, str] = {}
    for word in words:
        name, separator, folder = word.partition("=")
        if not separator or not _NAME.fullmatch(name):
            name, folder = Path(word).resolve().name, word
        if not _NAME.fullmatch(name):
            raise UserInputError(
                f"{name!r} cannot be the name of a model (letters, digits, '.', '_' and '-'); give it "
                f"another: name={word}."
            )
        if name in runs:
            raise UserInputError(f"Two models are called {name!r}; give one another name: other={folder}.")
        runs[name] = folder
    return runs


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_key(settings: ServeSettings, environment: Mapping[str, str]) -> bytes | None:
    """The key that requests must bring; None: none.

    Raises:
        UserInputError: others than this machine could reach a server without a key, the key's file cannot be
            read, or the key could not be sent in a header.
    """
    if settings.key_file is not None:
        try:
            key = Path(settings.key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserInputError(f"The key cannot be read from {settings.key_file}: {error}.") from None
        where = settings.key_file
    else:
        key, where = environment.get(KEY_VARIABLE, "").strip(), KEY_VARIABLE
        if not key and KEY_VARIABLE not in environment:
            _may_do_without(settings)
            return None
    if settings.no_key:
        raise UserInputError(f"--no-key was given, and a key, too (in {where}); drop one of them.")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UserInputError(f"The key in {where} must be one word of ASCII characters.")
    return key.encode("ascii")


def _may_do_without(settings: ServeSettings) -> None:
    if not settings.no_key and not is_loopback(settings.host):
        raise UserInputError(
            f"On {settings.host} anyone could ask this server. Give it a key (--key-file FILE, or "
            f"{KEY_VARIABLE} in the environment), or say --no-key if something before it asks for one."
        )
