"""The parts of a workbook's archive: which is which, and all but a few of them copied as they are."""

from __future__ import annotations

import posixpath
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

from snugtune.data.archive import check_archive
from snugtune.data.readers.request import first_line
from snugtune.errors import SnugtuneError, UserInputError

Change = Callable[[BinaryIO, BinaryIO], None]
"""Reads a part as it was and writes it as it shall be."""

CONTENT_TYPES = "[Content_Types].xml"
_ZIP64_BYTES = (
    1 << 30
)  # a part that may come out larger than 2 GiB needs longer fields, which old Excels lack


@dataclass(frozen=True)
class Package:
    """Where the parts are that matter here. Only small parts are read whole."""

    path: Path
    workbook: str
    sheets: dict[str, str]
    """Part of each worksheet by its title, in order."""
    sheet_ids: tuple[int, ...]

    @classmethod
    def read(cls, path: str | Path) -> Package:
        """Find the parts.

        Raises:
            UserInputError: the archive is not one of a workbook, or hostile.
        """
        path = Path(path)
        with told_of_damage(f"{path} is not a whole Excel workbook"):
            check_archive(path)
            with zipfile.ZipFile(path) as archive:
                _check_parts(archive)
                workbook = next(
                    target for kind, target in _relations(archive, "").values() if kind == "officeDocument"
                )
                related = _relations(archive, workbook)
                sheets, ids = {}, []
                for element in _root(archive, workbook).iter():
                    if _local(element.tag) != "sheet":
                        continue
                    ids.append(int(element.attrib["sheetId"]))
                    kind, target = related[_relation_id(element.attrib)]
                    if kind == "worksheet":
                        sheets[element.attrib["name"]] = target
                if CONTENT_TYPES not in archive.namelist() or not ids:
                    raise KeyError(CONTENT_TYPES)
        return cls(path, workbook, sheets, tuple(ids))

    def names(self) -> list[str]:
        """All parts, in the order of the archive."""
        with zipfile.ZipFile(self.path) as archive:
            return archive.namelist()

    def part(self, name: str) -> bytes:
        """One part, unpacked."""
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(name)

    def related(self, part: str) -> dict[str, tuple[str, str]]:
        """Kind and part by relation id, of what ``part`` refers to within the package."""
        with zipfile.ZipFile(self.path) as archive:
            return _relations(archive, part)

    def related_ids(self, part: str) -> set[str]:
        """Every relation id of ``part``, external ones too."""
        return {element.attrib["Id"] for element in ElementTree.fromstring(self.part(relations_of(part)))}

    def stream(self, part: str, read: Callable[[BinaryIO], None]) -> None:
        """Give ``part`` to ``read`` as a stream."""
        with zipfile.ZipFile(self.path) as archive, archive.open(part) as source:
            read(source)  # type: ignore[arg-type]  # a stream that is read only

    def write(
        self,
        output: Path,
        changes: Mapping[str, Change],
        late: Collection[str] = (),
        finish: Callable[[], Mapping[str, bytes]] = dict,
    ) -> None:
        """The package at ``output``, some of its parts changed.

        ``finish`` gives the content of ``late`` parts, and of new ones; it is called when all others are
        written.
        """
        with zipfile.ZipFile(self.path) as source, zipfile.ZipFile(output, "w") as target:
            for part in source.infolist():
                if part.filename in late:
                    continue
                copy = zipfile.ZipInfo(part.filename, part.date_time)
                copy.compress_type, copy.external_attr = part.compress_type, part.external_attr
                change = changes.get(part.filename, shutil.copyfileobj)
                with (
                    source.open(part) as old,
                    target.open(copy, "w", force_zip64=part.file_size > _ZIP64_BYTES) as fresh,
                ):
                    change(old, fresh)  # type: ignore[arg-type]  # streams, each for one direction
            for name, content in finish().items():
                target.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)

    def untouched(self, output: Path, changed: Collection[str]) -> bool:
        """Whether every part but those ``changed`` is in ``output`` as here: by size and checksum."""
        with zipfile.ZipFile(self.path) as source, zipfile.ZipFile(output) as target:
            copies = {part.filename: (part.file_size, part.CRC) for part in target.infolist()}
            return all(
                copies.get(part.filename) == (part.file_size, part.CRC)
                for part in source.infolist()
                if part.filename not in changed
            )


@contextmanager
def told_of_damage(what: str) -> Iterator[None]:
    """Whatever the parsers of zip and XML stumble over, as one sentence that begins with ``what``.

    Raises:
        UserInputError: in place of any error but ours.
    """
    try:
        yield
    except SnugtuneError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise UserInputError(f"{what} ({reason}); open it in Excel and save it again.") from None


def _check_parts(archive: zipfile.ZipFile) -> None:
    """Unpack every part once: a checksum that is wrong is told before the work and not at its end."""
    if (damaged := archive.testzip()) is not None:
        raise zipfile.BadZipFile(f"{damaged} is damaged")


def relations_of(part: str) -> str:
    """The part that holds the relations of ``part``."""
    folder, name = posixpath.split(part)
    return posixpath.join(folder, "_rels", f"{name}.rels")


def _relations(archive: zipfile.ZipFile, part: str) -> dict[str, tuple[str, str]]:
    name = relations_of(part)
    if name not in archive.namelist():
        return {}
    folder = posixpath.dirname(part)
    return {
        element.attrib["Id"]: (
            element.attrib["Type"].rpartition("/")[2],
            posixpath.normpath(posixpath.join("/", folder, element.attrib["Target"])).lstrip("/"),
        )
        for element in _root(archive, name)
        if element.attrib.get("TargetMode") != "External"
    }


def _root(archive: zipfile.ZipFile, part: str) -> ElementTree.Element:
    return ElementTree.fromstring(archive.read(part))  # no document types: check_archive has looked


def _relation_id(attributes: Mapping[str, str]) -> str:
    return next(value for key, value in attributes.items() if key.endswith("}id"))


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
