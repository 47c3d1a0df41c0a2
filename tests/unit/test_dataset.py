"""From files to split data: what is told, what is refused, how rows are numbered."""

import numpy as np
import openpyxl
import polars as pl
import pytest

from snugtune.config import make_config
from snugtune.data.dataset import load_data, load_usable, overlapping_rows
from snugtune.data.readers.text import encoding_beside
from snugtune.errors import UserInputError
from snugtune.progress import Observer


class Listener(Observer):
    def __init__(self):
        self.said = []

    def say(self, sentence):
        self.said.append(sentence)


def load(train, **settings):
    listener = Listener()
    data = load_data(make_config({"train": str(train), **settings}), listener)
    return data, " ".join(listener.said)


def write(path, rows):
    path.write_text("\n".join(["text,label", *(f"{text},{label}" for text, label in rows)]) + "\n")
    return path


@pytest.fixture
def small(tmp_path):
    words = ["lost", "stolen", "broken", "late", "early", "wrong"]
    rows = [
        (f"{words[i % 6]} number{chr(97 + i % 26)}{chr(97 + i // 26)} card", "ab"[i % 2]) for i in range(80)
    ]
    return write(tmp_path / "train.csv", rows)


def test_parts_are_disjoint_and_whole(small):
    data, said = load(small)
    rows = [row for part in data.parts.values() for row in part.rows.tolist()]
    assert sorted(rows) == list(range(80))
    assert data.overlap is None
    assert "80 of 80 rows kept, 2 classes." in said


def test_file_rows_are_those_of_the_spreadsheet(small):
    data, _ = load(small)
    frame = pl.read_csv(small)
    part = data.parts["train"]
    assert frame["text"][int(part.rows[0])] == part.texts[0]
    lines = small.read_text().splitlines()
    row = int(part.rows[5]) + data.first_row
    assert lines[row - 1].startswith(part.texts[5])


def test_blank_lines_do_not_shift_the_rows_that_are_told(small, tmp_path):
    lines = small.read_text().splitlines()
    lines[1:1] = ["", ""]
    lines[20:20] = [""]
    small.write_text("\n".join(lines))
    data, _ = load(small, label_levels=["label"])
    for name, part in data.parts.items():
        for row, text in zip(data.file_rows(name, np.arange(len(part))), part.texts, strict=True):
            assert lines[row - 1].startswith(text + ",")
        assert part.levels["label"] == [data.labels.names[k] for k in part.y]


def test_a_test_file_is_taken_as_it_is(small, tmp_path):
    rows = [("lost card again today", "a"), ("broken thing", "new"), ("", "a"), ("late reply", "")]
    data, said = load(small, test=str(write(tmp_path / "test.csv", rows)))
    assert data.parts["test"].rows.tolist() == [0, 1]
    assert data.parts["test"].y.tolist() == [0, -1]
    assert "2 rows of" in said
    assert "1 labels unseen in training" in said
    assert len(data.parts["train"]) + len(data.parts["validation"]) == 80


def test_a_test_file_without_a_known_label_is_refused(small, tmp_path):
    with pytest.raises(UserInputError, match=r"No label of the test file .* occurs in"):
        load(small, test=str(write(tmp_path / "test.csv", [("lost card", "z")])))


def test_training_texts_in_the_test_file_are_told(small, tmp_path):
    text, label = small.read_text().splitlines()[1].split(",")
    data, said = load(small, test=str(write(tmp_path / "test.csv", [(text, label), ("all new words", "a")])))
    assert data.overlap == 1
    assert f"1 rows of {tmp_path / 'test.csv'} are near-duplicates of rows of {small}" in said


def test_overlap_counts_test_rows_only():
    train = ["the bank lost my card on monday and never sent another", "a fee was charged twice"]
    test = [train[0].upper(), train[0] + " !", "something else entirely", "a fee was charged twice"]
    assert overlapping_rows(train, test) == 3


def test_too_few_rows_to_validate_on(tmp_path):
    rows = [("one text", "a"), ("another text", "a"), ("fourth one", "a"), ("third words", "b")]
    with pytest.raises(UserInputError, match="too few to hold some back"):
        load(write(tmp_path / "tiny.csv", rows), test_fraction=0, validation_fraction=0.001)


def test_near_duplicates_are_left_out_of_training_where_they_say_the_same(tmp_path):
    words = [f"word{chr(97 + i)}{chr(97 + j)}" for i in range(20) for j in range(3)]
    rows = [(" ".join(words[3 * (i % 20) : 3 * (i % 20) + 3] * 2) + f" {i}", "AB"[i % 2]) for i in range(200)]
    rows += [(rows[0][0] + " 999", "B"), ("quite another text here", "A")]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["text,label", *(f"{text},{label}" for text, label in rows)]))
    config = {"train": str(path), "validation_fraction": 0.2, "test_fraction": 0.2}
    kept = load_data(make_config(config))
    dropped = load_data(make_config({**config, "near_duplicates": "drop"}))
    before, after = kept.parts["train"], dropped.parts["train"]
    said = zip(_groups_of(kept, before), before.y.tolist(), strict=True)
    of_kept = dict(zip(before.rows.tolist(), said, strict=True))
    pairs = [of_kept[i] for i in after.rows.tolist()]
    assert len(set(pairs)) == len(pairs)  # one of each group and label
    assert set(pairs) == set(of_kept.values())  # and of each there is one
    assert len(after) < len(before)
    assert dropped.cleaning["near_duplicates_dropped"] == len(before) - len(after)
    for name in ("validation", "test"):
        assert dropped.parts[name].texts == kept.parts[name].texts


