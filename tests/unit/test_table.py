import builtins
import datetime as dt
import json
from zipfile import ZipFile

import numpy as np
import openpyxl
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snugtune.data.readers.delimited import csv_style, header_of
from snugtune.data.readers.workbook import sheet_names
from snugtune.data.table import iter_tables, read_table
from snugtune.errors import UserInputError

EXPECTED = {"text": ["a, b", "c\nd", "é"], "label": ["x", None, "y"]}


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def workbook(path, rows, **sheets):
    book = openpyxl.Workbook()
    book.active.title = "First"
    for name, content in {"First": rows, **sheets}.items():
        sheet = book[name] if name in book.sheetnames else book.create_sheet(name)
        for row in content:
            sheet.append(row)
    book.save(path)
    return path


def values(frame):
    return frame.to_dict(as_series=False)


# --- CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path, delimiter):
    text = 'text,label\n"a, b",x\n"c\nd",\n"é",y\n'.replace(",", delimiter).replace(f"a{delimiter} b", "a, b")
    table = read_table(put(tmp_path / "a.csv", text))
    assert values(table.frame) == EXPECTED
    assert (table.source, table.sheet, table.first_row) == (str(tmp_path / "a.csv"), None, 2)


def test_commas_in_the_cells_do_not_hide_the_semicolons(tmp_path):
    path = put(tmp_path / "a.csv", "text;price\na, b, c;1,5\nd, e, f;2,5\n")
    assert values(read_table(path).frame) == {"text": ["a, b, c", "d, e, f"], "price": ["1,5", "2,5"]}


def test_a_single_column_of_running_text_is_not_split(tmp_path):
    path = put(tmp_path / "a.txt", "text\n" + 'well, yes\nno\n"a\nb"\n' * 5)
    assert values(read_table(path).frame) == {"text": ["well, yes", "no", "a\nb"] * 5}
    mostly = put(tmp_path / "b.txt", "text\n" + "well, yes\n" * 6 + "no\n" * 3)
    assert values(read_table(mostly).frame) == {"text": ["well, yes"] * 6 + ["no"] * 3}


def test_a_title_line_over_a_csv_is_not_taken_for_its_header(tmp_path):
    path = put(tmp_path / "a.csv", "Report\n" + "text,label\n" + "a,b\n" * 20)
    with pytest.raises(UserInputError, match=r"row 2 \(line 2\) has 2 cells where the header has 1"):
        read_table(path)


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marked_encodings_and_line_ends(tmp_path, codec, end):
    path = put(tmp_path / "a.csv", end.join(["text,label", "é,x", ""]).encode(codec))
    assert values(read_table(path).frame) == {"text": ["é"], "label": ["x"]}


def test_an_encoding_can_be_named(tmp_path):
    path = put(tmp_path / "a.csv", "text,label\né“,x\n".encode("cp1252"))
    assert read_table(path, encoding="cp1252").frame["text"].to_list() == ["é“"]
    with pytest.raises(UserInputError, match="no encoding 'base64'"):
        read_table(path, encoding="base64")
    with pytest.raises(UserInputError, match="no encoding 'klingon'"):
        read_table(path, encoding="klingon")


@pytest.mark.parametrize("rows_before", [0, 3, 400_000])
def test_undecodable_bytes_are_located(tmp_path, rows_before):
    before = "text,kind\n" + "ü,x\n" * rows_before  # 10 + 5 n bytes: 2**20 falls within an ü
    path = put(tmp_path / "a.csv", before.encode() + b"caf\xe9,x\n")
    offset, line = len(before.encode()) + 3, rows_before + 2
    fault = rf"line {line}: byte 0xE9 at offset {offset} is not UTF-8; .*--encoding cp1252"
    with pytest.raises(UserInputError, match=fault):
        read_table(path)


def test_utf_16_without_its_mark_is_refused(tmp_path):
    path = put(tmp_path / "a.csv", "text,label\na,x\n".encode("utf-16-le"))
    with pytest.raises(UserInputError, match="NUL byte"):
        read_table(path)
    assert values(read_table(path, encoding="utf-16-le").frame) == {"text": ["a"], "label": ["x"]}


