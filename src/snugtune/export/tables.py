"""A tokenizer's normaliser and word borders as tables of characters, for a browser that must give the same.

JavaScript's own classes of characters are those of the browser's version of Unicode, and it lowers a capital
sigma by its place in the word; the tokenizers library, in Rust, has other classes and lowers each character
by itself. So what Rust makes of every character is written down here and looked up there.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer

Ranges = list[tuple[int, int, str]]
"""First and last code point, and what holds for all between."""

CODE_POINTS = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE1000), *range(0xF0000, 0x110000)]
"""All that are characters, or may become some: planes 4 to 13 are empty, halves of pairs are no text."""

_AT_A_TIME = 4096

_RULES: dict[str, Callable[[str], str]] = {
    "": lambda _: "",
    " ": lambda _: " ",
    " c ": lambda character: f" {character} ",
    "nfd": lambda character: unicodedata.normalize("NFD", character),
}


def normalizer_table(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, Any] | None:
    """``ranges`` by rule and ``images`` of single characters; None where there is no table.

    There is one if the normaliser maps each character whatever stands beside it, which the ``texts`` show.
    """
    normalizer = tokenizer.normalizer
    if normalizer is None:
        return None
    normalize: Callable[[str], str] = normalizer.normalize_str
    if any(normalize(text) != "".join(map(normalize, text)) for text in texts):
        return None
    images: dict[str, str] = {}
    kinds: list[tuple[int, str]] = []
    for code in CODE_POINTS:
        character = chr(code)
        image = normalize(character)
        if image == character:
            continue
        rule = next((name for name, apply in _RULES.items() if apply(character) == image), None)
        if rule is None:
            images[character] = image
        else:
            kinds.append((code, rule))
    return {"ranges": _ranges(kinds), "images": images}


def word_table(tokenizer: Tokenizer) -> Ranges | None:
    """Where words end: at spaces (`" "`), and on both sides of punctuation (`"p"`).

    None where the tokenizer does not split words as BERT's does.
    """
    splitter = tokenizer.pre_tokenizer
    if type(splitter).__name__ != "BertPreTokenizer":
        return None
    characters = [character for character in map(chr, CODE_POINTS) if character != "a"]
    kinds = []
    for first in range(0, len(characters), _AT_A_TIME):
        part = characters[first : first + _AT_A_TIME]
        words = splitter.pre_tokenize_str("a" + "".join(f"{character}a" for character in part))
        # The characters stand at the odd places; those inside a word end none.
        inside = {place for _, (start, end) in words if end - start > 1 for place in range(start, end)}
        alone = {start for _, (start, end) in words if end - start == 1}
        for i, character in enumerate(part):
            place = 2 * i + 1
            if place not in inside:
                kinds.append((ord(character), "p" if place in alone else " "))
    return _ranges(kinds)


def _ranges(kinds: Sequence[tuple[int, str]]) -> Ranges:
    found: Ranges = []
    for code, kind in kinds:
        if found and found[-1][1] == code - 1 and found[-1][2] == kind:
            found[-1] = (found[-1][0], code, kind)
        else:
            found.append((code, code, kind))
    return found
