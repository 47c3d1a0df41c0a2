"""By what a text is known again in another table or run."""

from __future__ import annotations

import hashlib


def text_id(text: str) -> int:
    """64 bits of a text's hash: the same text has the same one in every run."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")
