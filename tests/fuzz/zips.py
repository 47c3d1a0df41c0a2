"""Damage to workbooks: the archive, its directory, and the XML of its parts."""

import io
import re
import struct
import zipfile

from fuzz.binary import BINARY

TEXTS = (
    "",
    "0",
    "-1",
    "1",
    "2",
    "999999999",
    "99999999999999999999",
    "1e309",
    "NaN",
    "1.5",
    "A1",
    "A0",
    "ZZZZ9",
    "XFD1048576",
    "XFE1048577",
    "A1:B2:C3",
    "B2:A1",
    "A:A",
    "1:1",
    "#REF!",
    "rId1",
    "rId999",
    "../../../etc/passwd",
    "/xl/workbook.xml",
    "sheet1.xml",
    "worksheets/sheet1.xml",
    "xl/worksheets/sheet1.xml",
    "file:///etc/passwd",
    "http://example.invalid/a",
    "s",
    "str",
    "b",
    "e",
    "d",
    "n",
    "inlineStr",
    "true",
    "x" * 1_000,
    "&#0;",
    "&amp;",
    "é",
    "&#x1F600;",
    "_x0000_",
    "_x005F_x0041_",
    "\u202e",
    "text",
    "label",
    "Data",
    "&lt;script&gt;",
    "=1+1",
    "External",
)

DOCTYPES = (
    b'<!DOCTYPE a [<!ENTITY x "y">]>',
    b'<!DOCTYPE a SYSTEM "file:///etc/passwd">',
    b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
    b'<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>',
)

_TAG = re.compile(rb"<[^?!][^>]*>")
_ATTRIBUTE = re.compile(rb'(\s[\w:]+=)"([^"]*)"')


def attribute(xml, rng):
    found = list(_ATTRIBUTE.finditer(xml))
    if not found:
        return xml
    one = rng.choice(found)
    others = [other[2] for other in found]
    value = rng.choice((rng.choice(TEXTS).encode(), rng.choice(others)))
    return xml[: one.start()] + one[1] + b'"' + value + b'"' + xml[one.end() :]


def no_attribute(xml, rng):
    found = list(_ATTRIBUTE.finditer(xml))
    one = rng.choice(found) if found else None
    return xml[: one.start()] + xml[one.end() :] if one else xml


def attribute_name(xml, rng):
    found = list(_ATTRIBUTE.finditer(xml))
    if not found:
        return xml
    one = rng.choice(found)
    name = rng.choice((b" r", b" s", b" t", b" ref", b" xml:space", b" r:id", b" Id", b" count", one[1][:-1]))
    return xml[: one.start()] + name + b'="1"' + xml[one.start() :]


def content_text(xml, rng):
    found = list(re.finditer(rb">([^<]+)<", xml))
    if not found:
        return xml
    one = rng.choice(found)
    return xml[: one.start(1)] + rng.choice(TEXTS).encode() + xml[one.end(1) :]


def _elements(xml):
    """Elements that hold no other of their name, roughly."""
    return list(re.finditer(rb"<([\w:]+)\b[^>]*?(?:/>|>(?:(?!<\1\b).)*?</\1>)", xml, re.DOTALL))


def without_element(xml, rng):
    found = _elements(xml)
    one = rng.choice(found) if found else None
    return xml[: one.start()] + xml[one.end() :] if one else xml


def element_twice(xml, rng):
    found = _elements(xml)
    if not found:
        return xml
    one = rng.choice(found)
    return xml[: one.start()] + one[0] * rng.choice((2, 2, 300)) + xml[one.end() :]


def element_elsewhere(xml, rng):
    found = _elements(xml)
    tags = list(_TAG.finditer(xml))
    if not found or not tags:
        return xml
    at = rng.choice(tags).end()
    return xml[:at] + rng.choice(found)[0] + xml[at:]


def tag_renamed(xml, rng):
    names = sorted(set(re.findall(rb"<([\w:]+)", xml)))
    if not names:
        return xml
    old, new = rng.choice(names), rng.choice((*names, b"c", b"row", b"v", b"is", b"f", b"x:c", b"unknown"))
    return re.sub(rb"(</?)%s(?=[\s/>])" % re.escape(old), rb"\1" + new, xml, count=rng.choice((0, 1, 2)))


def nested(xml, rng):
    tags = list(_TAG.finditer(xml))
    at = rng.choice(tags).end() if tags else 0
    n = rng.choice((3, 100, 20_000))
    name = rng.choice((b"a", b"row", b"c", b"is", b"r"))
    return xml[:at] + b"<%s>" % name * n + b"</%s>" % name * n + xml[at:]


def between(xml, rng):
    tags = list(_TAG.finditer(xml))
    at = rng.choice(tags).end() if tags else 0
    piece = rng.choice(
        (
            b"<!-- - -->",
            b"<?pi x?>",
            b"<![CDATA[<c>]]>",
            b"text",
            b"&undefined;",
            b"&#55296;",
            b"\0",
            b"\xff",
            b"<",
            b"  ",
            b"a" * 70_000,
            b"<c/>",
            b"<row/>",
            b"<f>1</f>",
            b"<v/>",
        )
    )
    return xml[:at] + piece + xml[at:]


def doctype(xml, rng):
    root = re.search(rb"<[^?!]", xml)
    at = root.start() if root else 0
    return xml[:at] + rng.choice(DOCTYPES) + xml[at:].replace(b"</v>", b"&x;</v>", rng.choice((0, 1)))