def test_cut_off_utf_16_is_refused(tmp_path):
    path = put(tmp_path / "a.csv", "text,label\na,x\n".encode("utf-16")[:-1])
    with pytest.raises(UserInputError, match="is not UTF-16"):
        read_table(path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("text,label\na,x\nb\n", r"row 3 \(line 3\) has 1 cells where the header has 2"),
        ('text,label\n"a\nb",x\na,b,c\n', r"row 3 \(line 4\) has 3 cells"),
        ('text,label\na,x\n"b,y\nc,z\n', r"row 3 \(line 3\) opens a quoted cell that is never closed"),
        ('text,label\n"a"b,x\n', r"row 2 \(line 2\) is not valid CSV"),
        ("text,label\na\0,x\n", "line 2 contains a NUL byte"),
        ("text,label,text\na,x,b\n", "more than one column named 'text'"),
        ("text,label\n", "header but no rows"),
        ("text,label\n\n\n", "header but no rows"),
        ("", "is empty"),
        ("\n \n"[:1], "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"PK\x03\x04rest of it", "rename it to .xlsx"),
        (b"PAR1rest of it", "rename it to .parquet"),
        (b"\x1f\x8brest of it", "unpack it first"),
    ],
)
def test_bad_csv_is_refused(tmp_path, content, fault):
    path = put(tmp_path / "a.csv", content)
    with pytest.raises(UserInputError, match=fault):
        read_table(path)
    with pytest.raises(UserInputError, match=fault):
        list(iter_tables(path))


def test_blank_lines_are_skipped_and_unnamed_columns_numbered(tmp_path):
    path = put(tmp_path / "a.csv", ", text \n\n1,a\n\n\n2,\n\n")
    assert values(read_table(path).frame) == {"column_1": ["1", "2"], "text": ["a", None]}


def test_blank_lines_count_as_rows_of_a_spreadsheet(tmp_path):
    path = put(tmp_path / "a.csv", '\n\nn,m\n\n\n1,"a\n\nb"\n\n2,b\n3,c\n\n')
    table = read_table(path)
    assert table.first_row == 4
    assert [table.row_of(i) for i in range(3)] == [6, 8, 9]
    assert [table.data_row(row) for row in range(1, 12)] == [None] * 5 + [0, None, 1, 2, None, None]
    assert table.places(np.arange(3)).tolist() == [2, 4, 5]
    put(path, "n,m\n\n1,2\n\n3\n")
    with pytest.raises(UserInputError, match=r"row 5 \(line 5\) has 1 cells"):
        read_table(path)


