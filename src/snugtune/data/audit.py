"""A table before anything is spent on it: counts, balance, lengths, languages, copies, label names."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.data.dataset import Usable
from snugtune.data.tokens import Truncation

RARE_ROWS = 10
"""Classes with fewer rows can be neither learned nor scored reliably: one of ten is held back to validate."""

GROUPS_SHOWN = 10
PAIRS_TOLD = 3
CHARACTERS_SHOWN = 200

LANGUAGE_SAMPLE = 2_000
"""Texts whose language is identified: shares are then known to two points."""

LANGUAGE_CHARACTERS = 1_000
MIN_LANGUAGE_CONFIDENCE = 0.5
SHORTEST_WITH_TYPO = 5
"""Characters of the shortest names of which one letter more, less or other passes for a typing mistake."""


def audit_table(
    table: Usable,
    lengths: NDArray[np.int64],
    truncation: Truncation,
    *,
    leaked_rows: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The facts about N usable rows, JSON-ready (block ``audit`` of ``run.json``).

    ``lengths`` (N,) are the texts' in tokens before anything is cut, ``truncation`` says what is cut,
    ``leaked_rows`` how many rows of a test file are near-duplicates of these (None without such a file).
    """
    cleaning, names = table.cleaning, table.labels.names
    several = table.y.ndim == 2
    counts = table.y.sum(axis=0) if several else np.bincount(table.y, minlength=len(names))
    return {
        "rows": len(table.y),
        "labels": len(names),
        "labels_per_row": _labels_per_row(table.y) if several else None,
        "classes": _balance(names, counts),
        "lengths": _lengths(lengths, truncation),
        "languages": languages(table.texts, seed=seed),
        "duplicates": {
            "rows": cleaning["exact_duplicates"],
            "conflicting_rows": cleaning["conflicting_rows"],
        },
        "near_duplicates": near_duplicates(table.texts, table.groups),
        "leakage": None if leaked_rows is None else {"rows": leaked_rows},
        "label_variants": [
            *([kept, other] for kept, others in cleaning["merged_labels"].items() for other in others),
            *look_alikes(names),
        ],
        "rare_classes": [
            {"label": names[k], "rows": int(counts[k])}
            for k in np.argsort(counts, kind="stable").tolist()
            if counts[k] < RARE_ROWS
        ],
    }


def languages(texts: Sequence[str], *, seed: int = 0) -> list[dict[str, Any]] | None:
    """Languages (ISO 639-1; ``und`` where it is not clear) and their shares, the commonest first.

    Identified by py3langid (the extra ``languages``) on a sample of the texts; None where it is missing.
    """
    if find_spec("py3langid") is None:
        return None
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(
        MODEL_FILE, norm_probs=True, min_confidence=MIN_LANGUAGE_CONFIDENCE
    )
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(texts))[:LANGUAGE_SAMPLE].tolist()
    found = [identifier.classify(texts[i][:LANGUAGE_CHARACTERS])[0] for i in chosen]
    codes, counts = np.unique(found, return_counts=True)
    order = np.argsort(-counts, kind="stable").tolist()
    return [{"language": str(codes[i]), "share": float(counts[i] / len(found))} for i in order]


def near_duplicates(texts: Sequence[str], groups: NDArray[np.int64]) -> dict[str, Any]:
    """Groups of more than one row, the rows in them, and the largest: templates, with a text of each."""
    _, first, counts = np.unique(groups, return_index=True, return_counts=True)
    several = np.flatnonzero(counts > 1)
    largest = several[np.argsort(-counts[several], kind="stable")][:GROUPS_SHOWN]
    return {
        "groups": len(several),
        "rows": int(counts[several].sum()),
        "largest": [
            {"rows": int(counts[i]), "text": shortened(texts[int(first[i])])} for i in largest.tolist()
        ],
    }


def look_alikes(names: Sequence[str]) -> list[list[str]]:
    """Pairs of labels that may be one: alike but for case, accents, signs, the order of words, or one letter.

    Names whose numbers differ are not alike. Linear in the number of names: two strings one letter apart
    share what is left when a letter is taken out (Garbe's symmetric deletion).
    """
    by_key: dict[str, set[int]] = defaultdict(set)
    plain = [_plain(name) for name in names]
    for i, name in enumerate(plain):
        by_key[_any_order(name)].add(i)
        for key in {name, *(name[:j] + name[j + 1 :] for j in range(len(name)))}:
            by_key[key].add(i)
    pairs = {pair for alike in by_key.values() for pair in combinations(sorted(alike), 2)}
    return [[names[i], names[j]] for i, j in sorted(pairs) if _alike(plain[i], plain[j])]


