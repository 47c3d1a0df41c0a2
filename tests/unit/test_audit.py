"""Facts about a table: counts by hand, copies, languages, names that look alike."""

import numpy as np
import pytest

from snugtune.config import make_config
from snugtune.data import audit as audit_module
from snugtune.data.audit import (
    audit_table,
    languages,
    look_alikes,
    near_duplicates,
    sentences,
    shortened,
    without_texts,
)
from snugtune.data.dataset import load_usable
from snugtune.data.tokens import Truncation

TEMPLATE = "dear sir or madam please remove the account {} from my report at once as the law says"


def write(path, rows):
    path.write_text("\n".join(["text;label", *(f"{text};{label}" for text, label in rows)]) + "\n")
    return make_config({"train": str(path)})


@pytest.fixture
def usable(tmp_path):
    words = ["lost", "stolen", "broken", "late", "early", "wrong", "double", "missing"]
    rows = [(f"the {a} card was {b} again", "Card issue") for a in words for b in words if a != b][:30]
    rows += [(TEMPLATE.format(i), "Report") for i in range(12)]
    rows += [("fee charged twice", "Fees"), ("fee charged twice", "Report"), ("my fee", "fees")]
    rows += [rows[0], ("hello there", "Reports")]
    return load_usable(write(tmp_path / "a.csv", rows))


def test_facts_of_a_small_table(usable):
    lengths = np.arange(1, len(usable.y) + 1)
    found = audit_table(usable, lengths, Truncation(10, len(lengths), 3, 100, 25), leaked_rows=2)
    assert found["rows"] == 46
    assert found["labels"] == 4
    assert found["classes"]["largest"] == {"label": "Card issue", "rows": 30}
    assert found["classes"]["smallest"] == {"label": "Reports", "rows": 1}
    assert found["classes"]["below_10"] == 2
    assert found["rare_classes"] == [{"label": "Reports", "rows": 1}, {"label": "Fees", "rows": 2}]
    assert found["lengths"] == {
        "tokens": {"median": 23, "p95": 43, "max": 46}, "cut_rows": 3, "cut_tokens_share": 0.25
    }  # fmt: skip
    assert found["duplicates"] == {"rows": 1, "conflicting_rows": 2}
    assert found["near_duplicates"]["largest"][0]["rows"] == 12
    assert found["leakage"] == {"rows": 2}
    assert ["Fees", "fees"] in found["label_variants"]
    assert ["Report", "Reports"] in found["label_variants"]
    said = " ".join(sentences(found))
    assert "12 rows" not in said  # the same-text rows are a group, too
    assert "14 rows in 2 groups of near-duplicates" in said
    assert "2 pairs of labels may be one: 'Fees' and 'fees'; 'Report' and 'Reports'." in said


def test_many_spellings_are_told_in_one_sentence():
    found = {
        "near_duplicates": {"groups": 0}, "label_variants": [[f"a{i}", f"A{i}"] for i in range(17)],
    }  # fmt: skip
    (said,) = sentences(found)
    assert said == (
        "17 pairs of labels may be one: 'a0' and 'A0'; 'a1' and 'A1'; 'a2' and 'A2'; and 14 pairs more."
    )
    (one,) = sentences(found | {"label_variants": [["a", "A"]]})
    assert one == "Two labels may be one: 'a' and 'A'."


def test_texts_are_left_out_labels_stay():
    found = {
        "near_duplicates": {"groups": 1, "largest": [{"rows": 2, "text": "secret"}]},
        "label_issues": {"suspected_rows": 1, "top": [{"row": 2, "text": "secret", "given": "Fees"}]},
    }
    bare = without_texts(found)
    assert "secret" not in repr(bare)
    assert bare["label_issues"]["top"] == [{"row": 2, "text": None, "given": "Fees"}]
    assert "secret" in repr(found)
    assert without_texts({**found, "label_issues": None})["label_issues"] is None


def test_near_duplicates_are_groups_of_several():
    found = near_duplicates(["a  b", "c", "a b", "d", "e"], np.array([0, 1, 0, 3, 3]))
    assert found["groups"] == 2
    assert found["rows"] == 4
    assert [group["text"] for group in found["largest"]] == ["a b", "d"]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Card lost", "card  LOST"), ("Löan", "Loan"), ("Fees & charges", "fees and charges"),
        ("card_lost", "card-lost"), ("lost card", "Card lost"), ("Credit report", "Credit reports"),
        ("Mortgage", "Mortgge"), ("Mortgage", "Mortgaeg"), ("Mortgage", "Mortgaze"),
        ("xMortgage", "Mortgage"),
    ],
)  # fmt: skip
def test_names_that_look_like_one(a, b):
    assert look_alikes([a, "Something else", b]) == [[a, b]]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Level 1 of it", "Level 2 of it"), ("cat", "car"), ("Mortgage", "Montgaze"),
        ("xabcdefg", "abcdefgy"),
        ("+", "-"), ("decrease limit", "increase limit"), ("Mortgage", "Mortgagees"),
    ],
)  # fmt: skip
def test_names_that_do_not(a, b):
    assert look_alikes([a, b]) == []


def test_each_pair_once_and_identical_names_never():
    assert look_alikes(["Fees!", "Fees", "fees"]) == [["Fees!", "Fees"], ["Fees!", "fees"], ["Fees", "fees"]]


def test_languages_and_their_shares():
    english = "I was charged a late fee although I had paid my bill on time and in full"
    spanish = "Me cobraron una comisión por pago tardío aunque había pagado a tiempo mi factura"
    found = languages([english] * 3 + [spanish])
    assert found == [{"language": "en", "share": 0.75}, {"language": "es", "share": 0.25}]


def test_without_the_extra_languages_are_not_known(monkeypatch):
    monkeypatch.setattr(audit_module, "find_spec", lambda _name: None)
    assert languages(["hello"]) is None


def test_shortened():
    assert shortened("a\n b ") == "a b"
    assert shortened("x" * 300) == "x" * 199 + "…"