@pytest.mark.parametrize("rows", [1, 7])
@given(blank=st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_rows_and_their_numbers_agree(tmp_path_factory, rows, blank):
    lines = "n,m\n" + "".join("\n" * count + f"{i},x\n" for i, count in enumerate(blank))
    path = put(tmp_path_factory.mktemp("blank") / "a.csv", lines)
    table = read_table(path)
    numbers = [table.row_of(i) for i in range(len(blank))]
    spelled = lines.split("\n")
    assert [spelled[number - 1] for number in numbers] == [f"{i},x" for i in range(len(blank))]
    assert [table.data_row(number) for number in numbers] == list(range(len(blank)))
    assert sum(frame.height for frame in iter_tables(path, rows_per_batch=rows)) == len(blank)


@pytest.mark.parametrize("declared", ["sep=;", "SEP=;", '"sep=;"', "sep=|", "sep=\t"])
@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_line_that_tells_excel_the_delimiter_is_no_row(tmp_path, declared, codec):
    sign = declared.strip('"')[4:]
    content = f"{declared}\r\ntext;label\r\na, b;x\r\n".replace(";", sign)
    path = put(tmp_path / "a.csv", content.encode(codec))
    table = read_table(path)
    assert values(table.frame) == {"text": ["a, b"], "label": ["x"]}
    assert table.first_row == 2
    assert header_of(path) == ["text", "label"]
    assert (csv_style(path).delimiter, csv_style(path).is_declared) == (sign, True)
    assert read_table(path, delimiter=sign).frame.equals(table.frame)


def test_faults_below_the_line_that_tells_the_delimiter_are_located(tmp_path):
    path = put(tmp_path / "a.csv", "sep=;\ntext;label\na;x\nb\n")
    with pytest.raises(UserInputError, match=r"row 3 \(line 4\) has 1 cells"):
        read_table(path)
    for content in ("sep=;\n", "sep=;"):
        with pytest.raises(UserInputError, match="is empty"):
            read_table(put(path, content))
    assert read_table(put(path, "sep=;,b\n1,2\n")).frame.columns == ["sep=;", "b"]


def test_a_named_delimiter_is_used_and_checked(tmp_path):
    path = put(tmp_path / "a.csv", "a:b\n1:2\n")
    assert values(read_table(path, delimiter=":").frame) == {"a": ["1"], "b": ["2"]}
    tabs = put(tmp_path / "b.csv", "a\tb,c\n1\t2,3\n")
    assert read_table(tabs, delimiter="\\t").frame.columns == ["a", "b,c"]
    for wrong in ("::", "", '"'):
        with pytest.raises(UserInputError, match="must be one character"):
            read_table(path, delimiter=wrong)


def test_a_cell_longer_than_the_csv_module_allows(tmp_path):
    long = "word " * 60_000
    path = put(tmp_path / "a.csv", f'text,label\n"{long}",x\n')
    assert read_table(path).frame["text"].to_list() == [long]


# --- Excel


def test_a_workbook_with_titles_dates_and_blank_rows(tmp_path):
    rows = [
        ["Complaints of March"],
        [],
        ["text", "label", "when", "n", "ok", "at"],
        ["a", "x", dt.datetime(2024, 1, 2), 3, True, dt.time(3, 4)],
        [],
        ["b", None, dt.datetime(2024, 1, 2, 3, 4, 5), 2.5, False, None],
        ["#N/A", "y", dt.date(2024, 1, 3), 4.0, None, None],
    ]
    table = read_table(workbook(tmp_path / "a.xlsx", rows))
    assert values(table.frame) == {
        "text": ["a", None, "b", None],
        "label": ["x", None, None, "y"],
        "when": ["2024-01-02", None, "2024-01-02 03:04:05", "2024-01-03"],
        "n": ["3", None, "2.5", "4"],
        "ok": ["TRUE", None, "FALSE", None],
        "at": ["03:04:00", None, None, None],
    }
    assert (table.sheet, table.first_row) == ("First", 4)


def test_sheets_are_chosen_by_name(tmp_path):
    path = workbook(tmp_path / "a.xlsx", [["t"], ["a"]], Second=[["t"], ["b"]], Empty=[])
    assert read_table(path).frame["t"].to_list() == ["a"]
    assert read_table(path, sheet="Second").frame["t"].to_list() == ["b"]
    with pytest.raises(UserInputError, match=r"no sheet 'Third'; it has 'First', 'Second', 'Empty'"):
        read_table(path, sheet="Third")
    with pytest.raises(UserInputError, match="sheet 'Empty' is empty"):
        read_table(path, sheet="Empty")


def test_a_table_that_starts_in_another_column_and_a_stray_note(tmp_path):
    rows = [[None, "text", "label"], [None, "a", "x"], [None, "b", "y"]]
    assert values(read_table(workbook(tmp_path / "a.xlsx", rows)).frame) == {
        "text": ["a", "b"],
        "label": ["x", "y"],
    }
    rows += [[None, "c", "x"]] * 200 + [[None, "d", "y", "see me"]]
    with pytest.raises(UserInputError, match="row 204 has a value in column D, which has no name"):
        read_table(workbook(tmp_path / "b.xlsx", rows))


def test_a_wrong_size_recorded_by_the_writer_does_not_cut_the_table(tmp_path):
    path = workbook(tmp_path / "a.xlsx", [["text", "label"], ["a", "x"], ["b", "y"]])
    with ZipFile(path) as book, ZipFile(tmp_path / "b.xlsx", "w") as wrong:
        for name in book.namelist():
            content = book.read(name)
            if name.endswith("sheet1.xml"):
                assert b'ref="A1:B3"' in content
                content = content.replace(b'ref="A1:B3"', b'ref="A1"')
            wrong.writestr(name, content)
    assert values(read_table(tmp_path / "b.xlsx").frame) == {"text": ["a", "b"], "label": ["x", "y"]}


def test_a_hidden_first_sheet_is_read_only_if_it_is_named(tmp_path):
    path = workbook(tmp_path / "a.xlsx", [["t"], ["old"]], Second=[["t"], ["new"]])
    book = openpyxl.load_workbook(path)
    book["First"].sheet_state = "hidden"
    book.active = 1
    book.save(path)
    table = read_table(path)
    assert (table.sheet, table.frame["t"].to_list()) == ("Second", ["new"])
    assert read_table(path, sheet="First").frame["t"].to_list() == ["old"]
    assert sheet_names(path) == ["Second", "First"]
    book["Second"].sheet_state = "veryHidden"
    book.create_chartsheet("Chart").add_chart(openpyxl.chart.BarChart())
    book.save(path)
    assert read_table(path).sheet == "First"


FOUR = [["a b", "x", "yes", "no"], ["c d", "y", "no", "no"], ["e f", "x", "no", "yes"]] * 2


@pytest.mark.parametrize(
    ("above", "names"),
    [
        ([], ["text", "1", "2", "3"]),
        ([], ["text", "label", "2021", "2022"]),
        ([], ["text", "2024-01-01", "2024-02-01", "2024-03-01"]),
        ([["Report of March"], []], ["text", "1", "2", "3"]),
        ([["Bank", "Report", 2024]], ["id", "text", "label", "when"]),
        ([[1, 2, 3, 4]], ["id", "text", "label", "when"]),
    ],
)
def test_numbers_and_days_may_be_names_of_columns(tmp_path, above, names):
    heads = [int(n) if n.isdecimal() else dt.date.fromisoformat(n) if n[:1].isdecimal() else n for n in names]
    table = read_table(workbook(tmp_path / "a.xlsx", [*above, heads, *FOUR]))
    assert table.frame.columns == names
    assert table.frame.height == len(FOUR)
    assert table.first_row == len(above) + 2


@pytest.mark.parametrize(
    "above", [[["Complaints 2024"]], [["Complaints 2024"], []], [["Bank"], [], ["March"], []]]
)
@pytest.mark.parametrize("names", [["text"], ["narrative", "label"]])
def test_a_title_above_a_narrow_table_is_no_header(tmp_path, above, names):
    titles = [row * len(names) for row in above]
    table = read_table(workbook(tmp_path / "a.xlsx", [*titles, names, *[["word"] * len(names)] * 5]))
    assert table.frame.columns == names
    assert table.first_row == len(above) + 2


def test_a_usual_name_further_down_is_a_text(tmp_path):
    rows = [["text"], ["a"], ["question"], ["b"]]
    assert read_table(workbook(tmp_path / "a.xlsx", rows)).frame["text"].to_list() == ["a", "question", "b"]
    rows = [["beschwerde"], ["a"], ["b"], ["c"], ["question"], ["d"]]
    assert read_table(workbook(tmp_path / "b.xlsx", rows)).frame.columns == ["beschwerde"]


def test_escaped_carriage_returns_are_text(tmp_path):
    path = workbook(tmp_path / "a.xlsx", [["text", "n"], ["a_x000D_\nb", "=1+1"]])
    assert values(read_table(path).frame) == {"text": ["a\r\nb"], "n": [None]}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"text,label\na,x\n", "rename it to .csv"),
        (bytes.fromhex("D0CF11E0A1B11AE1") + b"\0" * 600, "old .xls format"),
        (
            bytes.fromhex("D0CF11E0A1B11AE1") + "EncryptedPackage".encode("utf-16-le"),
            "protected by a password",
        ),
        (b"PK\x03\x04" + b"\0" * 100, "damaged, cut off or not an Excel workbook"),
        (b"", "is empty"),
    ],
)
def test_what_is_no_workbook_is_refused(tmp_path, content, fault):
    with pytest.raises(UserInputError, match=fault):
        read_table(put(tmp_path / "a.xlsx", content))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_cut_workbook_is_refused(tmp_path, share):
    whole = workbook(tmp_path / "a.xlsx", [["text", "label"], *[["a", "x"]] * 50]).read_bytes()
    with pytest.raises(UserInputError, match="damaged"):
        read_table(put(tmp_path / "b.xlsx", whole[: int(len(whole) * share)]))


