import polars as pl
import pytest

from snugtune.data.columns import Columns, choose_columns, join_texts
from snugtune.errors import UserInputError

LONG = [
    "I paid the bill twice and nobody answers",
    "The card never came, I called them",
    "Why",
    "No reply at all",
]


def choose(columns, text=None, label=None, need_label=True):
    frame = columns if isinstance(columns, pl.DataFrame) else pl.DataFrame(columns)
    return choose_columns(frame, source="a.csv", text=text, label=label, need_label=need_label)


def cfpb(text="Consumer complaint narrative"):
    few = ["a", "b", "a", "b"]
    names = ["Product", "Sub-product", "Issue", "Sub-issue", "Tags"]
    return {"Date received": [f"2024-01-0{i}" for i in range(4)], **dict.fromkeys(names, few), text: LONG}


def test_named_columns_are_taken_in_their_order():
    columns = {"a": ["x"], "b": ["y"], "c": [1]}
    assert choose(columns, text=["b", "a", "b"], label="c") == Columns(("b", "a"), "c")


def test_a_missing_column_is_met_with_the_closest_and_the_list():
    meant = r"no column 'Narative'; did you mean 'narrative'\? It has 'narrative', 'z'"
    with pytest.raises(UserInputError, match=meant):
        choose({"narrative": ["x"], "z": ["y"]}, text=["Narative"], label="z")
    with pytest.raises(UserInputError, match=r"no column 'Issue'\. It has 'text', 'z'"):
        choose({"text": ["x"], "z": ["y"]}, label="Issue")


def test_the_list_of_columns_is_cut():
    with pytest.raises(UserInputError, match="'c39' and 10 more"):
        choose({f"c{i}": ["x"] for i in range(50)}, text=["nothing"])


def test_a_column_cannot_be_text_and_label():
    with pytest.raises(UserInputError, match="both text and label"):
        choose({"a": ["x"], "b": ["y"]}, text=["a", "b"], label="b")


def test_nested_columns_are_refused():
    with pytest.raises(UserInputError, match="holds lists or structures"):
        choose({"a": [["x"]], "b": ["y"]}, text=["a"], label="b")


@pytest.mark.parametrize("narrative", ["Consumer complaint narrative", "complaint_what_happened"])
def test_a_cfpb_export_has_its_text_found_and_its_label_asked_for(narrative):
    assert choose(cfpb(narrative), label="Issue") == Columns((narrative,), "Issue")
    candidates = "--label: 'Product', 'Sub-product', 'Issue', 'Sub-issue', 'Tags'"
    with pytest.raises(UserInputError, match=candidates):
        choose(cfpb(narrative))


@pytest.mark.parametrize(("text", "label"), [("Text", "LABEL"), ("sentence", "category"), ("Body", "Intent")])
def test_known_names_are_found_in_any_case(text, label):
    assert choose({"id": LONG, text: ["a", "b", "c", "d"], label: [1, 2, 3, 4]}) == Columns((text,), label)


def test_by_far_the_longest_strings_are_the_text():
    columns = {"q": LONG, "n": [1, 2, 3, 4], "kind": ["a", "b", "a", "b"], "id": ["k1", "k2", "k3", "k4"]}
    assert choose(columns) == Columns(("q",), "kind")


def test_a_sparse_narrative_is_still_the_longest():
    columns = {"q": [LONG[0], None, None, None], "kind": ["aaaaaaaa", "b", "aaaaaaaa", "b"]}
    assert choose(columns) == Columns(("q",), "kind")


def test_two_long_columns_are_ambiguous():
    with pytest.raises(UserInputError, match="name it with --text: 'p', 'q', 'kind'"):
        choose({"p": LONG, "q": LONG, "kind": ["a", "b", "a", "b"]})


def test_a_known_label_is_not_taken_for_the_text():
    assert choose({"x": ["short"] * 2, "category": ["a very long name", "b"]}) == Columns(("x",), "category")


def test_a_label_repeats_and_varies():
    columns = {
        "q": LONG,
        "constant": ["a"] * 4,
        "unique": ["a", "b", "c", "d"],
        "blank": ["a", "", " ", None],
    }
    with pytest.raises(UserInputError, match="no column that looks like a label"):
        choose(columns)


def test_without_need_of_a_label_none_is_sought():
    assert choose(cfpb(), need_label=False) == Columns(("Consumer complaint narrative",), None)
    assert choose(cfpb(), label="Issue", need_label=False).label == "Issue"


def test_a_table_without_strings_has_no_text():
    with pytest.raises(UserInputError, match="no column of texts"):
        choose({"a": [1, 2]}, need_label=False)


def test_one_text_column_is_given_as_it_is():
    assert join_texts(pl.DataFrame({"a": ["x ", None, ""]}), ["a"]) == ["x ", "", ""]
    assert join_texts(pl.DataFrame({"a": [1, None]}), ["a"]) == ["1", ""]


def test_several_are_joined_by_name_without_the_empty_ones():
    frame = pl.DataFrame({"title": ["t", None, " "], "body": ["b\nc", "d", None], "n": [1, 2, None]})
    assert join_texts(frame, ["body", "title", "n"]) == ["body: b\nc\ntitle: t\nn: 1", "body: d\nn: 2", ""]
