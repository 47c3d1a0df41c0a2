import numpy as np

from snugtune.data import duplicates
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


def test_texts_without_words_are_not_all_one_group():
    groups = near_duplicate_groups(["4532", "8871", "?!", "4532", "XXXX"])
    assert groups[0] == groups[3]
    assert len(set(groups)) == 4


def test_the_threshold_is_jaccard_of_shingles():
    # 20 shingles: a changed last word leaves 19 of 21 shared, a changed middle one 17 of 23.
    words = WORDS[:22]
    last, middle = words.copy(), words.copy()
    last[-1], middle[10] = "other", "other"
    texts = [" ".join(words), " ".join(last), " ".join(middle)]
    assert near_duplicate_groups(texts, threshold=0.8).tolist() == [0, 0, 2]
    assert len(set(near_duplicate_groups(texts, threshold=0.95))) == 3


def test_many_copies_of_one_template_are_compared_with_the_first_only(monkeypatch):
    compared = []
    real = duplicates._Shingles.jaccard

    def counted(shingles, a, b):
        compared.extend(zip(a.tolist(), b.tolist(), strict=True))
        return real(shingles, a, b)

    monkeypatch.setattr(duplicates._Shingles, "jaccard", counted)
    assert set(near_duplicate_groups(["a letter from a template"] * 500)) == {0}
    assert compared == [(i, 0) for i in range(1, 500)]


def test_no_texts():
    assert near_duplicate_groups([]).shape == (0,)
