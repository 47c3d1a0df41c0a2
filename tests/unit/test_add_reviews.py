"""``fit --add``: reviewed texts join the training rows, never what is measured on."""

import numpy as np
import polars as pl
import pytest

from reviewing import LABELS, decide_all, store_with
from snugtune.config import make_config
from snugtune.data.dataset import load_data
from snugtune.data.tokens import Tokens, Truncation
from snugtune.errors import UserInputError
from snugtune.progress import Observer

WORDS = [
    "alpha",
    "bravo",
    "charlie",
    "delta",
    "echo",
    "foxtrot",
    "golf",
    "hotel",
    "india",
    "juliet",
    "kilo",
    "lima",
    "mike",
    "november",
    "oscar",
]


class Listener(Observer):
    def __init__(self):
        self.said = []

    def say(self, sentence):
        self.said.append(sentence)


def texts(n):
    """So different that no two are near-duplicates."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 12)) for _ in range(n)]


@pytest.fixture
def train(tmp_path):
    path = tmp_path / "train.csv"
    rows = [(text, LABELS[i % 3]) for i, text in enumerate(texts(60))]
    pl.DataFrame(rows, schema=["text", "label"], orient="row").write_csv(path)
    return path


def load(train, reviews, **settings):
    listener = Listener()
    config = make_config({"train": str(train), "add": str(reviews), **settings})
    return load_data(config, listener), " ".join(listener.said)


def plain(train, **settings):
    return load_data(make_config({"train": str(train), **settings}))


def test_new_texts_become_training_rows_at_the_end(train, tmp_path):
    before = plain(train)
    decide_all(tmp_path / "reviews.db", {"quite another text": "Loan", "and one more of these": "Card"})
    data, said = load(train, tmp_path / "reviews.db")
    part = data.parts["train"]
    assert part.texts == [*before.parts["train"].texts, "quite another text", "and one more of these"]
    assert [data.labels.names[k] for k in part.y[-2:]] == ["Loan", "Card"]
    assert part.reviewed == 2
    assert part.rows[-2:].tolist() == [-1, -1]
    for name in ("validation", "test"):
        assert data.parts[name].texts == before.parts[name].texts
        assert data.parts[name].y.tolist() == before.parts[name].y.tolist()
    assert data.additions == {
        "file": str(tmp_path / "reviews.db"), "decisions": 2, "added": 2, "relabelled": 0, "unchanged": 0,
        "like_held_out": 0, "of_unknown_labels": 0,
    }  # fmt: skip
    assert "2 reviewed texts added" in said


def test_a_training_row_gets_the_reviewed_label(train, tmp_path):
    part = plain(train).parts["train"]
    wrong = LABELS[(part.y[0] + 1) % 3]
    decide_all(tmp_path / "reviews.db", {part.texts[0]: wrong, part.texts[1]: LABELS[part.y[1]]})
    data, said = load(train, tmp_path / "reviews.db")
    assert data.labels.names[data.parts["train"].y[0]] == wrong
    assert len(data.parts["train"]) == len(part)
    assert (data.additions["relabelled"], data.additions["unchanged"], data.additions["added"]) == (1, 1, 0)
    assert "1 training rows relabelled" in said


@pytest.mark.parametrize("name", ["validation", "test"])
def test_what_is_like_a_held_out_row_is_left_out(train, tmp_path, name):
    before = plain(train)
    same = before.parts[name].texts[0]
    decide_all(tmp_path / "reviews.db", {same: "Card", same.upper() + " 1234": "Card"})
    data, said = load(train, tmp_path / "reviews.db")
    assert len(data.parts["train"]) == len(before.parts["train"])
    assert data.parts[name].y.tolist() == before.parts[name].y.tolist()
    assert data.additions["like_held_out"] == 2
    assert "like validation or test rows" in said


def test_a_test_file_counts_as_held_out(train, tmp_path):
    test = tmp_path / "test.csv"
    pl.DataFrame({"text": ["a text of the test file that is long"], "label": ["Card"]}).write_csv(test)
    decide_all(tmp_path / "reviews.db", {"a text of the test file that is long": "Loan"})
    data, _ = load(train, tmp_path / "reviews.db", test=str(test))
    assert data.additions["like_held_out"] == 1
    assert data.parts["test"].y.tolist() == [LABELS.index("Card")]


def test_labels_of_the_table_that_cleaning_dropped_are_counted(train, tmp_path):
    frame = pl.read_csv(train)
    rare = pl.DataFrame({"text": ["something rare"], "label": ["Rare"]})
    pl.concat([frame, rare]).write_csv(train)
    decide_all(tmp_path / "reviews.db", {"another rare one": "Rare"}, labels=[*LABELS, "Rare"])
    data, said = load(train, tmp_path / "reviews.db", min_class_count=2)
    assert data.additions["of_unknown_labels"] == 1
    assert "cleaning dropped" in said


def test_labels_that_the_table_does_not_have_are_refused(train, tmp_path):
    decide_all(tmp_path / "reviews.db", {"a text": "Cash"}, labels=["Cash", "Card"])
    with pytest.raises(UserInputError, match="'Cash', which the training table does not have"):
        load(train, tmp_path / "reviews.db")


def test_several_labels_for_one_are_refused(train, tmp_path):
    decide_all(tmp_path / "reviews.db", {"a text": ["Card", "Fees"]}, separator=";")
    with pytest.raises(UserInputError, match="2 labels and here each text has one"):
        load(train, tmp_path / "reviews.db")


def test_sets_of_labels_join_sets(tmp_path):
    path = tmp_path / "train.csv"
    rows = [(text, ";".join({LABELS[i % 3], LABELS[i % 2]})) for i, text in enumerate(texts(60))]
    pl.DataFrame(rows, schema=["text", "label"], orient="row").write_csv(path)
    decide_all(tmp_path / "reviews.db", {"a text": ["Card", "Loan"], "no label": []}, separator=";")
    data, _ = load(path, tmp_path / "reviews.db", label_separator=";")
    assert data.parts["train"].y[-2:].tolist() == [[1, 0, 1], [0, 0, 0]]


def test_without_decisions_nothing_changes(train, tmp_path):
    store_with(tmp_path / "reviews.db", ["undecided"])
    data, _ = load(train, tmp_path / "reviews.db")
    assert data.parts["train"].texts == plain(train).parts["train"].texts
    assert data.additions["decisions"] == 0


def test_a_wrong_file_is_told_in_one_sentence(train, tmp_path):
    import sqlite3

    text, other = tmp_path / "reviews.csv", tmp_path / "other.db"
    text.write_text("body,label\n" * 100)
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE decisions (id)")
    newer = decide_all(tmp_path / "newer.db", {"a": "Card"}).path
    with sqlite3.connect(newer) as database:
        database.execute("PRAGMA user_version = 9")
    for path, said in (
        (tmp_path / "gone.db", "There is no file"), (text, "neither the text column 'text'"),
        (other, "none of reviews"), (newer, "a later version"),
    ):  # fmt: skip
        with pytest.raises(UserInputError, match=said) as raised:
            load(train, path)
        assert str(raised.value).count(".") <= 3 + str(path).count(".")
        assert "\n" not in str(raised.value)


def test_the_first_texts_of_tokens():
    ids = [np.arange(n, dtype=np.int32) for n in (3, 4, 4, 2)]
    lengths = np.array([3, 4, 4, 2])
    whole = np.array([3, 9, 2])
    tokens = Tokens(ids, lengths, Truncation(4, 3, 0, 14, 0), whole, np.array([0, 1, 3, 4]), "windows")
    first = tokens.first(2)
    assert (len(first), first.rows) == (2, 3)
    assert first.whole.tolist() == [3, 9]
    assert first.truncation == Truncation(4, 2, 0, 12, 0)
    cut = Tokens(ids[:3], np.array([3, 4, 4]), Truncation(4, 3, 1, 14, 3), np.array([3, 7, 4])).first(2)
    assert cut.truncation == Truncation(4, 2, 1, 10, 3)


def test_labels_in_lists_are_added_as_lists(tmp_path):
    sets = [["Fees"], ["Card", "Fees"], ["Card"], []]
    for name, words in (("train", texts(80)[:60]), ("more", texts(80)[60:])):
        frame = pl.DataFrame(
            {"text": words, "topics": [sets[i % 4] for i in range(len(words))]},
            schema={"text": pl.String, "topics": pl.List(pl.String)},
        )
        frame.write_parquet(tmp_path / f"{name}.parquet")
    config = {
        "train": str(tmp_path / "train.parquet"), "add": str(tmp_path / "more.parquet"), "label": "topics",
        "problem_type": "multi_label_classification",
    }  # fmt: skip
    data = load_data(make_config(config))
    part = data.parts["train"]
    assert data.additions["added"] == 20
    added = dict(zip(part.texts[-20:], data.labels.decode_sets(part.y[-20:]), strict=True))
    assert added[texts(80)[61]] == ("Card", "Fees")


def test_spellings_that_are_classes_of_their_own_stay_so(tmp_path):
    rows = [(text, ("Fee", "fee", "Card")[i % 3]) for i, text in enumerate(texts(60))]
    pl.DataFrame(rows, schema=["text", "label"], orient="row").write_csv(tmp_path / "train.csv")
    more = pl.DataFrame({"text": ["one quite new", "two very new"], "label": ["Fee", "fee"]})
    more.write_csv(tmp_path / "more.csv")
    config = {
        "train": str(tmp_path / "train.csv"), "add": str(tmp_path / "more.csv"),
        "merge_label_variants": False,
    }  # fmt: skip
    data = load_data(make_config(config))
    part = data.parts["train"]
    assert [data.labels.names[k] for k in part.y[-2:]] == ["Fee", "fee"]


def test_test_rows_like_validation_rows_are_told_of(tmp_path, train):
    listener = Listener()
    test = tmp_path / "test.csv"
    pl.read_csv(train).write_csv(test)
    data = load_data(make_config({"train": str(train), "test": str(test)}), listener)
    assert data.overlap == 60
    assert any("60 rows of" in said and "near-duplicates" in said for said in listener.said)


def spreadsheet(path, rows):
    pl.DataFrame(rows, schema=["text", "label"], orient="row").write_csv(path)
    return str(path)


def test_spellings_of_a_new_label_are_one_class(train, tmp_path):
    first = [("one quite new", "Crypto fraud"), ("two very new", "crypto fraud"), ("three so new", "Card")]
    second = [("four as new", "Crypto  Fraud"), ("five most new", "Crypto fraud")]
    files = [spreadsheet(tmp_path / "a.csv", first), spreadsheet(tmp_path / "b.csv", second)]
    listener = Listener()
    data = load_data(make_config({"train": str(train), "add": files}), listener)
    assert data.labels.names == tuple(sorted([*LABELS, "Crypto fraud"]))
    added = [data.labels.names[k] for k in data.parts["train"].y[-5:]]
    assert added == ["Crypto fraud", "Crypto fraud", "Card", "Crypto fraud", "Crypto fraud"]
    assert data.labels.aliases == {"crypto fraud": "Crypto fraud", "Crypto  Fraud": "Crypto fraud"}
    config = {"train": str(train), "add": files, "merge_label_variants": False}
    assert len(load_data(make_config(config)).labels.names) == 6


def test_spellings_in_sets_of_new_labels_are_one_class(tmp_path):
    rows = [(text, ";".join({LABELS[i % 3], LABELS[i % 2]})) for i, text in enumerate(texts(60))]
    path = spreadsheet(tmp_path / "train.csv", rows)
    more = spreadsheet(tmp_path / "more.csv", [("a new text", "Crypto;crypto;Card"), ("another", "Crypto")])
    data, _ = load(path, more, label_separator=";")
    assert data.labels.decode_sets(data.parts["train"].y[-2:]) == [("Card", "Crypto"), ("Crypto",)]


def test_a_new_label_of_a_held_out_text_alone_is_no_class(train, tmp_path):
    held_out = plain(train).parts["validation"].texts[0]
    rows = [(held_out, "Crypto scam"), ("one quite new", "Phishing")]
    data, said = load(train, spreadsheet(tmp_path / "more.csv", rows))
    assert data.labels.names == tuple(sorted([*LABELS, "Phishing"]))
    assert (np.bincount(data.parts["train"].y, minlength=4) > 0).all()
    assert data.additions["like_held_out"] == 1
    assert "1 labels left out of which no added text is trained on" in said
    assert "'Crypto scam'" in said


def test_a_new_label_of_a_text_of_the_test_file_alone_is_no_class(train, tmp_path):
    test = spreadsheet(tmp_path / "test.csv", [("a text of the test file that is long", "Card")])
    more = spreadsheet(tmp_path / "more.csv", [("a text of the test file that is long", "Crypto scam")])
    data, _ = load(train, more, test=test)
    assert data.labels.names == tuple(LABELS)


def test_a_test_file_may_have_the_new_labels(train, tmp_path):
    test = spreadsheet(tmp_path / "test.csv", [("a text of the test file that is long", "Crypto scam")])
    more = spreadsheet(tmp_path / "more.csv", [("quite another text", "Crypto scam")])
    data, _ = load(train, more, test=test)
    assert [data.labels.names[k] for k in data.parts["test"].y] == ["Crypto scam"]


def test_a_new_label_that_a_later_file_overrules_is_no_class(train, tmp_path):
    first = spreadsheet(tmp_path / "a.csv", [("one quite new", "Crypto scam")])
    second = spreadsheet(tmp_path / "b.csv", [("one quite new", "Card")])
    listener = Listener()
    data = load_data(make_config({"train": str(train), "add": [first, second]}), listener)
    assert data.labels.names == tuple(LABELS)
    assert data.additions["added"] == 1
    assert "'Crypto scam'" in " ".join(listener.said)


def test_the_later_file_has_the_last_word_whatever_blanks_are_around_a_text(train, tmp_path):
    decide_all(tmp_path / "a.db", {"  one quite new ": "Loan", "two very new": "Loan"})
    second = spreadsheet(tmp_path / "b.csv", [("one quite new", "Card")])
    data = load_data(make_config({"train": str(train), "add": [str(tmp_path / "a.db"), second]}))
    part = data.parts["train"]
    assert part.texts[-2:] == ["one quite new", "two very new"]
    assert [data.labels.names[k] for k in part.y[-2:]] == ["Card", "Loan"]
    assert (data.additions["decisions"], data.additions["added"]) == (2, 2)
