"""Scores above the label: what labels imply, what is scored, and what right labels would give."""

import json

import numpy as np
import polars as pl
import pytest

from snugtune.config import MULTI_LABEL, make_config
from snugtune.data.dataset import load_data
from snugtune.errors import ConfigError, UserInputError
from snugtune.evaluate.levels import Level, all_level_scores, level_scores, levels_of


def test_a_label_implies_what_most_of_its_rows_have():
    y = np.array([0, 0, 0, 1, 1, 2, -1])
    cells = {"product": ["Card", "Card", "Loan", "Loan", "Card", "", "Card"]}
    (level,) = levels_of(y, cells, 4)
    assert level == Level("product", ("Card", "Card", "", ""))


def test_levels_are_scored_on_rows_whose_value_some_label_implies():
    level = Level("product", ("Card", "Card", "Loan", ""))
    y_true = np.array([0, 1, 2, 0, -1, 0, 2])
    y_pred = np.array([1, 0, 0, 0, 2, 0, 3])
    cells = ["Card", "Card", "Loan", "", "Loan", "Unheard of", "Loan"]
    found = level_scores(level, y_true, y_pred, cells)
    json.dumps(found, allow_nan=False)
    # Labels mistaken for another of the same product are right here; that of no product is wrong.
    assert (found["rows"], found["values"]) == (5, 2)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["ceiling"] == 1.0
    assert found["interval"][0] < 3 / 5 < found["interval"][1]


def test_the_ceiling_is_what_right_labels_give():
    level = Level("product", ("Card", "Loan"))
    y = np.array([0, 0, 1, 1])
    found = level_scores(level, y, y, ["Card", "Loan", "Loan", "Loan"])
    assert found["accuracy"] == found["ceiling"] == 0.75


def test_columns_that_are_not_there_are_left_out():
    levels = [Level("product", ("Card",)), Level("issue", ("Lost",))]
    y = np.zeros(2, np.int64)
    found = all_level_scores(levels, y, y, {"issue": ["Lost", "Lost"]})
    assert [one["column"] for one in found] == ["issue"]
    assert all_level_scores(levels, y, y, {"issue": ["", ""]}) == []


@pytest.fixture
def table(tmp_path):
    topics = [("Card", "Lost"), ("Card", "Fees"), ("Loan", "Rate"), ("", "Other")]
    rows = [(f"text {chr(97 + i % 26)}{chr(97 + i // 26)} words", *topics[i % 4]) for i in range(120)]
    path = tmp_path / "t.csv"
    pl.DataFrame(rows, schema=["text", "product", "issue"], orient="row").write_csv(path)
    return path


def test_cells_follow_their_rows_into_the_parts(table, tmp_path):
    test = tmp_path / "test.csv"
    pl.DataFrame({"text": ["a new text"], "issue": ["Lost"]}).write_csv(test)
    settings = {"train": str(table), "text": ["text"], "label": "issue", "label_levels": ["product"]}
    data = load_data(make_config(settings))
    expected = {"Lost": "Card", "Fees": "Card", "Rate": "Loan", "Other": ""}
    for part in data.parts.values():
        names = [data.labels.names[k] for k in part.y]
        assert part.levels["product"] == [expected[name] for name in names]
    with_test = load_data(make_config({**settings, "test": str(test)}))
    assert with_test.parts["test"].levels == {}


def test_a_level_that_is_no_column_is_refused(table):
    settings = {"train": str(table), "text": ["text"], "label": "issue", "label_levels": ["Produkt"]}
    with pytest.raises(UserInputError, match="no column 'Produkt'; did you mean 'product'"):
        load_data(make_config(settings))


def test_levels_are_for_one_label_a_text():
    with pytest.raises(ConfigError, match="label_levels"):
        make_config({"train": "t", "problem_type": MULTI_LABEL, "label_levels": ["a"]})
