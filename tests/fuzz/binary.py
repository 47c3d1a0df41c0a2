"""Damage to any file: bytes in, bytes out, by the random numbers that are handed in."""

import struct

NUMBERS = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**63 - 1,
    2**64 - 1,
)


def _place(content, rng):
    """Damage is likelier at both ends, where most formats say what they are."""
    size = max(len(content), 1)
    near = min(size, 64)
    return rng.choice((rng.randrange(size), rng.randrange(near), size - 1 - rng.randrange(near)))


def flip(content, rng):
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if found:
            found[_place(found, rng)] ^= 1 << rng.randrange(8)
    return bytes(found)


def overwrite(content, rng):
    found = bytearray(content)
    at = _place(found, rng)
    found[at : at + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(1, 9))
    return bytes(found)


def number(content, rng):
    """An integer of 1 to 8 bytes that programs trip over, in either order of bytes."""
    found, at = bytearray(content), _place(content, rng)
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice(NUMBERS) & (1 << 8 * size) - 1
    found[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))
    return bytes(found)


def truncate(content, rng):
    return content[: _place(content, rng)]


def behead(content, rng):
    return content[rng.randrange(1, 64) :]


def delete(content, rng):
    at = _place(content, rng)
    return content[:at] + content[at + rng.choice((1, 4, 64, 1024)) :]


def repeat(content, rng):
    at = _place(content, rng)
    piece = content[at : at + rng.choice((1, 4, 64, 1024))]
    return content[:at] + piece * rng.choice((2, 3, 100)) + content[at + len(piece) :]


def insert(content, rng):
    at = _place(content, rng)
    return content[:at] + rng.randbytes(rng.choice((1, 2, 16, 256))) + content[at:]


def swap(content, rng):
    a, b = sorted((_place(content, rng), _place(content, rng)))
    size = rng.choice((1, 8, 128))
    one, other = content[a : a + size], content[b : b + size]
    return content[:a] + other + content[a + size : b] + one + content[b + size :]


def append(content, rng):
    return content + rng.choice((rng.randbytes(16), bytes(4096), content))


BINARY = {
    of.__name__: of
    for of in (flip, overwrite, number, truncate, behead, delete, repeat, insert, swap, append)
}


def footer(content, rng):
    """A Parquet file's description of itself, whose length stands before the last four bytes."""
    found, size = bytearray(content), struct.unpack("<I", content[-8:-4])[0] if len(content) > 12 else 0
    begin = max(len(found) - 8 - size, 4)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if begin < len(found) - 8:
            at = rng.randrange(begin, len(found) - 8)
            found[at] = rng.choice(
                (found[at] ^ 1 << rng.randrange(8), rng.randrange(256), 0xFF, 0, found[at] + 1 & 255)
            )
    return bytes(found)


def footer_length(content, rng):
    return (
        content[:-8]
        + struct.pack("<I", rng.choice((0, 1, 7, len(content), 2**31 - 1, 2**32 - 1)))
        + content[-4:]
    )


def page(content, rng):
    """The data before the footer: headers of pages, lengths of strings, levels."""
    found, size = bytearray(content), struct.unpack("<I", content[-8:-4])[0] if len(content) > 12 else 0
    end = max(len(found) - 8 - size, 5)
    for _ in range(rng.choice((1, 1, 3, 20))):
        found[rng.randrange(4, end) % len(found)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(found)


PARQUET = {of.__name__: of for of in (footer, footer_length, page)}
