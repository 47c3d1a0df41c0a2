"""Folders of files, here or in an object store: S3 and what speaks its protocol, Google Cloud Storage.

pyarrow's own file systems do the talking; nothing else is needed for them. A file appears whole or not at
all: here it is renamed into its place, and an object becomes visible when its upload is completed.
"""

from __future__ import annotations

import datetime as dt
import fnmatch
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from snugtune.errors import UserInputError, one_line
from snugtune.files import flush, flush_folder, replacing

SCHEMES = {"s3": "s3", "gs": "gs", "gcs": "gs"}
"""Of addresses, and the store each means."""

MAGIC = re.compile(r"[*?\[]")
RETRIES_S = 60
"""How long Google's client tries again what failed; its own default is a quarter of an hour."""

_BLOCK = 16 << 20
"""Bytes asked for at a time: every one is a request, which is paid for."""

_S3_OPTIONS = {"endpoint_override", "scheme", "region", "anonymous"}
_GS_OPTIONS = {"endpoint_override", "scheme", "anonymous"}
_YES = {"1", "true", "yes"}


@dataclass(frozen=True)
class Entry:
    """A file of a folder: its name with ``/`` between the parts, bytes, and when it was changed."""

    name: str
    size: int
    modified: str


class Folder(Protocol):
    """A folder whose files are known by their names below it, with ``/`` between the parts."""

    @property
    def address(self) -> str:
        """The folder, with all that another process needs to find it; never a secret."""

    @property
    def local(self) -> Path | None:
        """The folder on this machine's disks, or None."""

    def shown(self, name: str) -> str:
        """The file ``name`` as the user would write it."""

    def below(self, name: str) -> Folder:
        """The folder ``name`` in it."""

    def name_of(self, inner: Folder) -> str | None:
        """The name of the folder ``inner`` in this one, ``.`` if it is the same; None if it is elsewhere."""

    def entries(self, *, recursive: bool) -> Iterator[Entry]:
        """Its files; a folder that is not there has none."""

    def entry(self, name: str) -> Entry | None:
        """The file ``name``, or None."""

    def read(self, name: str) -> bytes | None:
        """What a small file holds, or None without it."""

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""

    def fetch(self, name: str, target: Path) -> None:
        """Copy the file ``name`` to ``target`` on this machine."""

    def put(self, source: Path, name: str) -> None:
        """Give the file ``source`` away as ``name``: it appears whole, or what was there stays."""


def is_store_address(source: str) -> bool:
    """Whether ``source`` is in an object store."""
    return source.partition("://")[0].lower() in SCHEMES and "://" in source


def open_folder(address: str) -> Folder:
    """The folder at ``address``: a path, ``s3://bucket/name`` or ``gs://bucket/name``.

    Raises:
        UserInputError: the address cannot be understood, or pyarrow is missing.
    """
    if is_store_address(address):
        return _open_store(address)
    if "://" in address:
        raise UserInputError(
            f"{address} is of no known kind; use s3://BUCKET/NAME, gs://BUCKET/NAME or a path."
        )
    return LocalFolder(Path(address))


def split_pattern(source: str) -> tuple[str, str]:
    """The folder of a path, address or pattern, and what is left of it: ``s3://b/in/*.csv`` at ``*``.

    The options behind ``?`` of an address stay with the folder. Without a wildcard the rest is a file's name,
    or, behind a slash, everything in the folder.
    """
    path, options = source, ""
    if is_store_address(source):
        path, options = _split_options(source)
        if path.count("/") == 2:  # the bucket alone
            path += "/"
    parts = path.split("/")
    magic = next((i for i, part in enumerate(parts) if MAGIC.search(part)), len(parts) - 1)
    folder = "/".join(parts[:magic])
    if not folder:
        folder = "/" if path.startswith("/") else "."
    return folder + options, "/".join(parts[magic:]) or "*"


def _split_options(source: str) -> tuple[str, str]:
    """An address without its options, and these with their ``?``, which in a name is a wildcard."""
    path, mark, options = source.rpartition("?")
    names = {part.partition("=")[0] for part in options.split("&") if "=" in part}
    return (path, mark + options) if names & (_S3_OPTIONS | _GS_OPTIONS) else (source, "")


def matches(name: str, pattern: str) -> bool:
    """Whether a name below a folder fits ``pattern``: ``*`` within a part of it, ``**`` any parts.

    As Spark, Ray and Hive have it, a wildcard finds no part that begins with ``.`` or ``_``.
    """
    return _fit(name.split("/"), pattern.split("/"))