def _any_order(name: str) -> str:
    return " ".join(sorted(name.split()))


def _alike(a: str, b: str) -> bool:
    if re.findall(r"\d+", a) != re.findall(r"\d+", b):
        return False
    return _any_order(a) == _any_order(b) or (min(len(a), len(b)) >= SHORTEST_WITH_TYPO and _one_typo(a, b))


def _one_typo(a: str, b: str) -> bool:
    """Whether one letter was added, left out, replaced, or swapped with its neighbour."""
    shorter, longer = sorted((a, b), key=len)
    same = next((i for i, (x, y) in enumerate(zip(shorter, longer, strict=False)) if x != y), len(shorter))
    if len(shorter) < len(longer):
        return shorter[same:] == longer[same + 1 :]
    swapped = shorter[same : same + 2] == longer[same : same + 2][::-1]
    return shorter[same + 1 :] == longer[same + 1 :] or (
        swapped and shorter[same + 2 :] == longer[same + 2 :]
    )


def shortened(text: str, characters: int = CHARACTERS_SHOWN) -> str:
    """``text`` on one line, cut to so many ``characters``."""
    line = " ".join(text.split())
    return line if len(line) <= characters else line[: characters - 1].rstrip() + "…"


def without_texts(audit: dict[str, Any]) -> dict[str, Any]:
    """The block ``audit`` with null for every text of a row; labels stay."""

    def bare(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "text": None} for row in rows]

    near, issues = audit["near_duplicates"], audit.get("label_issues")
    told = {**audit, "near_duplicates": {**near, "largest": bare(near["largest"])}}
    return told | ({"label_issues": {**issues, "top": bare(issues["top"])}} if issues else {})


def _balance(names: Sequence[str], counts: NDArray[np.int64]) -> dict[str, Any]:
    def of(k: int) -> dict[str, Any]:
        return {"label": names[k], "rows": int(counts[k])}

    return {
        "largest": of(int(counts.argmax())),
        "smallest": of(int(counts.argmin())),
        "below_10": int((counts < RARE_ROWS).sum()),
    }


def _labels_per_row(y: NDArray[np.int8]) -> dict[str, Any]:
    per_row = y.sum(axis=1)
    bare = int((per_row == 0).sum())
    return {"mean": float(per_row.mean()), "most": int(per_row.max()), "rows_with_none": bare}


def _lengths(lengths: NDArray[np.int64], truncation: Truncation) -> dict[str, Any]:
    return {
        "tokens": {
            "median": int(np.median(lengths)),
            "p95": int(np.quantile(lengths, 0.95)),
            "max": int(lengths.max()),
        },
        "cut_rows": truncation.rows_cut,
        "cut_tokens_share": truncation.tokens_cut / truncation.tokens if truncation.tokens else 0.0,
    }


def _plain(name: str) -> str:
    """Lower case without accents and signs, blanks made single."""
    folded = unicodedata.normalize("NFKD", name.casefold().replace("&", " and "))
    letters = "".join(c for c in folded if not unicodedata.combining(c))
    return " ".join(re.sub(r"[\W_]+", " ", letters).split()) or name


def _alike_sentence(pairs: Sequence[Sequence[str]]) -> str:
    shown = "; ".join(f"{a!r} and {b!r}" for a, b in pairs[:PAIRS_TOLD])
    more = f"; and {len(pairs) - PAIRS_TOLD:,} pairs more" if len(pairs) > PAIRS_TOLD else ""
    count = f"{len(pairs):,} pairs of labels" if len(pairs) > 1 else "Two labels"
    return f"{count} may be one: {shown}{more}."


def sentences(audit: dict[str, Any]) -> Iterator[str]:
    """What stands out in the block ``audit``, one line each; nothing found says nothing."""
    near, issues, curve = audit["near_duplicates"], audit.get("label_issues"), audit.get("learning_curve")
    if near["groups"]:
        yield f"{near['rows']:,} rows in {near['groups']:,} groups of near-duplicates."
    if audit["label_variants"]:
        yield _alike_sentence(audit["label_variants"])
    if issues and issues["suspected_rows"]:
        yield (
            f"{issues['suspected_rows']:,} labels look wrong ({100 * issues['share']:.1f} %), listed in "
            f"{issues['file']}: fill in corrected_label and give it back with --corrections."
        )
    if curve:
        yield curve["sentence"]
