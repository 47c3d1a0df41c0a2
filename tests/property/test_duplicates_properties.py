"""Near-duplicate groups against the definition, written text by text with Python's own sets and numbers."""

import re
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snugtune.data import duplicates
from snugtune.data.duplicates import near_duplicate_groups

WORDS = ["fee", "Card", "LOAN", "straße", "naïve", "xxxx", "x1", "12", "٣", "ex", "a_b", "...", "\n", "ΣΑΣ"]
TEXTS = st.lists(
    st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join) | st.text(max_size=12), max_size=40
)


def shingles_of(text):
    folded = text.casefold()
    words = re.findall(r"\w+", re.sub(r"\b[x\d]+\b", "#", folded)) or [folded.strip()]
    size = min(3, len(words))
    return {
        zlib.crc32(" ".join(words[i : i + size]).encode("utf-8", "surrogatepass"))
        for i in range(len(words) - size + 1)
    }


def groups_by_definition(texts, threshold=0.8, seed=0):
    rng = np.random.default_rng(seed)
    multipliers = [int(m) | 1 for m in rng.integers(1, 2**63, duplicates.PERMUTATIONS, dtype=np.uint64)]
    offsets = [int(o) for o in rng.integers(0, 2**63, duplicates.PERMUTATIONS, dtype=np.uint64)]
    shingles = [shingles_of(text) for text in texts]
    signatures = [
        [min((s * m + o) % 2**64 >> 32 for s in own) for m, o in zip(multipliers, offsets, strict=True)]
        for own in shingles
    ]
    group = list(range(len(texts)))
    rows = duplicates.PERMUTATIONS // duplicates.BANDS
    for band in range(0, duplicates.PERMUTATIONS, rows):
        first = {}
        for i, signature in enumerate(signatures):
            j = first.setdefault(tuple(signature[band : band + rows]), i)
            a, b = shingles[i], shingles[j]
            if len(a & b) / len(a | b) >= threshold:
                low, high = sorted((group[i], group[j]))
                group = [low if g == high else g for g in group]
    return group


@given(TEXTS, st.sampled_from([0.3, 0.8, 1.0]), st.integers(0, 3))
def test_groups_are_those_of_the_definition(texts, threshold, seed):
    found = near_duplicate_groups(texts, threshold=threshold, seed=seed)
    assert found.tolist() == groups_by_definition(texts, threshold, seed)


@pytest.mark.parametrize(("texts", "shingles"), [(1, 1), (3, 7)])
def test_nothing_depends_on_how_many_are_done_at_a_time(monkeypatch, texts, shingles):
    rng = np.random.default_rng(0)
    rows = [" ".join(rng.choice(WORDS, rng.integers(0, 30))) for _ in range(60)]
    rows += [f"{row} 77" for row in rows[:20]]
    at_once = near_duplicate_groups(rows)
    assert len(set(at_once.tolist())) < 70
    monkeypatch.setattr(duplicates, "_TEXTS_AT_A_TIME", texts)
    monkeypatch.setattr(duplicates, "_SHINGLES_AT_A_TIME", shingles)
    assert near_duplicate_groups(rows).tolist() == at_once.tolist()
