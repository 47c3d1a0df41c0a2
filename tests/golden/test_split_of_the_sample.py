"""Rows kept, groups and parts of the sample, as they were when first released: runs stay comparable."""

import hashlib

import numpy as np

from snugtune.data.duplicates import near_duplicate_groups
from snugtune.data.labels import CleaningPolicy, LabelSet, clean
from snugtune.data.sample import sample_rows
from snugtune.data.split import PARTS, split_rows


def digest(values, dtype):
    return hashlib.sha256(np.asarray(values, dtype=dtype).tobytes()).hexdigest()[:16]


def test_rows_groups_and_parts_are_unchanged():
    rows = sample_rows(3600)
    cleaned = clean(
        [row.text for row in rows], [row.issue for row in rows], CleaningPolicy(), source="the sample"
    )
    labels = LabelSet(tuple(sorted(set(cleaned.labels))), cleaned.report.aliases)
    y = labels.encode(cleaned.labels)
    groups = near_duplicate_groups(cleaned.texts)
    split = split_rows(y, groups, seed=0, validation=0.1, test=0.1)
    assert digest(cleaned.row, "<i8") == "6340981de3037f61"
    assert digest(y, "<i8") == "eabec5e0ecfc4efb"
    assert digest(groups, "<i8") == "2e72b90deabe1f71"
    assert digest([PARTS.index(part) for part in split.part], np.int8) == "ac4dd844fa3829ff"