def test_a_workbook_whose_cells_are_damaged_is_refused(tmp_path):
    path = workbook(tmp_path / "a.xlsx", [["text", "label"], *[[f"a{i}", "x"] for i in range(3000)]])
    content = bytearray(path.read_bytes())
    at = content.index(b"xl/worksheets/sheet1.xml") + 400
    content[at : at + 200] = bytes(200)
    with pytest.raises(UserInputError, match="damaged"):
        read_table(put(path, bytes(content)))


def test_headers_only_and_repeated_headers_in_a_workbook(tmp_path):
    with pytest.raises(UserInputError, match="header but no rows"):
        read_table(workbook(tmp_path / "a.xlsx", [["text", "label"]]))
    with pytest.raises(UserInputError, match="more than one column named 'text'"):
        read_table(workbook(tmp_path / "b.xlsx", [["text", "text"], ["a", "b"]]))


# --- Parquet


def test_parquet_keeps_types_but_categories(tmp_path):
    frame = pl.DataFrame({"text": ["a", None], "n": [1, 2], "c": pl.Series(["x", "y"], dtype=pl.Categorical)})
    frame.write_parquet(tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet")
    assert table.frame.schema == {"text": pl.String, "n": pl.Int64, "c": pl.String}
    assert values(table.frame) == {"text": ["a", None], "n": [1, 2], "c": ["x", "y"]}


def test_bad_parquet_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"text": ["a"] * 100}).write_parquet(path)
    whole = path.read_bytes()
    hollow = whole[:4] + bytes(len(whole) - 8) + whole[-4:]
    for content in (whole[:-10], b"text\na\nb\n", b"PAR1PAR1", hollow):
        with pytest.raises(UserInputError, match=r"not a whole Parquet file|damaged Parquet file"):
            read_table(put(path, content))
    pl.DataFrame(schema={"text": pl.String}).write_parquet(path)
    with pytest.raises(UserInputError, match="no rows"):
        read_table(path)


