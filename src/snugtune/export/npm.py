"""What the static page runs on: two packages of the npm registry, fetched once, known by their SHA-512.

They are neither in this repository nor in its wheel. ``packages.json`` pins version and ``integrity`` (the
registry's own words: https://docs.npmjs.com/cli/configuring-npm/package-lock-json), and names the few files
of each archive that are needed and where they go.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from snugtune.errors import SnugtuneError, UserInputError
from snugtune.files import replacing
from snugtune.model.pooling import cache_folder

REGISTRY = "https://registry.npmjs.org/"
TIMEOUT_S = 120.0
LARGEST_ARCHIVE_BYTES = 200 << 20
LARGEST_FILE_BYTES = 100 << 20
"""Far above the packages of today (33 MB; 14 MB): what is larger is not what was asked for."""


class RegistryError(SnugtuneError):
    """A package cannot be had."""


def pinned() -> dict[str, dict[str, Any]]:
    """The packages by name: ``version``, ``integrity``, ``files`` (from where in the archive to where)."""
    found: dict[str, dict[str, Any]] = json.loads(
        (files("snugtune.export") / "packages.json").read_text(encoding="utf-8")
    )
    return found


def copy_packages(folder: Path, package_dir: str | Path | None = None) -> None:
    """Put the files of all pinned packages into ``folder``.

    The archives come from ``package_dir`` (as ``npm pack`` names them), else from the user's cache, else from
    the npm registry.

    Raises:
        UserInputError: an archive is not in ``package_dir``, or is not the pinned one.
        RegistryError: the registry cannot be reached or gives another archive.
    """
    for name, package in pinned().items():
        _extract(_archive(name, package, package_dir), package["files"], folder)


def archive_name(name: str, version: str) -> str:
    """What ``npm pack`` calls the archive of a package."""
    return f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"


def _archive(name: str, package: dict[str, Any], package_dir: str | Path | None) -> Path:
    file = archive_name(name, package["version"])
    if package_dir is not None:
        given = Path(package_dir) / file
        if not given.is_file():
            raise UserInputError(
                f"There is no {file} in {package_dir}; make it there: npm pack {name}@{package['version']}"
            )
        if _integrity(given) != package["integrity"]:
            raise UserInputError(
                f"{given} is not {name} {package['version']} as published (another SHA-512); fetch it anew."
            )
        return given
    kept = cache_folder() / "npm" / file
    if not kept.is_file() or _integrity(kept) != package["integrity"]:
        kept.parent.mkdir(parents=True, exist_ok=True)
        _download(name, package, kept)
    return kept


def _download(name: str, package: dict[str, Any], path: Path) -> None:
    version = package["version"]
    registry, token = registry_of(name)
    url = f"{registry}{name}/-/{name.rsplit('/', maxsplit=1)[-1]}-{version}.tgz"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    wanted = " ".join(f"{one}@{found['version']}" for one, found in pinned().items())
    offline = f"with a connection run npm pack {wanted}, and name the folder with --npm-package-dir."
    with replacing(path) as temporary:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer, temporary.open("wb") as file:
                _copy(answer, file, LARGEST_ARCHIVE_BYTES)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            raise RegistryError(
                f"{name} {version} cannot be fetched from {registry} ({reason}); {offline}"
            ) from None
        if _integrity(temporary) != package["integrity"]:
            raise RegistryError(
                f"What {registry} gives as {name} {version} is not what was published (another SHA-512), so "
                f"it is not used; {offline}"
            )


def registry_of(name: str) -> tuple[str, str | None]:
    """The registry that npm would ask for the package ``name``, ending in a slash, and the token for it.

    By ``npm_config_registry``, ``.npmrc`` here and the user's (https://docs.npmjs.com/cli/configuring-npm/npmrc).
    """
    settings = dict(_npmrc())
    scope = name.split("/", maxsplit=1)[0] if name.startswith("@") else None
    environment = _npm_setting("registry")
    registry = settings.get(f"{scope}:registry") or environment or settings.get("registry") or REGISTRY
    if not registry.startswith(("https://", "http://")):
        raise UserInputError(f"npm's registry must begin with https:// or http://, not be {registry!r}.")
    registry = registry.rstrip("/") + "/"
    return registry, settings.get(f"{registry.split(':', 1)[1]}:_authToken")


def _npm_setting(name: str) -> str | None:
    """What the environment says, in npm's own small letters or in capitals."""
    small = f"npm_config_{name}"
    return os.environ.get(small) or os.environ.get(small.upper())


def _npmrc() -> Iterator[tuple[str, str]]:
    """Settings of the user's file, then those of the one here, which go before them."""
    user = _npm_setting("userconfig")
    for path in (Path(user) if user else Path.home() / ".npmrc", Path(".npmrc")):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            continue
        for line in lines:
            key, separator, value = line.partition("=")
            if separator and not key.lstrip().startswith(("#", ";")):
                value = value.strip().strip("\"'")
                yield key.strip(), re.sub(r"\$\{(\w+)\}", lambda m: os.environ.get(m[1], m[0]), value)


def _integrity(path: Path) -> str:
    digest = hashlib.sha512()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return "sha512-" + base64.b64encode(digest.digest()).decode("ascii")


def _extract(archive: Path, places: dict[str, str], folder: Path) -> None:
    """Write the files at ``places``; no name of the archive's own becomes a path."""
    with tarfile.open(archive, "r:gz") as members:
        for place, target in places.items():
            member = members.getmember(f"package/{place}")
            source = members.extractfile(member) if member.isreg() else None
            if source is None:
                raise RegistryError(f"{archive.name} holds no file {place}; fetch it anew.")
            path = folder / target
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, path.open("wb") as file:
                _copy(source, file, LARGEST_FILE_BYTES)


def _copy(source: Any, target: Any, limit: int) -> None:
    for _ in range(limit >> 20):
        block = source.read(1 << 20)
        if not block:
            return
        target.write(block)
    raise RegistryError(f"A file of the page's runtime has more than {limit >> 20} MiB; it is not used.")
