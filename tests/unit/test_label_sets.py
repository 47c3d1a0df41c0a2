"""Texts with several labels: read from cells, lists and columns, cleaned, and written back."""

import json

import polars as pl
import pytest

from snugtune.config import MULTI_LABEL, make_config
from snugtune.data.columns import Columns, choose_columns
from snugtune.data.dataset import load_data, load_usable
from snugtune.data.label_sets import (
    clean_label_sets,
    join_label_sets,
    read_label_sets,
    separator_for,
    separator_hint,
    split_cell,
)
from snugtune.data.labels import CleaningPolicy, LabelSet
from snugtune.errors import ConfigError, UserInputError
from snugtune.progress import Observer
from snugtune.train.survey import survey


def read(values, label="labels", separator=None, **more):
    frame = pl.DataFrame(values)
    label = label if isinstance(label, str) else tuple(label)
    return read_label_sets(frame, Columns(("text",), label), separator, source="t.csv", **more)


def test_a_cell_is_split_and_stripped_and_each_label_taken_once():
    cells = ["Fees; Card ;Fees", "", None, " ; ", "Card"]
    assert read({"labels": cells}, separator=";") == [("Fees", "Card"), None, None, None, ("Card",)]


def test_a_line_break_can_be_named_as_shells_hand_it_over():
    assert split_cell("a\nb", "\\n") == ("a", "b")


def test_lists_need_no_separator_and_an_empty_one_says_none_applies():
    assert read({"labels": [["a", "b", None], [], None]}) == [("a", "b"), (), None]


@pytest.mark.parametrize(
    "columns",
    [
        {"a": ["yes", "No", None], "b": ["X", "", " "]},
        {"a": [True, False, None], "b": [True, None, None]},
        {"a": [1, 0, None], "b": [1, 0, None]},
        {"a": [1.0, 0.0, None], "b": ["1", "-", ""]},
    ],
)
def test_columns_say_yes_or_no_and_a_blank_row_is_unlabelled(columns):
    assert read(columns, label=["a", "b"]) == [("a", "b"), (), None]


def test_a_cell_that_says_neither_yes_nor_no_is_refused_with_its_row():
    with pytest.raises(UserInputError, match=r"'a' of t.csv, row 3 says 'maybe'"):
        read({"a": ["yes", "maybe"], "b": ["no", "no"]}, label=["a", "b"], row_of=lambda i: i + 2)


def test_one_column_without_a_separator_is_refused():
    with pytest.raises(UserInputError, match="--label-separator"):
        read({"labels": ["a;b"]})


FRAME = pl.DataFrame({"text": ["long enough text"], "a": ["1"], "b": ["0"], "x,y": ["1"]})


@pytest.mark.parametrize(
    ("label", "expected"),
    [("a,b", ("a", "b")), (("a", "b"), ("a", "b")), ("x,y", "x,y"), (("a", "x,y"), ("a", "x,y")), ("a", "a")],
)
def test_several_label_columns_are_named_by_commas_or_one_by_one(label, expected):
    assert choose_columns(FRAME, source="t", text=["text"], label=label, several=True).label == expected


