"""Files are written to a temporary name beside their place and renamed, so none is ever half-written."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snugtune.errors import UserInputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; on success it becomes ``path``, on failure it goes.

    Raises:
        UserInputError: the folder is missing or read-only, or the disk is full.
    """
    path = Path(path)
    try:
        # The suffix is kept: writers choose their format by it.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _as_user_error(error, path) from error


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON to ``path`` atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _as_user_error(error: OSError, path: Path) -> Exception:
    if error.errno == errno.ENOSPC:
        return UserInputError(f"No space left on the disk for {path}; free some space and run it again.")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return UserInputError(f"Cannot write {path}: no permission; choose another output path.")
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not path.parent.is_dir():
        return UserInputError(
            f"Cannot write {path}: the folder {path.parent} does not exist; create it first."
        )
    return error
