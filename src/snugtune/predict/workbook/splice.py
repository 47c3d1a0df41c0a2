"""XML changed in a few places and copied byte for byte everywhere else, in constant memory.

expat tells where in the file each tag begins; what lies between is never decoded and written again, so it
cannot change: neither the order of attributes nor a prefix, an extension or a space.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO
from xml.parsers import expat
from xml.sax.saxutils import escape

from snugtune.errors import UserInputError

_CHUNK_BYTES = 1 << 16
_LONGEST_ELEMENT = 1 << 26  # bytes of a cell or a tag; 32,767 characters are 200 KiB at the most
_TAG = re.compile(rb"""<(?:"[^"]*"|'[^']*'|[^"'>])*>""")
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff", b"<\0", b"\0<")

# ECMA-376 part 1, 22.9.2.19: what XML cannot hold is written as _xHHHH_; what looks like that is escaped.
_LIKE_ESCAPED = re.compile(r"_(?=x[0-9A-Fa-f]{4}_)")
_UNWRITABLE = re.compile("[\0-\x08\x0b-\x1f\ufffe\uffff]")


class Splicer:
    """Reads XML and copies it to ``target``; subclasses change what they like in ``_start`` and ``_end``.

    Bytes are numbered as in the source. What was not yet copied waits in a buffer, which never holds more
    than a chunk and what a subclass keeps back.
    """

    def __init__(self, target: BinaryIO | None = None) -> None:
        self._target = target
        self._out = bytearray()  # what is to be written: an archive takes many small pieces slowly
        self._buffer = bytearray()
        self._first = 0  # number of the buffer's first byte
        self._seen = 0  # number of the byte at which the last tag told of began
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._on_start
        self._parser.EndElementHandler = self._on_end
        self._parser.StartDoctypeDeclHandler = self._refuse
        self.path: list[str] = []
        """Local names of the open elements, the root first."""
        self.prefix = ""
        """Of the root element, with its colon: what is written carries it, too."""

    def run(self, source: BinaryIO) -> None:
        """Read ``source`` to its end.

        Raises:
            UserInputError: it is in UTF-16, or declares a document type.
            xml.parsers.expat.ExpatError: it is not well-formed.
        """
        while chunk := source.read(_CHUNK_BYTES):
            if not self._first and not self._buffer and chunk.startswith(_UTF_16_MARKS):
                raise UserInputError("the sheet is in UTF-16; open the workbook in Excel and save it again.")
            self._buffer += chunk
            self._parser.Parse(chunk, False)
            self.copy_to(self._settled())
            if len(self._out) > _CHUNK_BYTES:
                self._flush()
            if len(self._buffer) > _LONGEST_ELEMENT:
                raise UserInputError("the sheet has a cell of more than 64 MiB, which no workbook can have.")
        self._parser.Parse(b"", True)
        self.copy_to(self._first + len(self._buffer))
        self._flush()

    # --- for subclasses ----------------------------------------------------------------------------------

    def _start(self, name: str, attributes: dict[str, str], at: int) -> None:
        """An element's tag begins at byte ``at``; ``path`` ends with it."""

    def _end(self, name: str, at: int) -> None:
        """An element's closing tag begins at ``at`` (of an empty tag: ends there); ``path`` ends with it."""

    def _settled(self) -> int:
        """Up to which byte nothing will be changed any more."""
        return self._seen

    def copy_to(self, at: int) -> None:
        """Copy the source up to byte ``at``."""
        count = at - self._first
        if count > 0:
            if self._target is not None:
                self._out += self._buffer[:count]
            self.drop_to(at)

    def drop_to(self, at: int) -> None:
        """Leave out the source up to byte ``at``."""
        count = at - self._first
        if count > 0:
            del self._buffer[:count]
            self._first = at

    def write(self, xml: str) -> None:
        """Add ``xml`` here."""
        if self._target is not None:
            self._out += xml.encode("ascii", "xmlcharrefreplace")  # right in whatever encoding

    def raw(self, at: int, end: int) -> bytes:
        """The source from byte ``at`` to byte ``end``, neither of which is copied or dropped yet."""
        return bytes(self._buffer[at - self._first : end - self._first])

    def tag_end(self, at: int) -> int:
        """Where the tag that begins at byte ``at`` ends."""
        found = _TAG.match(self._buffer, at - self._first)
        assert found is not None  # expat has read it
        return self._first + found.end()

    def is_empty(self, at: int) -> bool:
        """Whether the tag at byte ``at`` is its whole element, as ``<c/>``."""
        return self._buffer[self.tag_end(at) - self._first - 2] == ord("/")

    def element_end(self, start: int, end: int) -> int:
        """Where the element ends whose tag begins at ``start`` and whose ``_end`` was told at ``end``."""
        return self.tag_end(start if self.is_empty(start) else end)

    def replace_attribute(self, at: int, name: str, value: str) -> None:
        """Copy up to the tag at byte ``at`` and the tag itself, with another value of its attribute."""
        end = self.tag_end(at)
        pattern = rb"""(\s%s\s*=\s*)(?:"[^"]*"|'[^']*')""" % name.encode()
        quoted = attribute(value).encode("ascii", "xmlcharrefreplace")
        tag = re.sub(pattern, lambda found: found[1] + quoted, self.raw(at, end), count=1)
        self.copy_to(at)
        self.drop_to(end)
        if self._target is not None:
            self._out += tag

    def _flush(self) -> None:
        if self._target is not None:
            self._target.write(self._out)
        self._out.clear()

    # --- from expat --------------------------------------------------------------------------------------

    def _on_start(self, name: str, attributes: dict[str, str]) -> None:
        prefix, _, local = name.rpartition(":")
        if not self.path:
            self.prefix = prefix and f"{prefix}:"
        self.path.append(local)
        at = self._parser.CurrentByteIndex
        self._start(local, attributes, at)
        self._seen = at

    def _on_end(self, _name: str) -> None:
        at = self._parser.CurrentByteIndex
        self._end(self.path[-1], at)
        self._seen = at
        self.path.pop()

    def _refuse(self, *_: Any) -> None:
        raise UserInputError("the workbook's XML has a document type declaration; save it again in Excel.")


class Inserter(Splicer):
    """Adds XML before the closing tag of elements; each is given by its local name.

    What is added is a function of the prefix of the file's own elements.
    """

    def __init__(
        self,
        target: BinaryIO,
        additions: Mapping[str, Callable[[str], str]],
        attributes: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        """``attributes`` has new values, by element and attribute, of attributes that are there."""
        super().__init__(target)
        self._additions, self._attributes = additions, attributes or {}

    def _start(self, name: str, attributes: dict[str, str], at: int) -> None:
        for (element, key), value in self._attributes.items():
            if element == name and key in attributes:
                self.replace_attribute(at, key, value)

    def _end(self, name: str, at: int) -> None:
        if name in self._additions:
            self.copy_to(at)
            self.write(self._additions[name](self.prefix))


def attribute(value: str) -> str:
    """``value`` quoted for an attribute."""
    return '"' + escape(value, {'"': "&quot;", "\n": "&#10;", "\t": "&#9;", "\r": "&#13;"}) + '"'


def cell_text(value: str) -> str:
    """``value`` as the content of a ``t`` element."""
    value = _LIKE_ESCAPED.sub("_x005F_", value)
    return escape(_UNWRITABLE.sub(lambda found: f"_x{ord(found[0]):04X}_", value))