def _fit(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return _fit(parts, patterns[1:]) or (
            bool(parts) and not _is_hidden(parts[0]) and _fit(parts[1:], patterns)
        )
    if not parts or (_is_hidden(parts[0]) and MAGIC.match(patterns[0])):
        return False
    return fnmatch.fnmatchcase(parts[0], patterns[0]) and _fit(parts[1:], patterns[1:])


def _is_hidden(part: str) -> bool:
    return part.startswith((".", "_"))


# --- on this machine -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalFolder:
    """A folder on a disk, which the workers of a cluster may share."""

    root: Path

    @property
    def address(self) -> str:
        """Its whole path."""
        return str(self.root.absolute())

    @property
    def local(self) -> Path | None:
        """Itself."""
        return self.root

    def shown(self, name: str) -> str:
        """Its path."""
        return str(self.root / name)

    def below(self, name: str) -> LocalFolder:
        """By its path."""
        return LocalFolder(self.root / name)

    def name_of(self, inner: Folder) -> str | None:
        """By their paths without links."""
        if inner.local is None:
            return None
        this, other = self.root.resolve(), inner.local.resolve()
        return other.relative_to(this).as_posix() if other.is_relative_to(this) else None

    def entries(self, *, recursive: bool) -> Iterator[Entry]:
        """Regular files, in the order of their names."""
        yield from self._entries(recursive, above=frozenset())

    def _entries(self, recursive: bool, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
        """``above`` are device and number of the folders that lead here: a link may lead back to them."""
        try:
            about = self.root.stat()
            with os.scandir(self.root) as found:
                children = sorted(found, key=lambda child: child.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise UserInputError(f"{self.root} cannot be read: {error.strerror}.") from None
        this = about.st_dev, about.st_ino
        if this in above:
            return
        for child in children:
            if child.is_dir():
                if recursive and not _is_hidden(child.name):
                    below = LocalFolder(self.root / child.name)._entries(True, above | {this})
                    yield from (Entry(f"{child.name}/{e.name}", e.size, e.modified) for e in below)
            elif found_entry := self.entry(child.name):
                yield found_entry

    def entry(self, name: str) -> Entry | None:
        """By ``stat``; the time in nanoseconds."""
        try:
            about = (self.root / name).stat()
        except OSError:
            return None
        return Entry(name, about.st_size, str(about.st_mtime_ns)) if stat.S_ISREG(about.st_mode) else None

    def read(self, name: str) -> bytes | None:
        """The whole file."""
        try:
            return (self.root / name).read_bytes()
        except OSError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Through a temporary name."""
        self._make_room(name)
        with replacing(self.root / name) as temporary:
            temporary.write_bytes(content)
            flush(temporary)

    def fetch(self, name: str, target: Path) -> None:
        """A copy; who can read the folder does better to read the file where it is."""
        shutil.copyfile(self.root / name, target)

    def put(self, source: Path, name: str) -> None:
        """By a rename if ``source`` is on the same disk, as what is made for this folder should be."""
        self._make_room(name)
        target = self.root / name
        flush(source)
        try:
            source.replace(target)
        except OSError:
            with replacing(target) as temporary:
                shutil.copyfile(source, temporary)
                flush(temporary)
            source.unlink()
        flush_folder(target.parent)

    def _make_room(self, name: str) -> None:
        folder = (self.root / name).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserInputError(
                f"Cannot create the folder {folder}: {error.strerror}; choose another output."
            ) from None


# --- in an object store ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoreFolder:
    """A prefix of the objects in a bucket; ``path`` begins with the bucket."""

    files: Any
    scheme: str
    path: str
    options: tuple[tuple[str, str], ...]

    @property
    def address(self) -> str:
        """With the options that say where the store is."""
        query = f"?{urlencode(self.options)}" if self.options else ""
        return f"{self.scheme}://{quote(self.path, safe='/=@+,;:!$&()~')}{query}"

    @property
    def local(self) -> Path | None:
        """It is elsewhere."""
        return None

    def shown(self, name: str) -> str:
        """Without the options."""
        return f"{self.scheme}://{self._at(name)}"

    def below(self, name: str) -> StoreFolder:
        """A longer prefix."""
        return replace(self, path=self._at(name))

    def name_of(self, inner: Folder) -> str | None:
        """By their prefixes, in one store."""
        if not isinstance(inner, StoreFolder) or (inner.scheme, inner.options) != (self.scheme, self.options):
            return None
        this, other = PurePosixPath(self.path), PurePosixPath(inner.path)
        return other.relative_to(this).as_posix() if other.is_relative_to(this) else None

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path

    def entries(self, *, recursive: bool) -> Iterator[Entry]:
        """By listing the prefix."""
        from pyarrow import fs

        selector = fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        with self._told(""):
            found = self.files.get_file_info(selector)
        infos = (info for info in found if info.type == fs.FileType.File)
        yield from sorted(map(self._entry, infos), key=lambda entry: entry.name)

    def _entry(self, info: Any) -> Entry:
        modified = info.mtime.astimezone(dt.timezone.utc).isoformat() if info.mtime else ""
        return Entry(str(PurePosixPath(info.path).relative_to(self.path)), info.size, modified)

    def entry(self, name: str) -> Entry | None:
        """By asking for it alone."""
        from pyarrow import fs

        with self._told(name):
            info = self.files.get_file_info(self._at(name))
        return self._entry(info) if info.type == fs.FileType.File else None

    def read(self, name: str) -> bytes | None:
        """In one piece."""
        with self._told(name):
            try:
                with self.files.open_input_stream(self._at(name)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """As one object."""
        with self._told(name), self.files.open_output_stream(self._at(name)) as stream:
            stream.write(content)

    def fetch(self, name: str, target: Path) -> None:
        """In blocks."""
        from pyarrow import fs

        with self._told(name):
            fs.copy_files(
                self._at(name),
                str(target),
                source_filesystem=self.files,
                destination_filesystem=fs.LocalFileSystem(),
                chunk_size=_BLOCK,
            )

    def put(self, source: Path, name: str) -> None:
        """In one call: a stream that Python closes after an exception would leave a part of the object.

        Raises:
            UserInputError: the store has another size of it than was sent, or cannot be reached.
        """
        from pyarrow import fs

        with self._told(name):
            fs.copy_files(
                str(source),
                self._at(name),
                source_filesystem=fs.LocalFileSystem(),
                destination_filesystem=self.files,
                chunk_size=_BLOCK,
            )
        entry = self.entry(name)
        if entry is None or entry.size != source.stat().st_size:
            raise UserInputError(f"{self.shown(name)} was not stored whole; run the same command again.")

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """What the store's client says, as a sentence."""
        try:
            yield
        except OSError as error:
            shown = self.shown(name)
            if isinstance(error, FileNotFoundError) or "NO_SUCH_BUCKET" in str(error):
                raise UserInputError(
                    f"{shown} cannot be found ({one_line(error, 160)}); check bucket and name."
                ) from None
            raise UserInputError(
                f"{shown} cannot be reached ({one_line(error, 240)}); check address, network and credentials."
            ) from None


def _open_store(address: str) -> StoreFolder:
    parts = urlsplit(address.replace("#", "%23"))
    scheme = SCHEMES[parts.scheme.lower()]
    user, _, bucket = parts.netloc.rpartition("@")
    options = dict(parse_qsl(parts.query))
    if user and (user, scheme) != ("anonymous", "gs"):
        raise UserInputError(
            f"{scheme}://{bucket}{parts.path}: credentials do not belong into an address; give them as the "
            f"store's own tools take them ({_CREDENTIALS[scheme]})."
        )
    if user:
        options["anonymous"] = "true"
    if not bucket:
        raise UserInputError(f"{address} names no bucket; write {scheme}://BUCKET/NAME.")
    known = _S3_OPTIONS if scheme == "s3" else _GS_OPTIONS
    if unknown := sorted(options.keys() - known):
        raise UserInputError(
            f"{address} has the option {unknown[0]!r}; known are {', '.join(sorted(known))}."
        )
    path = f"{bucket}{unquote(parts.path)}".rstrip("/")
    try:
        from pyarrow import fs  # noqa: F401
    except ImportError:
        raise UserInputError(
            f"{address} is in an object store; for those: pip install 'snugtune[bulk]'."
        ) from None
    try:
        options = _with_environment(scheme, options)
        files = (_s3 if scheme == "s3" else _google)(bucket, options)
    except (OSError, ValueError, ImportError) as error:
        raise UserInputError(f"{address} cannot be used ({one_line(error)}).") from None
    return StoreFolder(files, scheme, path, tuple(sorted(options.items())))


_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws, or the machine's role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, gcloud auth, or the machine's service account",
}


def _with_environment(scheme: str, options: dict[str, str]) -> dict[str, str]:
    """``options`` and what the usual variables say of another server, which pyarrow does not read."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if scheme == "s3" else ("STORAGE_EMULATOR_HOST",)
    given = next(filter(None, map(os.environ.get, names)), None)
    if given is None or "endpoint_override" in options:
        return options
    found, _, place = given.rpartition("://")
    found_options = {"endpoint_override": place.rstrip("/"), "scheme": found or "http"}
    # Google's own clients show an emulator no credentials either.
    return found_options | ({"anonymous": "true"} if scheme == "gs" else {}) | options


def _s3(bucket: str, options: dict[str, str]) -> Any:
    from pyarrow import fs

    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and "endpoint_override" not in options:
        try:
            region = fs.resolve_s3_region(bucket)
        except OSError:
            region = None  # whatever is wrong shows, with its name, when the bucket is asked
    anonymous = options.get("anonymous", "").lower() in _YES
    given = {key: options[key] for key in ("endpoint_override", "scheme") if key in options}
    return fs.S3FileSystem(
        region=region, anonymous=anonymous, connect_timeout=10, request_timeout=60, **given
    )


def _google(_bucket: str, options: dict[str, str]) -> Any:
    from pyarrow import fs

    anonymous = options.get("anonymous", "").lower() in _YES
    given = {key: options[key] for key in ("endpoint_override", "scheme") if key in options}
    return fs.GcsFileSystem(anonymous=anonymous, retry_time_limit=dt.timedelta(seconds=RETRIES_S), **given)