# --- JSON lines


def test_json_lines_keep_what_all_values_share(tmp_path):
    rows = [
        {"text": "a\u2028b", "n": 1, "f": 1, "b": True, "mixed": "x", "big": 2**70},
        {"text": None, "n": 2, "f": 0.5, "b": False, "mixed": [1, "é"], "late": 3},
    ]
    content = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    frame = read_table(put(tmp_path / "a.jsonl", content)).frame
    assert values(frame) == {
        "text": ["a\u2028b", None],
        "n": [1, 2],
        "f": [1.0, 0.5],
        "b": [True, False],
        "mixed": ["x", '[1, "é"]'],
        "big": [str(2**70), None],
        "late": [None, 3],
    }
    assert next(iter_tables(tmp_path / "a.jsonl", rows_per_batch=1)).schema == frame.schema


def test_lists_of_texts_in_json_lines_stay_lists(tmp_path):
    rows = [{"text": "a", "topics": ["Fees", "Card"]}, {"text": "b", "topics": []}, {"text": "c"}]
    content = "\n".join(map(json.dumps, rows))
    frame = read_table(put(tmp_path / "a.jsonl", content)).frame
    assert frame.schema["topics"] == pl.List(pl.String)
    assert frame["topics"].to_list() == [["Fees", "Card"], [], None]
    content = json.dumps({"text": "a", "topics": [["Fees"], 3]})
    assert read_table(put(tmp_path / "b.jsonl", content)).frame["topics"].to_list() == ['[["Fees"], 3]']


def test_lists_in_json_lines_have_the_type_of_their_items(tmp_path):
    rows = [
        {"n": [1, 2], "f": [1, 2.5], "b": [True], "m": [1, "a", 2.0, True, None], "t": ["a", None], "x": [1]},
        {"n": [None], "f": [3], "b": [], "m": [], "t": None, "x": [[2]]},
    ]
    frame = read_table(put(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))).frame
    types = {"n": pl.Int64, "f": pl.Float64, "b": pl.Boolean, "m": pl.String, "t": pl.String}
    assert {name: frame.schema[name] for name in types} == {name: pl.List(of) for name, of in types.items()}
    assert values(frame) == {
        "n": [[1, 2], [None]],
        "f": [[1.0, 2.5], [3.0]],
        "b": [[True], []],
        "m": [["1", "a", "2", "TRUE", None], []],
        "t": [["a", None], None],
        "x": ["[1]", "[[2]]"],
    }


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"text": "a"}\n\n{"text": \n', "line 3 is not JSON"),
        ('[{"text": "a"}]\n', "line 1 is not an object"),
        ('{"text": "\\ud800"}\n', "line 1 holds half of a surrogate pair"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("\n \n", "is empty"),
        (b'{"text": "a"}\n{"text": "\xff"}', "line 2: byte 0xFF at offset 24"),
    ],
)
def test_bad_json_lines_are_refused(tmp_path, content, fault):
    with pytest.raises(UserInputError, match=fault):
        read_table(put(tmp_path / "a.jsonl", content))


