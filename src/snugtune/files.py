"""Files are written to a temporary name beside their place and renamed, so none is ever half-written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from snugtune.errors import UserInputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; on success it becomes ``path``, on failure it goes.

    Raises:
        UserInputError: the folder is missing or read-only, or the disk is full.
    """
    path = Path(path)
    temporary = _temporary_beside(path)
    try:
        try:
            yield temporary
        except OSError as error:
            raise _as_user_error(error, path) from error
        with _no_place_to_write(path):
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_beside(path: Path) -> Path:
    with _no_place_to_write(path):
        # The suffix is kept: writers choose their format by it.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
    return Path(name)


@contextmanager
def _no_place_to_write(path: Path) -> Iterator[None]:
    """Whatever the system says against a file at ``path``, as one sentence."""
    try:
        yield
    except OSError as error:
        known = _as_user_error(error, path)
        if known is not error:
            raise known from error
        raise UserInputError(f"Cannot write {path}: {error.strerror}; choose another output path.") from error


@contextmanager
def staged_folder(folder: str | Path, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """Yield ``.NAME.partial`` beside ``folder``; on success it becomes ``folder``, on failure it goes.

    A folder that holds something is replaced only if told to ``overwrite``, only if it holds the file
    ``marker`` (so it is one we wrote), and only once the new one is complete.

    Raises:
        UserInputError: the folder is taken or cannot be made, or another process is writing it now.
    """
    folder = Path(folder)
    _check_free(folder, overwrite, marker)
    staging = _staging(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder.parent):
            _mend_replacement(folder)
            _check_free(folder, overwrite, marker)
            _claim(staging, folder)
    except OSError as error:
        raise UserInputError(
            f"Cannot create the folder {folder}: {error.strerror}; choose another output."
        ) from None
    try:
        with system_errors():
            yield staging
            # After a power cut it is there whole, or not at all.
            flush_tree(staging)
        (staging / CLAIM).unlink()
        _replace_folder(staging, folder)
        flush_folder(folder.parent)
    except OSError as error:
        raise _as_user_error(error, folder) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def being_written(folder: str | Path) -> Path | None:
    """Where a living process writes ``folder`` now; None if none does."""
    staging = _staging(Path(folder))
    return staging if staging.is_dir() and _is_alive(staging, or_own=True) else None


def refuse_if_being_written(folder: str | Path) -> None:
    """Before anything that belongs to ``folder`` is touched.

    Raises:
        UserInputError: another process is writing it now.
    """
    staging = _staging(Path(folder))
    if staging.is_dir() and _is_alive(staging):
        raise _taken(folder)


def was_left_unfinished(folder: str | Path) -> bool:
    """Whether a process that was writing ``folder`` is gone without having cleared up: it was killed."""
    staging = _staging(Path(folder))
    return staging.is_dir() and not _is_alive(staging, or_own=True)


def _staging(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


CLAIM = ".claimed-by"
"""Holds the id of the process that writes the folder, and when that process was started."""

_SAME_START_S = 10.0
"""Where the start is told by the clock, two readings of it differ by as much as that was set in between."""

_STARTED_FIELD = 19
"""Of ``/proc/PID/stat`` behind the name, from 0: ticks from the boot to the start (``man proc_pid_stat``)."""


def _check_free(folder: Path, overwrite: bool, marker: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserInputError(f"The output {folder} is a file; name a folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise UserInputError(
            f"The folder {folder} already holds something; choose another output or add --overwrite."
        )
    if not (folder / marker).exists():
        raise UserInputError(
            f"The folder {folder} was not written by this command (it holds no {marker}), so it is not "
            "overwritten; choose another output."
        )


def _claim(staging: Path, folder: Path) -> None:
    """Make ``staging`` ours; what a dead process left there is cleared away."""
    if staging.exists():
        if _is_alive(staging):
            raise _taken(folder)
        shutil.rmtree(staging)
    staging.mkdir()
    (staging / CLAIM).write_text(f"{os.getpid()} {_start_of(os.getpid())}", encoding="utf-8")


def _taken(folder: str | Path) -> UserInputError:
    return UserInputError(
        f"Another process is writing {folder} right now; wait for it or choose another output."
    )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Of all processes of this machine that ask for ``folder``, one at a time is inside."""
    try:
        import fcntl
    except ImportError:  # Windows, which cannot open folders either
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        # There are file systems without locks; the folder is still made by one process only.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _start_of(process_id: int) -> str:
    """When a process was started: Unix time; on Linux ``BOOT:TICKS``, which no change of the clock moves.

    Raises:
        psutil.Error: there is no such process, or nothing is told of it.
    """
    import psutil

    started = psutil.Process(process_id).create_time()
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(started)
    # The name before it, in parentheses, may hold anything.
    return f"{boot}:{stat.rpartition(')')[2].split()[_STARTED_FIELD]}"


def _is_alive(staging: Path, *, or_own: bool = False) -> bool:
    """Whether another process (``or_own``: or this one) that claimed ``staging`` is still there.

    Its id may by now be another's.
    """
    import psutil

    try:
        owner, *started = (staging / CLAIM).read_text(encoding="utf-8").split()
        process = psutil.Process(int(owner))
        is_own = process.pid == os.getpid()
        if (is_own and not or_own) or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return not started or _is_same_start(started[0], _start_of(process.pid), process.create_time())
    except psutil.AccessDenied:
        return True
    except (OSError, ValueError, psutil.NoSuchProcess):
        return False


def _is_same_start(claimed: str, found: str, by_clock: float) -> bool:
    if ":" in claimed:
        return claimed == found
    return abs(by_clock - float(claimed)) < _SAME_START_S


def _replace_folder(staging: Path, folder: Path) -> None:
    if not folder.exists():
        staging.rename(folder)
        return
    replaced = _replaced(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    folder.rename(replaced)
    staging.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _mend_replacement(folder: Path) -> None:
    """A process that died between the two renames left no ``folder``: the one that was there comes back."""
    replaced = _replaced(folder)
    if replaced.is_dir():
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(folder)


def flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    # Opened for writing, which Windows asks for.
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on the disk."""
    # Windows cannot open folders, and needs no flush of them.
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def flush_tree(folder: Path) -> None:
    """Wait until everything below ``folder`` is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            flush_folder(path)
        elif path.is_file() and not path.is_symlink():
            flush(path)


@contextmanager
def system_errors() -> Iterator[None]:
    """Turn safetensors' own error into the ``OSError`` it stands for: it hides the number in its message."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def check_free_space(folder: str | Path, needed_bytes: int, *, what: str = "the run") -> None:
    """Before hours of work: is there room for what they, ``what``, will write into ``folder``?

    Raises:
        UserInputError: less than ``needed_bytes`` are free there.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise UserInputError(
            f"The disk of {Path(folder).parent} has {free / 2**20:,.0f} MiB free and {what} needs about "
            f"{needed_bytes / 2**20:,.0f} MiB; free some space or choose another output."
        )


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON to ``path`` atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@cache
def sha256(path: Path) -> str:
    """``file_digest`` of a file that does not change: it is read once per process."""
    return file_digest(path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal, as it is now."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_new_file(path: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, an --output at ``path`` that could not be written at its end.

    Raises:
        UserInputError: no such folder, a folder of that name, or a file that is already there and
            ``overwrite`` is not set.
    """
    if not path.parent.is_dir():
        raise UserInputError(
            f"Cannot write {path}: the folder {path.parent} does not exist; create it first."
        )
    if path.is_dir():
        raise UserInputError(f"Cannot write {path}: it is a folder; name a file.")
    if path.exists() and not overwrite:
        raise UserInputError(f"{path} already exists; choose another --output or add --overwrite.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _as_user_error(error: OSError, path: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserInputError(f"No space left on the disk for {path}; free some space and run it again.")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return UserInputError(f"Cannot write {path}: no permission; choose another output path.")
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not path.parent.is_dir():
        return UserInputError(
            f"Cannot write {path}: the folder {path.parent} does not exist; create it first."
        )
    return error
