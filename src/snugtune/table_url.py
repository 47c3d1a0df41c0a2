"""Addresses of tables in databases, and passwords, which are never a part of what is shown or kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from snugtune.errors import UserInputError

_SCHEMES = {
    "sqlite": "sqlite",
    "duckdb": "duckdb",
    "postgresql": "postgresql",
    "postgres": "postgresql",
}
_passwords: dict[str, str] = {}
"""Of this process, by the address without it. No file and no other process gets them."""


@dataclass(frozen=True)
class TableUrl:
    """A table of a database: ``database`` is a file's path or, for PostgreSQL, libpq's URI."""

    scheme: str
    database: str
    table: str
    shown: str
    """The whole address without a password."""


def is_table_url(source: object) -> bool:
    """Whether ``source`` is the address of a database rather than a file."""
    return isinstance(source, str) and "://" in source and source.partition("://")[0].lower() in _SCHEMES


def _split(source: str) -> SplitResult:
    """The parts of an address. It has no fragment: a # is a part of a name or a password."""
    return urlsplit(source.replace("#", "%23"))


def hide_password(source: str) -> str:
    """``source``, without its password if it is an address with one; this process remembers it."""
    if not is_table_url(source):
        return source
    parts = _split(source)
    options = parse_qsl(parts.query, keep_blank_values=True)
    password = unquote(parts.password or "") or dict(options).get("password")
    user, at, host = parts.netloc.rpartition("@")
    place = user.partition(":")[0] + at + host
    query = urlencode([pair for pair in options if pair[0] != "password"], safe="/:")
    shown = urlunsplit((parts.scheme, place, parts.path, query, ""))
    if parts.scheme in ("sqlite", "duckdb") and not place:  # urlunsplit drops the slashes of an empty place
        shown = f"{parts.scheme}://{parts.path}" + (f"?{query}" if query else "")
    if password:
        _passwords[shown] = password
    return shown if password else source


def with_table(source: str, table: str | None) -> str:
    """``source`` with the name of a table that it does not have yet.

    Raises:
        UserInputError: it is no address of a database, or names a table already.
    """
    if table is None:
        return source
    if not is_table_url(source):
        raise UserInputError("--table is for databases, as in sqlite:///complaints.db; leave it out.")
    if "table" in dict(parse_qsl(_split(source).query)):
        raise UserInputError(f"{hide_password(source)} already names a table; leave --table out.")
    return f"{source}{'&' if '?' in source else '?'}table={quote(table)}"


def parse_table_url(source: str) -> TableUrl:
    """Take ``source`` apart.

    Raises:
        UserInputError: it names no table, or no database.
    """
    shown = hide_password(source)
    parts = _split(shown)
    scheme = _SCHEMES[parts.scheme.lower()]
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    table = options.pop("table", "")
    if not table:
        raise UserInputError(f"{shown} names no table; add ?table=NAME (or --table NAME, for INPUT).")
    if scheme == "postgresql":
        user, at, host = parts.netloc.rpartition("@")
        password = _passwords.get(shown)
        secret = "" if password is None else ":" + quote(password, safe="")
        place = (user + secret + at + host) if at else host
        return TableUrl(
            scheme, urlunsplit(("postgresql", place, parts.path, urlencode(options), "")), table, shown
        )
    path = unquote(parts.path)[1:]  # three slashes begin a relative path, four an absolute one
    if not path or parts.netloc:
        raise UserInputError(
            f"{shown} names no file; write {scheme}:///file.db?table=NAME (a full path: four slashes)."
        )
    return TableUrl(scheme, str(Path(path)), table, shown)