# --- datasets


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return pytest.importorskip("datasets")


def saved(datasets, path, splits):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    made = {
        name: datasets.Dataset.from_dict({"text": [name, "b", "c"], "label": [1, 0, -1]}, features=features)
        for name in splits
    }
    (datasets.DatasetDict(made) if len(made) > 1 else made[splits[0]]).save_to_disk(path)
    return path


def test_a_saved_dataset_gives_class_names(tmp_path, datasets):
    path = saved(datasets, tmp_path / "one", ["all"])
    expected = {"text": ["all", "b", "c"], "label": ["yes", "no", None]}
    assert values(read_table(path).frame) == expected
    assert values(pl.concat(iter_tables(path, rows_per_batch=2))) == expected


def test_lists_of_class_ids_give_lists_of_names(tmp_path, datasets):
    classes = datasets.ClassLabel(names=["joy", "anger"])
    features = datasets.Features({"text": datasets.Value("string"), "labels": datasets.List(classes)})
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "labels": [[1, 0], []]}, features=features)
    made.save_to_disk(tmp_path / "several")
    found = read_table(tmp_path / "several").frame["labels"].to_list()
    assert found == [["anger", "joy"], []]


def test_the_split_is_train_or_has_to_be_named(tmp_path, datasets):
    path = saved(datasets, tmp_path / "many", ["train", "test"])
    assert read_table(path).frame["text"][0] == "train"
    assert read_table(path / "test").frame["text"][0] == "test"
    with pytest.raises(UserInputError, match=r"has the splits 'dev', 'test'; name one, as .*/SPLIT"):
        read_table(saved(datasets, tmp_path / "other", ["dev", "test"]))


def test_a_damaged_dataset_is_refused(tmp_path, datasets):
    path = saved(datasets, tmp_path / "one", ["all"])
    next(path.glob("*.arrow")).unlink()
    with pytest.raises(UserInputError, match="damaged dataset folder"):
        read_table(path)


def test_a_hub_dataset_is_loaded_by_name_and_split(monkeypatch, datasets):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        if name == "o/gone":
            raise ConnectionError("Couldn't reach the Hub\nlong story")
        return datasets.Dataset.from_dict({"text": ["a"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert values(read_table("hf://o/name:test").frame) == {"text": ["a"]}
    read_table("hf://o/name")
    assert asked == [("o/name", "test"), ("o/name", None)]
    with pytest.raises(UserInputError, match=r"\(Couldn't reach the Hub\); check the name") as caught:
        read_table("hf://o/gone")
    assert "\n" not in str(caught.value)


def test_without_datasets_the_extra_is_named(monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserInputError, match=r"pip install 'snugtune\[datasets\]'"):
        read_table("hf://o/name")


# --- the source itself


def test_what_is_no_table_is_refused(tmp_path):
    for name, fault in {
        "gone.csv": "does not exist",
        ".": "is a folder and not a saved Hugging Face dataset",
        "a.xls": "save it as .xlsx",
        "a.csv.gz": "Unpack it first",
        "a.pdf": "no known format; use CSV",
    }.items():
        if "." in name[1:] and not name.startswith("gone"):
            put(tmp_path / name, "x")
        with pytest.raises(UserInputError, match=fault):
            read_table(tmp_path / name)


def test_a_sheet_of_a_csv_is_refused(tmp_path):
    with pytest.raises(UserInputError, match="not an Excel workbook"):
        read_table(put(tmp_path / "a.csv", "a,b\n1,2\n"), sheet="First")


def test_batches_are_as_long_as_asked(tmp_path):
    path = put(tmp_path / "a.csv", "n,m\n" + "1,2\n" * 7)
    assert [frame.height for frame in iter_tables(path, rows_per_batch=3)] == [3, 3, 1]
    with pytest.raises(UserInputError, match="must be 1 or more, not 0"):
        iter_tables(path, rows_per_batch=0)


def test_faults_far_down_surface_after_the_good_rows(tmp_path):
    path = put(tmp_path / "a.csv", "n,m\n" + "1,2\n" * 500 + "3\n")
    batches = iter_tables(path, rows_per_batch=500)
    assert next(batches).height == 500
    with pytest.raises(UserInputError, match="row 502"):
        next(batches)