def xml_encoding(xml, rng):
    text = xml.decode("utf-8", "replace")
    way = rng.randrange(4)
    if way == 0:
        return text.replace("UTF-8", "UTF-16").encode("utf-16")
    if way == 1:
        return xml.replace(b"UTF-8", rng.choice((b"UTF-7", b"cp037", b"latin-1", b"nonsense", b"utf-32")))
    return b"\xef\xbb\xbf" + xml if way == 2 else b"\n" + xml


XML = (
    attribute,
    attribute,
    attribute,
    no_attribute,
    attribute_name,
    content_text,
    without_element,
    element_twice,
    element_elsewhere,
    tag_renamed,
    nested,
    between,
    doctype,
    xml_encoding,
    *BINARY.values(),
)

# --- the archive -----------------------------------------------------------------------------------------


def _parts(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def _packed(parts, how=zipfile.ZIP_DEFLATED):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", how) as archive:
        for name, part in parts:
            archive.writestr(zipfile.ZipInfo(name), part, how)
    return target.getvalue()


def _on_parts(change):
    """A change of the archive's list of parts, if it still is an archive."""

    def run(content, rng):
        try:
            return _packed(change(_parts(content), rng))
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            EOFError,
            OSError,
            ValueError,
            KeyError,
            RuntimeError,
            struct.error,
        ):
            return content
        except Exception as error:
            if type(error).__name__ != "error":  # zlib's
                raise
            return content

    run.__name__ = change.__name__
    return run


IMPORTANT = (
    "sheet1.xml",
    "workbook.xml",
    "workbook.xml.rels",
    "sharedStrings.xml",
    "styles.xml",
    "[Content_Types].xml",
    "table1.xml",
    ".rels",
)


@_on_parts
def xml_of_part(parts, rng):
    names = [name for name, _ in parts if name.endswith(IMPORTANT)] * 3 + [name for name, _ in parts]
    chosen = rng.choice(names)
    of = rng.choice(XML)
    return [(name, of(part, rng) if name == chosen else part) for name, part in parts]


@_on_parts
def part_gone(parts, rng):
    i = rng.randrange(len(parts))
    return parts[:i] + parts[i + 1 :]


@_on_parts
def part_twice(parts, rng):
    name, part = rng.choice(parts)
    return [*parts, (rng.choice((name, name.upper())), rng.choice((part, b"", b"<a/>")))]


@_on_parts
def parts_shuffled(parts, rng):
    rng.shuffle(parts)
    return parts


@_on_parts
def part_renamed(parts, rng):
    i = rng.randrange(len(parts))
    name = parts[i][0]
    new = rng.choice(
        (
            "../../../CANARY",
            "/CANARY",
            "C:\\CANARY",
            name.upper(),
            name.replace("/", "\\"),
            "xl/../" + name,
            name + "\0x",
            "a" * 5_000,
            "xl/calcChain.xml",
            "xl/",
            "",
            "\u202e" + name,
        )
    )
    return [(new if at == i else name, part) for at, (name, part) in enumerate(parts)]


@_on_parts
def parts_exchanged(parts, rng):
    a, b = rng.randrange(len(parts)), rng.randrange(len(parts))
    contents = [part for _, part in parts]
    contents[a], contents[b] = contents[b], contents[a]
    return [(name, part) for (name, _), part in zip(parts, contents, strict=True)]


@_on_parts
def part_added(parts, rng):
    name, part = rng.choice(
        (
            (
                "xl/calcChain.xml",
                b'<calcChain xmlns="x"><c r="Z99"/></calcChain>',
            ),
            ("xl/snugtune_x.xml", b"<a/>"),
            ("xl/worksheets/snugtune_summary.xml", b"<worksheet/>"),
            ("xl/media/zero.bin", bytes(1 << 20)),
            ("xl/vbaProject.bin", b"\0macro"),
            ("_xmlsignatures/sig1.xml", b"<Signature/>"),
            ("docProps/../../CANARY", b"x"),
        )
    )
    return [*parts, (name, part)]


def stored(content, rng):
    try:
        return _packed(_parts(content), rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    except Exception:
        return content


def header(content, rng):
    """A number in a local header, the directory, or its end: sizes, offsets, checksums, flags, methods."""
    marks = [m.start() for m in re.finditer(rb"PK(?:\x01\x02|\x03\x04|\x05\x06)", content)]
    if not marks:
        return content
    at = rng.choice(marks)
    # Offsets of fields and their sizes: APPNOTE 4.3.7, 4.3.12 and 4.3.16.
    fields = {
        b"\x01\x02": ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)),
        b"\x03\x04": ((6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
        b"\x05\x06": ((4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
    }[content[at + 2 : at + 4]]
    offset, size = rng.choice(fields)
    value = rng.choice(
        (0, 1, 8, 12, 14, 99, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 2, 2**32 - 1, rng.choice(marks))
    )
    return (
        content[: at + offset]
        + (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        + content[at + offset + size :]
    )


def prefixed(content, rng):
    return rng.choice((b"#!/bin/sh\n", b"PK\x03\x04", bytes(100), content)) + content


_CHANGES = (
    part_gone,
    part_twice,
    parts_shuffled,
    part_renamed,
    parts_exchanged,
    part_added,
    stored,
    header,
    prefixed,
    *BINARY.values(),
)


def _in_a_part(of):
    """``of`` on one of the parts that matter most."""

    def change(parts, rng):
        names = [name for name, _ in parts if name.endswith(IMPORTANT)] or [parts[0][0]]
        chosen = rng.choice(names)
        return [(name, of(part, rng) if name == chosen else part) for name, part in parts]

    return _on_parts(change)


# The XML is where most of the format is.
WORKBOOK = {of.__name__: of for of in _CHANGES} | {f"xml_{of.__name__}": _in_a_part(of) for of in XML}