def test_several_label_columns_need_multi_label():
    with pytest.raises(UserInputError, match="add --multi-label"):
        choose_columns(FRAME, source="t", text=["text"], label="a,b")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"label": ["a", "b"]}, "--multi-label"),
        ({"label_separator": ";", "problem_type": "single_label_classification"}, "leave one of the two out"),
        ({"label_separator": ""}, "label_separator"),
        ({"label_separator": ";", "corrections": "c.xlsx"}, "corrections"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        make_config({"train": "t", **settings})


def test_a_separator_means_several_labels_and_micro_f1():
    config = make_config({"train": "t", "label_separator": ";"})
    assert (config.problem_type, config.metric) == (MULTI_LABEL, "f1_micro")
    assert make_config({"train": "t", "label_separator": ";", "metric": "accuracy"}).metric == "accuracy"


def test_combinations_are_hinted_at():
    hint = separator_hint(["a;b", "b;c", "a;c", "a", "b", "a;b;c"], "Topics")
    assert "6 different cells of column 'Topics' are made of 3 labels" in hint
    assert "--label-separator ';'" in hint


@pytest.mark.parametrize(
    "cells",
    [
        # Names with commas of their own only become more.
        ["Money transfer, virtual currency", "Loan modification, foreclosure", "Mortgage", "Mortgage"],
        ["a", "b", "c"],
        ["a;b", *["a", "b", "c"] * 100],
        [],
    ],
)
def test_names_with_signs_in_them_are_not(cells):
    assert separator_hint(cells, "Topics") is None


def test_the_separator_for_writing_is_in_no_name():
    assert separator_for(["a", "b"], None) == ";"
    assert separator_for(["a;b", "c|d"], None) == ","
    assert separator_for(["a;b"], "|") == "|"


def clean(rows, **policy):
    texts, sets = zip(*rows, strict=True)
    return clean_label_sets(texts, sets, CleaningPolicy(**policy), source="t.csv")


def test_spellings_duplicates_and_conflicts_go_by_whole_sets():
    cleaned = clean(
        [
            ("one", ("Fees", "card")), ("one", ("Card", "Fees")), ("one", ("Card",)), ("two", ("Card",)),
            ("three", ()), ("", ("Card",)), ("four", None),
        ]
    )  # fmt: skip
    report = cleaned.report
    assert cleaned.label_sets == [("Fees", "Card"), ("Card",), ("Card",), ()]
    assert report.merged_labels == {"Card": ["card"]}
    assert (report.exact_duplicates, report.conflicting_rows) == (1, 3)
    assert (report.empty_texts, report.blank_labels, report.classes) == (1, 1, 2)


def test_rare_labels_go_and_rows_that_had_no_other():
    rows = [(f"text {i}", ("a", "b")) for i in range(4)] + [
        ("x", ("a", "rare")),
        ("y", ("rare2",)),
        ("z", ()),
    ]
    cleaned = clean(rows, min_class_count=2)
    assert cleaned.label_sets == [("a", "b")] * 4 + [("a",), ()]
    assert cleaned.report.dropped_rare_rows == 1


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("", ("a",)), ("x", None)], "no row with both a text and labels"),
        ([("x", ("a",)), ("y", ("a",))], "one label"),
        ([("x", ()), ("y", ())], "no label"),
        ([(f"{i}", (f"{i}", f"b{i}")) for i in range(9)], "too few to learn from"),
    ],
)
def test_tables_without_label_sets_to_learn_are_refused(rows, words):
    with pytest.raises(UserInputError, match=words):
        clean(rows)


def test_encoding_marks_rows_of_unseen_labels_only():
    labels = LabelSet(("a", "b"), {"A": "a"}, ";")
    y, unseen = labels.encode_given([("A", "b"), (), ("new",), ("a", "new")])
    assert y.tolist() == [[1, 1], [0, 0], [-1, -1], [1, 0]]
    assert unseen == {"new": 2}
    assert labels.decode_sets(y) == [("a", "b"), (), (), ("a",)]


def test_cells_are_written_so_that_they_read_back():
    sets = [("a b", "c"), (), ("d",)]
    for separator in (";", "|", "\n"):
        cells = join_label_sets(sets, separator)
        assert [split_cell(cell, separator) for cell in cells] == sets


class Listener(Observer):
    def __init__(self):
        self.said = []

    def say(self, sentence):
        self.said.append(sentence)


@pytest.fixture
def table(tmp_path):
    words = ["lost", "stolen", "broken", "late", "early", "wrong"]
    cells = ["Card;Fees", "Card", "Fees;Loan", ""]
    texts = [f"{words[i % 6]} number{chr(97 + i % 26)}{chr(97 + i // 26)} card" for i in range(120)]
    path = tmp_path / "train.csv"
    pl.DataFrame({"text": texts, "topics": [cells[i % 4] for i in range(120)]}).write_csv(path)
    return path