def _groups_of(data, part):
    place = {row: i for i, row in enumerate(data.table.rows.tolist())}
    return [int(data.table.groups[place[row]]) for row in part.rows.tolist()]


def said_of(book, path):
    book.save(path)
    listener = Listener()
    try:
        load_usable(make_config({"train": str(path), "text": ["text"], "label": "label"}), listener)
    except UserInputError as error:
        listener.said.append(str(error))
    return listener.said


def sheet_of(rows):
    book = openpyxl.Workbook()
    for row in [("id", "text", "label"), *rows]:
        book.active.append(row)
    return book, book.active


def test_labels_of_merged_cells_are_told(tmp_path):
    book, sheet = sheet_of([(i, f"text {i}", "AB"[i // 5 % 2] if i % 5 == 0 else None) for i in range(40)])
    for first in range(2, 42, 5):
        sheet.merge_cells(f"C{first}:C{first + 4}")
    sheet.merge_cells("E1:E40")
    sheet["B42"], sheet["C42"] = "without", None
    (told,) = [said for said in said_of(book, tmp_path / "a.xlsx") if "merged" in said]
    assert told.startswith("32 rows of")
    assert "have no label because its cell is merged" in told


@pytest.mark.parametrize("share", [3, 1])
def test_labels_of_formulas_never_calculated_are_told(tmp_path, share):
    rows = [(i, f"text {i}", '=IF(1,"A","B")' if i % share == 0 else "AB"[i % 2]) for i in range(30)]
    book, _ = sheet_of(rows)
    said = said_of(book, tmp_path / "a.xlsx")
    assert any(f"{30 // share} rows of" in one and "never calculated" in one for one in said)


def test_texts_of_formulas_never_calculated_are_told(tmp_path):
    book, _ = sheet_of([(i, f"text {i}" if i % 3 else "=A1&B1", "AB"[i % 2]) for i in range(30)])
    said = said_of(book, tmp_path / "a.xlsx")
    assert any("10 rows of" in one and "have no text because its cell holds a formula" in one for one in said)


def test_blank_cells_of_a_sheet_are_not_explained_away(tmp_path):
    book, sheet = sheet_of([(i, f"text {i}", "AB"[i % 2] if i % 3 else None) for i in range(30)])
    sheet["D2"] = "=1+1"
    said = said_of(book, tmp_path / "a.xlsx")
    assert not any("merged" in one or "calculated" in one for one in said)


WORDS = ["lost", "stolen", "broken", "late", "early", "wrong", "double", "never"]


def umlauts(path, codec, *, delimiter=";", rows=80, shift=0):
    """A CSV of two labels with an umlaut each."""
    texts = [f"{WORDS[i % 8]} {WORDS[i // 8 % 8]} über{chr(97 + i % 26)}{i + shift}" for i in range(rows)]
    lines = [f"{text};{('Gebühr', 'Kündigung')[i % 2]}" for i, text in enumerate(texts)]
    path.write_bytes("\n".join(["text;label", *lines]).replace(";", delimiter).encode(codec))
    return str(path)


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [";", ",", "\t"])
def test_a_test_file_may_have_an_encoding_and_a_delimiter_of_its_own(tmp_path, codec, delimiter):
    train = umlauts(tmp_path / "train.csv", "cp1252")
    test = umlauts(tmp_path / "test.csv", codec, delimiter=delimiter, rows=20, shift=900)
    data, said = load(train, test=test, encoding="cp1252", delimiter=";")
    assert data.labels.names == ("Gebühr", "Kündigung")
    assert data.parts["test"].y.tolist() == [0, 1] * 10
    assert "über" in data.parts["test"].texts[0]
    assert ("not as cp1252" in said) == (codec != "cp1252")


def test_a_test_file_of_seven_bits_is_read_as_was_said(tmp_path):
    train = umlauts(tmp_path / "train.csv", "utf-7")
    test = umlauts(tmp_path / "test.csv", "utf-7", rows=20, shift=900)
    data, said = load(train, test=test, encoding="utf-7")
    assert data.parts["test"].y.tolist() == [0, 1] * 10
    assert "utf-7" not in said


def test_a_test_file_in_utf_16_without_its_mark_is_read_as_was_said(tmp_path):
    train = umlauts(tmp_path / "train.csv", "utf-16-le")
    test = umlauts(tmp_path / "test.csv", "utf-16-le", rows=20, shift=900)
    data, _ = load(train, test=test, encoding="utf-16-le")
    assert data.parts["test"].y.tolist() == [0, 1] * 10


def test_a_file_cut_off_within_a_character_is_not_utf_8(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text\nüé".encode()[:-1])
    assert encoding_beside(path, "cp1252") == "cp1252"
    path.write_bytes("text\nüé".encode())
    assert encoding_beside(path, "cp1252") is None


def test_added_texts_in_the_encoding_of_the_training_table(tmp_path):
    train = umlauts(tmp_path / "train.csv", "cp1252")
    for codec in ("cp1252", "utf-8"):
        more = umlauts(tmp_path / "more.csv", codec, rows=2, shift=900)
        data, _ = load(train, add=more, encoding="cp1252")
        assert data.parts["train"].texts[-1].split()[-1].startswith("über")
        assert data.labels.names == ("Gebühr", "Kündigung")
