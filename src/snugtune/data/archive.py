"""What is asked of a workbook's zip archive before any of it is parsed."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path
from xml.parsers import expat

from snugtune.errors import UserInputError

LARGEST_BYTES = 16 << 30
"""Of all parts, unpacked. A full sheet of 1,048,576 rows with texts of 5,000 letters has a third of it."""

LARGEST_RATIO = 300
"""Unpacked by packed size of a part. Sheets have 5 to 50; DEFLATE ends at 1,032."""

_SMALL_BYTES = 64 << 20  # what is no larger than this may be packed as tightly as it likes


def check_archive(path: str | Path) -> None:
    """Refuse archives that unpack to more than a workbook can be, and XML that declares entities.

    Neither needs more than the archive's directory and the first bytes of each part.

    Raises:
        UserInputError: the file is such an archive, or is encrypted, or names a part twice.
        zipfile.BadZipFile: it is no archive, or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if sum(part.file_size for part in parts) > LARGEST_BYTES:
            raise UserInputError(
                f"{path} would unpack to more than {LARGEST_BYTES >> 30} GiB: it is not a workbook to be "
                "opened; split it, or save the sheet as CSV."
            )
        for part in parts:
            if part.file_size > max(_SMALL_BYTES, LARGEST_RATIO * part.compress_size):
                raise UserInputError(
                    f"{path}: {part.filename} would unpack to {part.file_size / 2**20:,.0f} MiB from "
                    f"{part.compress_size / 2**20:,.1f}; save the sheet as CSV if this is no mistake."
                )
            if part.flag_bits & 1:
                raise UserInputError(f"{path} is encrypted; remove the password and save it again.")
        names = Counter(
            part.filename.casefold() for part in parts
        )  # part names know no case: ECMA-376 part 2
        if twice := [name for name, count in names.items() if count > 1]:
            raise UserInputError(f"{path} holds {twice[0]} twice; open it in Excel and save it again.")
        for part in parts:
            if part.filename.endswith((".xml", ".rels")) and _declares_entities(archive, part):
                raise UserInputError(
                    f"{path}: {part.filename} has a document type declaration, which no workbook needs and "
                    "attacks begin with; open it in Excel and save it again."
                )


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
