import json

import pytest

from snugtune.data.labels import CleaningPolicy, LabelSet, clean
from snugtune.errors import UserInputError

TEXTS = ["a", " a ", "b", "b", "", None, "c", "d", "e", "f", "g"]
LABELS = ["X", "X", "X", "Y", "Y", "X", " ", None, "x", "Y", "Z"]


def test_everything_is_counted_and_treated_by_the_defaults():
    result = clean(TEXTS, LABELS, CleaningPolicy(), source="t")
    report = result.report
    assert report.rows_in == 11
    assert (report.empty_texts, report.blank_labels) == (2, 2)
    assert (report.exact_duplicates, report.conflicting_rows) == (1, 2)
    assert report.merged_labels == {"X": ["x"]}
    assert report.rare_classes == {"Y": 2, "Z": 1}
    assert result.row.tolist() == [0, 2, 3, 8, 9, 10]
    assert result.labels == ["X", "X", "Y", "X", "Y", "Z"]


def test_options_change_the_treatment():
    policy = CleaningPolicy(
        duplicates="keep", conflicts="drop", merge_label_variants=False, min_class_count=1
    )
    texts, labels = [*TEXTS, "h", "i", "j"], [*LABELS, "Z", "Z", "Z"]
    assert clean(texts, labels, policy, source="t").row.tolist() == [0, 1, 8, 9, 10, 11, 12, 13]
    rare = clean(TEXTS, LABELS, CleaningPolicy(min_class_count=2), source="t")
    assert rare.report.dropped_rare_rows == 1
    assert "Z" not in rare.labels


def test_the_report_says_what_was_done_and_how_to_change_it():
    text = "\n".join(clean(TEXTS, LABELS, CleaningPolicy(), source="t").report.sentences())
    assert "6 of 11 rows kept, 3 classes" in text
    assert "1 exact duplicates: drop (--duplicates)" in text


@pytest.mark.parametrize(
    ("texts", "labels", "words"),
    [
        (["", " "], ["a", "b"], "no row with both"),
        (["a", "b"], ["x", "x"], "same label"),
        (["a", "b", "c"], ["x", "y", "z"], "looks like an identifier"),
    ],
)
def test_data_that_cannot_be_learned_from(texts, labels, words):
    with pytest.raises(UserInputError, match=words):
        clean(texts, labels, CleaningPolicy(), source="t")


def test_merged_spellings_stay_known():
    labels = LabelSet(("Fees",), {"FEES": "Fees"})
    assert labels.encode(["FEES", "Fees", "fee"]).tolist() == [0, 0, -1]
    assert labels.unseen(["FEES", "fee"]) == {"fee": 1}


def test_a_spelling_that_training_did_not_have_is_known_where_it_can_mean_one_class_only():
    labels = LabelSet(("True", "Late  fee", "Card", "card"))
    assert labels.encode(["TRUE", "true", "late fee", " Late Fee", "Card", "card", "CARD"]).tolist() == [
        0, 0, 1, 1, 2, 3, -1,
    ]  # fmt: skip
    assert labels.unseen(["TRUE", "CARD"]) == {"CARD": 1}


def test_unknown_labels_are_marked():
    labels = LabelSet(("a", "b"))
    assert labels.encode(["b", "z", "a"]).tolist() == [1, -1, 0]
    assert labels.unseen(["b", "z", "z"]) == {"z": 2}
    assert labels.id2label == {0: "a", 1: "b"}


def test_spacing_inside_a_label_is_a_variant_like_case():
    texts = list("abcdefg")
    labels = ["late  fee", "late  fee", "late fee", "Late fee ", "fraud", "fraud", "fraud"]
    merged = clean(texts, labels, CleaningPolicy(), source="t")
    assert merged.report.merged_labels == {"late  fee": ["late fee", "Late fee"]}
    assert set(merged.labels) == {"late  fee", "fraud"}
    apart = clean(texts, labels, CleaningPolicy(merge_label_variants=False), source="t")
    assert apart.labels == ["late  fee", "late  fee", "late fee", "Late fee", "fraud", "fraud", "fraud"]
    assert apart.report.merged_labels == {}


def test_the_first_seen_spelling_wins_a_tie():
    result = clean(list("abcd"), ["fee", "FEE", "z", "z"], CleaningPolicy(), source="t")
    assert result.labels == ["fee", "fee", "z", "z"]


@pytest.mark.parametrize(
    ("labels", "policy", "words"),
    [
        (["a", "a", "b", "b"], CleaningPolicy(min_class_count=5), "no row of t.*lower --min-class-count"),
        (["a", "a", "a", "b"], CleaningPolicy(min_class_count=2), "one class of t.*lower --min-class-count"),
        (["a", "A", "a", "A"], CleaningPolicy(), "one class of t.*--keep-label-variants"),
    ],
)
def test_when_cleaning_took_the_classes_the_error_names_the_option(labels, policy, words):
    with pytest.raises(UserInputError, match=words):
        clean(list("pqrs"), labels, policy, source="t")


def test_conflicts_that_leave_nothing_name_their_option():
    with pytest.raises(UserInputError, match="use --conflicts keep"):
        clean(list("ppqq"), list("abab"), CleaningPolicy(conflicts="drop"), source="t")


def test_the_report_is_json_ready():
    record = clean(TEXTS, LABELS, CleaningPolicy(), source="t").report.as_dict()
    assert json.loads(json.dumps(record)) == record
    assert record["policy"]["duplicates"] == "drop"
