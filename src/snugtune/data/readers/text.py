"""Text files by lines, decoded strictly, and what is said of bytes that cannot be."""

from __future__ import annotations

import codecs
from collections.abc import Generator
from functools import partial
from pathlib import Path

from snugtune.errors import UserInputError

BOMS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


LONGEST_LINE = 1 << 24
"""Characters. A line is held whole, and a file without line ends is one."""


def text_lines(path: Path, codec: str) -> Generator[str]:
    """Lines with their ends, decoded strictly.

    Raises:
        UserInputError: bytes are of another encoding, or a line is longer than `LONGEST_LINE`.
    """
    try:
        with path.open(encoding=codec, newline="") as file:
            for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), ""), start=1):
                if len(line) > LONGEST_LINE:
                    raise UserInputError(
                        f"{path}, line {number} has more than {LONGEST_LINE:,} characters: it is no table of "
                        "lines, or its line ends are lost; check the file."
                    )
                if "\0" in line:
                    raise UserInputError(
                        f"{path}, line {number} contains a NUL byte: the file is binary, damaged, or encoded "
                        "as UTF-16 (then name it: --encoding utf-16)."
                    )
                yield line
    except UnicodeError as error:
        raise UserInputError(_about_bytes(path, codec, error)) from None


def codec_of(path: Path, encoding: str | None) -> str:
    """The codec of a text file: as named, as its byte order mark says, or UTF-8.

    Raises:
        UserInputError: there is no such encoding.
    """
    if encoding is None:
        with path.open("rb") as file:
            head = file.read(4)
        return next((codec for mark, codec in BOMS if head.startswith(mark)), "utf-8-sig")
    try:
        name = codecs.lookup(encoding).name
        "".encode(name)  # refuses codecs that are not of text, such as base64
    except (LookupError, ValueError):
        raise UserInputError(f"There is no encoding {encoding!r}; use e.g. utf-8 or cp1252.") from None
    return "utf-8-sig" if name == "utf-8" else name


def encoding_beside(path: Path, named: str | None) -> str | None:
    """The encoding of a text file that goes with another one, for which an encoding was ``named``.

    None, which is UTF-8 or what a byte order mark says, where that is what the bytes are: text of another
    encoding is hardly ever UTF-8 by chance. A file of ASCII alone reads the same in most encodings; in the
    others (UTF-7, ISO-2022) only ``named`` can be right.
    """
    if named is None or not path.is_file() or codec_of(path, named) == "utf-8-sig":
        return named
    if codec_of(path, None) != "utf-8-sig":
        return None
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_ascii = True
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            is_ascii = is_ascii and chunk.isascii()
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError:
                return named
            if b"\0" in chunk:  # UTF-16 without its mark
                return named
    return named if is_ascii or decoder.getstate()[0] else None


def _about_bytes(path: Path, codec: str, error: UnicodeError) -> str:
    """Say where decoding fails: text streams know the offset in their buffer only, so read once more."""
    name = codec.removesuffix("-sig").upper()
    advice = "name the file's encoding, e.g. --encoding cp1252"
    decoder = codecs.getincrementaldecoder(codec)()
    offset, line = 0, 1
    with path.open("rb") as file:
        while True:
            chunk = file.read(1 << 20)
            pending = len(decoder.getstate()[0])
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as fault:
                at = offset - pending + fault.start
                line += fault.object[: fault.start].decode(fault.encoding, errors="ignore").count("\n")
                byte = fault.object[fault.start]
                return f"{path}, line {line}: byte 0x{byte:02X} at offset {at} is not {name}; {advice}."
            except UnicodeError as fault:  # some codecs, such as UTF-16 without its mark, say no more
                return f"{path} is not {name} ({fault}); {advice}."
            if not chunk:
                return f"{path} is not {name} ({error}); {advice}."
            offset += len(chunk)
