"""What is asked of a workbook's zip archive before any of it is parsed."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path
from xml.parsers import expat

from snugtune.container import available_memory_bytes
from snugtune.errors import UserInputError

LARGEST_BYTES = 16 << 30
"""Of all parts, unpacked. A full sheet of 1,048,576 rows with texts of 5,000 letters has a third of it."""

LARGEST_RATIO = 300
"""Unpacked by packed size, of a part and of the whole. Sheets have 5 to 50; DEFLATE ends at 1,032."""

MOST_PARTS = 100_000
"""A workbook has a few for each sheet, picture and chart."""

SHARED_TEXTS = "sharedstrings"
"""In the name of the part that holds the texts of cells, which all have to be in memory."""

_TEXTS_GROW = 3  # a text of XML as an object of Python, with the list it is in

_SMALL_BYTES = 64 << 20  # what is no larger than this may be packed as tightly as it likes


def check_archive(path: str | Path) -> None:
    """Refuse archives that unpack to more than a workbook can be, and XML that declares entities.

    That takes the archive's directory and the first bytes of each part.

    Raises:
        UserInputError: the file is such an archive, or is encrypted, names a part twice, or keeps two
            parts in the same bytes; or its texts need more memory than there is.
        zipfile.BadZipFile: it is no archive, or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        _check_sizes(path, parts)
        _check_names(path, parts)
        _check_places(path, parts, archive.start_dir)
        for part in parts:
            # Whatever its name: which parts are XML is said elsewhere in the archive.
            if _declares_entities(archive, part):
                raise UserInputError(
                    f"{path}: {_shown(part)} has a document type declaration, which no workbook needs and "
                    "attacks begin with; open it in Excel and save it again."
                )


def _check_sizes(path: str | Path, parts: list[zipfile.ZipInfo]) -> None:
    total, packed = sum(part.file_size for part in parts), Path(path).stat().st_size
    if len(parts) > MOST_PARTS:
        raise UserInputError(f"{path} has {len(parts):,} parts and is no workbook; check the file.")
    if total > min(LARGEST_BYTES, max(4 * _SMALL_BYTES, LARGEST_RATIO * packed)):
        raise UserInputError(
            f"{path} would unpack to more than {total / 2**20:,.0f} MiB from {packed / 2**20:,.1f}: it is "
            "not a workbook to be opened; split it, or save the sheet as CSV."
        )
    for part in parts:
        if part.flag_bits & 1:
            raise UserInputError(f"{path} is encrypted; remove the password and save it again.")
        if part.file_size > max(_SMALL_BYTES, LARGEST_RATIO * part.compress_size):
            raise UserInputError(
                f"{path}: {_shown(part)} would unpack to {part.file_size / 2**20:,.0f} MiB from "
                f"{part.compress_size / 2**20:,.1f}; save the sheet as CSV if this is no mistake."
            )
    texts = sum(part.file_size for part in parts if SHARED_TEXTS in part.filename.casefold())
    if texts > _SMALL_BYTES and _TEXTS_GROW * texts > (free := available_memory_bytes()):
        raise UserInputError(
            f"The texts of {path} take {_TEXTS_GROW * texts / 2**30:.1f} GiB of memory and "
            f"{free / 2**30:.1f} are free; save the sheet as CSV, which is read piece by piece."
        )


def _check_names(path: str | Path, parts: list[zipfile.ZipInfo]) -> None:
    # What is copied into an output must not lead another program's unpacking out of its folder.
    if leading := [part for part in parts if {"..", ""} & set(part.filename.rstrip("/").split("/"))]:
        raise UserInputError(
            f"{path} names a part {_shown(leading[0])!r}, which leads out of it, as attacks do; open it in "
            "Excel and save it again."
        )
    # Part names know no case: ECMA-376 part 2.
    names = Counter(part.filename.casefold() for part in parts)
    if twice := [part for part in parts if names[part.filename.casefold()] > 1]:
        raise UserInputError(
            f"{path} holds {_shown(twice[0]).casefold()} twice; open it in Excel and save it again."
        )


def _check_places(path: str | Path, parts: list[zipfile.ZipInfo], end: int) -> None:
    """No two parts may share bytes, as in Fifield's bomb (woot19), whose parts are each other's data."""
    places = sorted(
        (part.header_offset, part.header_offset + _HEADER_BYTES + part.compress_size) for part in parts
    )
    starts = [start for start, _ in places[1:]] + [end]
    if any(stop > start for (_, stop), start in zip(places, starts, strict=True)):
        raise UserInputError(
            f"{path} keeps several parts in the same bytes, as attacks do; open it in Excel and save it "
            "again."
        )


_HEADER_BYTES = 30  # of a local header without its names: APPNOTE 4.3.7


def _shown(part: zipfile.ZipInfo) -> str:
    return "".join(c if c.isprintable() else "?" for c in part.filename[:100])


class _EndError(Exception):
    """Ends the parse: the answer is known."""


def _declares_entities(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> bool:
    """Whether a DOCTYPE stands before the root element; nothing behind the root's tag is read."""
    parser = expat.ParserCreate()
    found = False

    def declared(*_: object) -> None:
        nonlocal found
        found = True
        raise _EndError

    def root(*_: object) -> None:
        raise _EndError

    parser.StartDoctypeDeclHandler = declared
    parser.StartElementHandler = root
    with archive.open(part) as file:
        try:
            while chunk := file.read(1 << 12):
                parser.Parse(chunk, False)
        except (_EndError, expat.ExpatError):  # what is no XML is told by whoever reads it
            pass
    return found
