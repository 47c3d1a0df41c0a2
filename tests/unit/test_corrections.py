"""Corrected labels: applied by row and text, refused where either does not fit."""

import numpy as np
import polars as pl
import pytest

from snugtune.config import make_config
from snugtune.data.dataset import load_data, load_usable
from snugtune.data.form import EXCEL_CHARACTERS, cell_text
from snugtune.errors import UserInputError
from snugtune.progress import Observer


class Listener(Observer):
    def __init__(self):
        self.said = []

    def say(self, sentence):
        self.said.append(sentence)


@pytest.fixture
def train(tmp_path):
    rows = [(f"text number{chr(97 + i)}\nwith a second line", "ab"[i % 2]) for i in range(20)]
    rows += [("said twice", "a"), ("said twice", "a")]
    path = tmp_path / "train.csv"
    pl.DataFrame(rows, schema=["text", "label"], orient="row").write_csv(path)
    return path


def corrections(folder, rows, columns=("row", "text", "given_label", "corrected_label"), suffix=".xlsx"):
    path = folder / f"issues{suffix}"
    frame = pl.DataFrame(rows, schema=list(columns), orient="row")
    frame.write_excel(path) if suffix == ".xlsx" else frame.write_csv(path)
    return path


def load(train, file, function=load_usable):
    listener = Listener()
    config = make_config({"train": str(train), "corrections": str(file)})
    return function(config, listener), " ".join(listener.said)


@pytest.mark.parametrize("suffix", [".xlsx", ".csv"])
def test_corrections_reach_their_rows(train, tmp_path, suffix):
    rows = [
        (2, "text numbera\r\nwith a second line ", "a", "b"),
        (3, "text numberb with a second line", "b", None),
        (5, "text numberd with a second line", "b", "b"),
    ]
    table, said = load(train, corrections(tmp_path, rows, suffix=suffix))
    assert [table.labels.names[k] for k in table.y[:4]] == ["b", "b", "a", "b"]
    assert table.corrections == {
        "file": str(tmp_path / f"issues{suffix}"), "applied": 1, "unchanged": 1, "left_blank": 1
    }  # fmt: skip
    assert "1 labels corrected" in said


def test_rows_of_the_same_text_and_label_follow(train, tmp_path):
    table, _ = load(train, corrections(tmp_path, [(22, "said twice", "a", "b")]))
    twins = [k for k, text in zip(table.y, table.texts, strict=True) if text == "said twice"]
    assert [table.labels.names[k] for k in twins] == ["b"]
    assert table.corrections["applied"] == 2
    assert table.cleaning["conflicting_rows"] == 0


def test_rows_of_the_same_text_and_another_spelling_of_the_label_follow(tmp_path):
    """Cleaning merges the spellings, so an audit lists the first row alone."""
    rows = [("said twice", "Fee"), ("said twice", "fee "), *[(f"text {i}", "Fee") for i in range(9)]]
    rows += [(f"other {i}", "Rates") for i in range(9)]
    train = tmp_path / "train.csv"
    pl.DataFrame(rows, schema=["text", "label"], orient="row").write_csv(train)
    file = corrections(tmp_path, [(2, "said twice", "Fee", "Rates")])
    table, _ = load(train, file)
    assert [
        table.labels.names[k] for k, t in zip(table.y, table.texts, strict=True) if t == "said twice"
    ] == ["Rates"]
    config = make_config(
        {"train": str(train), "corrections": str(file), "merge_label_variants": False, "duplicates": "keep"}
    )
    table = load_usable(config, Listener())
    labels = [table.labels.names[k] for k, t in zip(table.y, table.texts, strict=True) if t == "said twice"]
    assert labels == ["Rates", "fee"]


def test_split_data_carry_what_was_applied(train, tmp_path):
    file = corrections(tmp_path, [(2, "text numbera with a second line", "a", "b")])
    data, _ = load(train, file, load_data)
    assert data.table.corrections["applied"] == 1
    assert data.labels.names == ("a", "b")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(3, "text numbera with a second line", "a", "b")], r"row 2 corrects row 3 of .* is another one"),
        ([(99, "text numbera", "a", "b")], r"there is no row '99' in .* \(its rows are 2 to 23\)"),
        ([(1, "text numbera", "a", "b")], "there is no row '1'"),
        ([(2, "text numbera with a second line", "a", "bb")], r"'bb' is none of .* \(did you mean 'b'\?\)"),
    ],
)
def test_what_does_not_fit_is_refused(train, tmp_path, rows, words):
    with pytest.raises(UserInputError, match=words):
        load(train, corrections(tmp_path, rows))


def test_rows_that_are_no_numbers_are_refused(train, tmp_path):
    with pytest.raises(UserInputError, match="there is no row 'two'"):
        load(train, corrections(tmp_path, [("two", "text numbera", "a", "b")], suffix=".csv"))


def test_another_kind_of_file_is_refused(train, tmp_path):
    with pytest.raises(UserInputError, match=r"no column 'row', so it is no file of corrections"):
        load(train, train)
    with pytest.raises(UserInputError, match="no column 'corrected_label'"):
        load(train, corrections(tmp_path, [(2, "x")], columns=("row", "text")))
    with pytest.raises(UserInputError, match="does not exist"):
        load(train, tmp_path / "none.xlsx")


def test_a_cell_keeps_what_excel_can_hold():
    assert cell_text("short") == "short"
    assert cell_text("x" * 40_000) == "x" * EXCEL_CHARACTERS
    clipped = cell_text("🙂" * 20_000)
    assert clipped == "🙂" * (EXCEL_CHARACTERS // 2)


def test_texts_longer_than_a_cell_are_still_recognised(tmp_path):
    long = "word " * 9_000
    path = tmp_path / "train.parquet"
    texts = [long, "b", "c", "d", "e", "f"]
    pl.DataFrame({"text": texts, "label": ["x", "y"] * 3}).write_parquet(path)
    file = corrections(tmp_path, [(1, cell_text(long), "x", "y")])
    table, _ = load(path, file)
    assert table.corrections["applied"] == 1


def test_corrections_reach_their_rows_below_blank_lines(tmp_path):
    lines = ["text,label", "", "", *(f"text number{chr(97 + i)},{'ab'[i % 2]}" for i in range(20))]
    lines[12:12] = [""]
    train = tmp_path / "train.csv"
    train.write_text("\n".join(lines))
    text, label = lines[20].split(",")
    other = "ab".replace(label, "")
    before, _ = load(train, corrections(tmp_path, [(21, text, label, None)]))
    place = before.texts.index(text)
    assert before.file_rows(np.array([place])) == [21]
    after, _ = load(train, corrections(tmp_path, [(21, text, label, other)]))
    assert after.labels.names[after.y[place]] == other
    for row in (2, 13, 25):
        with pytest.raises(UserInputError, match=rf"there is no row '{row}' in .* rows are 2 to 24"):
            load(train, corrections(tmp_path, [(row, text, label, other)]))
