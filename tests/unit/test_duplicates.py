import numpy as np

from snugtune.data.duplicates import near_duplicate_groups

WORDS = np.array([f"word{c}{d}" for c in "abcdefghij" for d in "klmnopqrst"])


def test_template_letters_share_a_group_and_others_do_not():
    rng = np.random.default_rng(0)
    letter = " ".join(rng.choice(WORDS, 80))
    texts = [
        letter,
        letter.upper() + " 12/03",
        letter + " XXXX",
        *(" ".join(rng.choice(WORDS, 80)) for _ in range(50)),
    ]
    groups = near_duplicate_groups(texts)
    assert len(set(groups[:3])) == 1
    assert len(set(groups)) == 51


def test_short_and_empty_texts():
    groups = near_duplicate_groups(["", "card lost", "Card lost!", "fee", ""])
    assert groups[0] == groups[4]
    assert groups[1] == groups[2]
    assert len(set(groups)) == 3
