import polars as pl
import pytest

from snugtune.data.columns import choose_columns, join_texts
from snugtune.errors import UserInputError

CFPB = pl.DataFrame(
    {
        "Product": ["Mortgage", "Mortgage", "Debt collection", "Mortgage"],
        "Issue": ["a", "b", "c", "a"],
        "Consumer complaint narrative": ["long text", "other", "third", "fourth"],
    }
)


def test_the_cfpb_text_column_is_known():
    columns = choose_columns(CFPB, source="x.csv", text=None, label="Issue")
    assert columns.text == ("Consumer complaint narrative",)


def test_an_ambiguous_label_lists_the_candidates():
    wide = pl.concat([CFPB] * 5)
    with pytest.raises(UserInputError, match="--label; candidates: 'Product', 'Issue'"):
        choose_columns(wide, source="x.csv", text=None, label=None)


def test_known_names_are_found_whatever_their_case():
    frame = pl.DataFrame({"Text": ["a"], "CATEGORY": ["b"], "id": ["1"]})
    columns = choose_columns(frame, source="x", text=None, label=None)
    assert (columns.text, columns.label) == (("Text",), "CATEGORY")


def test_the_one_long_column_is_the_text():
    frame = pl.DataFrame({"words": ["w" * 100, "v" * 90], "kind": ["a", "b"]})
    assert choose_columns(frame, source="x", text=None, label="kind").text == ("words",)


def test_a_missing_column_names_the_closest():
    with pytest.raises(UserInputError, match="Did you mean 'Issue'"):
        choose_columns(CFPB, source="x.csv", text=None, label="Isue")


def test_several_texts_are_joined_with_their_names():
    frame = pl.DataFrame({"a": ["1", None], "b": ["2", "3"]})
    assert join_texts(frame, ["a", "b"]) == ["a: 1\nb: 2", "b: 3"]
    assert join_texts(frame, ["a"]) == ["1", ""]