def test_a_table_of_cells_becomes_parts_of_indicators(table):
    listener = Listener()
    config = make_config({"train": str(table), "label": "topics", "label_separator": ";"})
    data = load_data(config, listener)
    assert data.labels == LabelSet(("Card", "Fees", "Loan"), {}, ";")
    assert sum(map(len, data.parts.values())) == 90
    for part in data.parts.values():
        assert part.y.shape == (len(part), 3)
        assert part.y.any(axis=0).all()
    said = " ".join(listener.said)
    assert "1.67 labels a text on average, at most 2." in said
    assert "30 rows without a label left out" in said
    assert survey(config).labels == 3


def test_the_same_table_taken_as_one_label_gets_a_hint(table, tmp_path):
    frame = pl.read_csv(table)
    cells = ["Card;Fees", "Card", "Fees;Loan", "Loan;Card", "Fees", "Card;Fees;Loan"]
    frame = frame.with_columns(topics=pl.Series([cells[i % 6] for i in range(120)]))
    frame.write_csv(tmp_path / "more.csv")
    listener = Listener()
    data = load_data(make_config({"train": str(tmp_path / "more.csv"), "label": "topics"}), listener)
    assert len(data.labels.names) == 6
    assert any(sentence.startswith("Hint:") for sentence in listener.said)


def test_columns_become_labels_and_one_that_never_says_yes_is_left_out(table, tmp_path):
    frame = pl.read_csv(table).with_columns(
        Card=pl.Series(["x", None, None, None] * 30), Fees=pl.Series(["1", "no", "0", "yes"] * 30),
        Other=pl.Series(["no"] * 120),
    )  # fmt: skip
    frame.write_csv(tmp_path / "wide.csv")
    listener = Listener()
    data = load_data(
        make_config({"train": str(tmp_path / "wide.csv"), "text": ["text"], "label": "Card,Fees,Other",
                     "problem_type": MULTI_LABEL}), listener,
    )  # fmt: skip
    assert data.labels.names == ("Card", "Fees")
    assert data.columns.label == ("Card", "Fees", "Other")
    assert (data.table.y.sum(axis=1) == 0).sum() == 60
    said = " ".join(listener.said)
    assert "60 texts carry none" in said
    assert "No row says yes in 'Other': left out." in said


def test_a_test_file_is_read_the_same_way(table, tmp_path):
    test = tmp_path / "test.csv"
    pl.DataFrame(
        {"text": ["lost card again", "x y z", "no labels"], "topics": ["Fees;New", "Old", ""]}
    ).write_csv(test)
    listener = Listener()
    data = load_data(
        make_config({"train": str(table), "test": str(test), "label": "topics", "label_separator": ";"}),
        listener,
    )
    assert data.parts["test"].y.tolist() == [[0, 1, 0], [-1, -1, -1]]
    assert "2 labels unseen in training" in " ".join(listener.said)


def test_lists_of_numbers_are_labels_of_the_same_names_in_every_format(tmp_path):
    lists = [[1, 2] if i % 2 else [3, None] for i in range(40)]
    texts = [f"word{chr(97 + i % 26)} thing{chr(97 + i // 26)} number" for i in range(40)]
    pl.DataFrame({"text": texts, "label": lists}).write_parquet(tmp_path / "a.parquet")
    floats = [[None if one is None else float(one) for one in of] for of in lists]
    pl.DataFrame({"text": texts, "label": floats}).write_parquet(tmp_path / "b.parquet")
    rows = [{"text": text, "label": of} for text, of in zip(texts, lists, strict=True)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("a.parquet", "b.parquet", "c.jsonl"):
        for separator in (None, ","):
            config = {"train": str(tmp_path / name), "problem_type": "multi_label_classification"}
            usable = load_usable(make_config(config | {"label_separator": separator}))
            assert usable.labels.names == ("1", "2", "3")
            assert usable.labels.decode_sets(usable.y[:2]) == [("3",), ("1", "2")]
