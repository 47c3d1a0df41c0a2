"""A workbook comes back as it was, with columns and a summary sheet."""

import re
import zipfile

import fastexcel
import openpyxl
import polars as pl
import pytest
import xlsxwriter
from openpyxl.worksheet.table import Table

from snugtune.data import archive
from snugtune.data.table import read_table
from snugtune.errors import UserInputError
from snugtune.predict.predictor import ADDED_COLUMNS
from snugtune.predict.workbook import roundtrip, splice
from workbooks import LABELS, around, cells, labelled, loaded, parts, predicted, rich, rows_attributes

SHEET = "xl/worksheets/sheet1.xml"


def simple(path, rows, **sheet_options):
    book = xlsxwriter.Workbook(path)
    sheet = book.add_worksheet("Data")
    for r, row in enumerate(rows):
        sheet.write_row(r, 0, row)
    for name, arguments in sheet_options.items():
        getattr(sheet, name)(*arguments)
    book.close()
    return path


def edited(path, name, old, new):
    """The archive with ``old`` replaced in one part."""
    content = parts(path)
    assert old in content[name]
    content[name] = content[name].replace(old, new)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for part, data in content.items():
            target.writestr(part, data)
    return path


def test_everything_else_is_the_same(tmp_path):
    source = rich(tmp_path / "in.xlsx")
    predicted(source, tmp_path / "out.xlsx", summary=False)
    before, after = parts(source), parts(tmp_path / "out.xlsx")
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {SHEET, "xl/workbook.xml"}  # which has the range of the filter
    old, new = cells(before[SHEET]), cells(after[SHEET])
    assert {name: new[name] for name in old} == old
    assert {re.sub(r"\d", "", name) for name in new.keys() - old.keys()} == set("EFGHI")
    assert rows_attributes(before[SHEET]) == rows_attributes(after[SHEET])
    assert around(before[SHEET], "cols", "autoFilter") == around(after[SHEET], "cols", "autoFilter")
    assert before[SHEET][before[SHEET].index(b"<cols>") : before[SHEET].index(b"</cols>")] in after[SHEET]


def looks(cell):
    return cell.value, cell.number_format, *map(repr, (cell.font, cell.fill, cell.border, cell.alignment))


def test_a_summary_adds_parts_and_formats_and_changes_no_other(tmp_path):
    source = rich(tmp_path / "in.xlsx")
    predicted(source, tmp_path / "out.xlsx")
    before, after = parts(source), parts(tmp_path / "out.xlsx")
    own = after.keys() - before.keys()
    assert all("snugtune_" in name for name in own)
    assert {name for name in before if before[name] != after[name]} == {
        SHEET, "xl/workbook.xml", "xl/styles.xml", "[Content_Types].xml", "xl/_rels/workbook.xml.rels",
    }  # fmt: skip
    old, new = loaded(source), loaded(tmp_path / "out.xlsx")
    assert new.sheetnames == [*old.sheetnames, "Summary"]
    for title in old.sheetnames:
        for row in old[title].iter_rows():
            for cell in row:
                other = new[title][cell.coordinate]
                assert looks(other) == looks(cell)
    assert new.active.title == old.active.title
    assert [sheet.sheet_view.tabSelected for sheet in new.worksheets].count(True) == 1


def test_the_filter_the_widths_and_the_header_take_the_new_columns_in(tmp_path):
    predicted(rich(tmp_path / "in.xlsx"), tmp_path / "out.xlsx")
    sheet = loaded(tmp_path / "out.xlsx").worksheets[0]
    assert sheet.auto_filter.ref == "A1:I31"
    assert b"$A$1:$I$31" in parts(tmp_path / "out.xlsx")["xl/workbook.xml"]
    assert sheet.dimensions == "A1:I31"
    assert [cell.value for cell in sheet[1]][4:] == list(ADDED_COLUMNS)
    assert sheet["E1"].font.bold
    assert looks(sheet["E1"])[2:] == looks(sheet["D1"])[2:]
    assert (sheet.column_dimensions["B"].width, sheet.column_dimensions["E"].width) == (60.7109375, 28)


def test_predictions_stand_in_the_row_of_their_text(tmp_path):
    source = simple(
        tmp_path / "in.xlsx",
        [["Report of May"], [], ["id", "text"], [1, "a"], [], [2, "b"], [3, ""], [None, "c"], [4, "d"]],
    )
    for rows in (1, 2, 100):
        predicted(source, tmp_path / "out.xlsx", rows_per_batch=rows, summary=False)
        found = [
            [cell.value for cell in row][2:5] for row in loaded(tmp_path / "out.xlsx")["Data"].iter_rows()
        ]
        assert found[:2] == [[None] * 3] * 2
        assert found[2] == list(ADDED_COLUMNS[:3])
        assert found[4] == [None] * 3  # a blank row is none of the table's
        for row, text in ((3, "a"), (5, "b"), (6, ""), (7, "c"), (8, "d")):
            expected = labelled(pl.DataFrame({"text": [text]})).row(0)[1:4]
            label = expected[0].replace("_x000D_", "_x005F_x000D_")  # openpyxl leaves that to the reader
            assert found[row] == [label, *expected[1:]]
    assert read_table(tmp_path / "out.xlsx").frame["predicted_label"].null_count() == 1


def test_what_we_write_is_text_whatever_it_looks_like(tmp_path):
    source = simple(tmp_path / "in.xlsx", [["text", "formula"], *([f"t{i}", "=1+1"] for i in range(60))])
    predicted(source, tmp_path / "out.xlsx", summary=False)
    sheet = loaded(tmp_path / "out.xlsx")["Data"]
    labels = {cell.value for cell in sheet["C"][1:]}
    assert {"=Fee", "-1", "@x", "\tTab"} <= labels
    assert {cell.data_type for cell in sheet["C"]} == {"s"}
    assert {cell.data_type for cell in sheet["B"][1:]} == {"f"}
    found = fastexcel.read_excel(tmp_path / "out.xlsx").load_sheet(0).to_polars()
    assert set(found["predicted_label"]) == set(LABELS)


def test_predicting_again_writes_into_the_same_columns_and_the_same_summary(tmp_path):
    source, out = rich(tmp_path / "in.xlsx"), tmp_path / "out.xlsx"
    predicted(source, out)
    first = parts(out)
    predicted(out, tmp_path / "again.xlsx", rows_per_batch=3)
    second = parts(tmp_path / "again.xlsx")
    assert first.keys() == second.keys()
    assert cells(first[SHEET]) == cells(second[SHEET])
    assert loaded(tmp_path / "again.xlsx").sheetnames == ["May's & more", "Other", "Summary"]
    predicted(out, tmp_path / "other.xlsx", ignored=["received"])  # no months: one chart less
    assert "xl/charts/snugtune_chart2.xml" not in parts(tmp_path / "other.xlsx")
    assert b"snugtune_chart2" not in parts(tmp_path / "other.xlsx")["[Content_Types].xml"]


def test_the_output_may_be_the_workbook_itself(tmp_path):
    path = rich(tmp_path / "in.xlsx")
    predicted(path, path)
    assert loaded(path).sheetnames[-1] == "Summary"
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_grows_and_its_totals_stay_empty(tmp_path):
    rows = [["id", "text"], *([i, f"t{i}"] for i in range(5)), ["Total", None]]
    options = {"columns": [{"header": "id"}, {"header": "text"}], "total_row": True}
    source = simple(tmp_path / "in.xlsx", rows, add_table=("A1:B7", options))
    predicted(source, tmp_path / "out.xlsx")
    sheet = loaded(tmp_path / "out.xlsx")["Data"]
    table = sheet.tables["Table1"]
    assert (table.ref, table.autoFilter.ref) == ("A1:G7", "A1:G6")
    assert [column.name for column in table.tableColumns] == ["id", "text", *ADDED_COLUMNS]
    assert len({column.id for column in table.tableColumns}) == 7
    assert [cell.value for cell in sheet[7]][2:] == [None] * 5
    assert sheet["C6"].value is not None
    assert f'count="{7}"'.encode() in parts(tmp_path / "out.xlsx")["xl/tables/table1.xml"]


def test_a_table_that_cannot_grow_is_left_alone(tmp_path):
    book = openpyxl.Workbook()
    sheet = book.active
    for row in [["text", "Confidence"], ["a", 1], ["b", 2]]:
        sheet.append(row)
    sheet.add_table(Table(displayName="T", ref="A1:B3"))
    sheet["D2"] = "a note"
    sheet["D1"] = "notes"
    book.save(tmp_path / "in.xlsx")
    predicted(tmp_path / "in.xlsx", tmp_path / "out.xlsx", summary=False)
    out = loaded(tmp_path / "out.xlsx").active
    assert out.tables["T"].ref == "A1:B3"
    assert [cell.value for cell in out[1]] == ["text", "Confidence", None, "notes", *ADDED_COLUMNS]


def test_prefixes_missing_references_and_empty_styled_cells(tmp_path):
    """As other programs write: names with a prefix, cells without a place, rows without a number."""
    source = simple(tmp_path / "in.xlsx", [["text", "x"], ["a", 1], ["b", 2]])
    xml = (
        b'<?xml version="1.0"?><x:worksheet xmlns:x="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'
        b"<x:sheetData><x:row spans='1:1'><x:c t='inlineStr'><x:is><x:t>text</x:t></x:is></x:c></x:row>"
        b"<x:row r='3' s='0' customFormat='1'><x:c t='inlineStr'><x:is><x:t>a &gt; b</x:t></x:is></x:c>"
        b"<x:c r='C3' s='0'/><x:c r='H3' s='0'/></x:row><x:row r='4'/></x:sheetData></x:worksheet>"
    )
    content = parts(source)
    content[SHEET] = xml
    with zipfile.ZipFile(source, "w") as target:
        for name, data in content.items():
            target.writestr(name, data)
    predicted(source, tmp_path / "out.xlsx", summary=False)
    new = parts(tmp_path / "out.xlsx")[SHEET]
    assert b'<x:row spans="1:6"><x:c t=\'inlineStr\'><x:is><x:t>text</x:t></x:is></x:c><x:c r="B1"' in new
    assert new.count(b'r="C3"') == 1  # ours, in the place of an empty one
    assert b"<x:c r='H3' s='0'/></x:row><x:row r='4'/>" in new
    assert b'<x:cols><x:col min="2" max="2"' in new
    sheet = loaded(tmp_path / "out.xlsx").worksheets[0]
    assert [cell.value for cell in sheet[3]][:2] == [
        "a > b",
        labelled(pl.DataFrame({"text": ["a > b"]}))[0, 1],
    ]


def test_a_range_of_columns_that_is_there_keeps_its_width(tmp_path):
    source = simple(tmp_path / "in.xlsx", [["text"], ["a"]], set_column=("C:D", 7))
    predicted(source, tmp_path / "out.xlsx", summary=False)
    spans = re.findall(rb'<col min="(\d+)" max="(\d+)" width="([\d.]+)"', parts(tmp_path / "out.xlsx")[SHEET])
    assert [(int(low), int(high), float(width)) for low, high, width in spans] == [
        (2, 2, 28.0), (3, 4, 7.7109375), (5, 5, 28.0), (6, 6, 28.0),
    ]  # fmt: skip


def test_macros_stay_where_they_are_and_only_there(tmp_path):
    source = simple(tmp_path / "in.xlsx", [["text"], ["a"]]).rename(tmp_path / "in.xlsm")
    kept = parts(source) | {"xl/vbaProject.bin": b"\0macro"}
    with zipfile.ZipFile(source, "w") as target:
        for name, data in kept.items():
            target.writestr(name, data)
    predicted(source, tmp_path / "out.xlsm")
    assert parts(tmp_path / "out.xlsm")["xl/vbaProject.bin"] == b"\0macro"
    with pytest.raises(UserInputError, match=r"name the output \.xlsm"):
        predicted(source, tmp_path / "out.xlsx")


def test_an_own_sheet_named_summary_is_not_touched(tmp_path):
    book = openpyxl.Workbook()
    book.active.title = "sUMMARY"
    for row in (["text"], ["a"]):
        book.active.append(row)
    book.save(tmp_path / "in.xlsx")
    predicted(tmp_path / "in.xlsx", tmp_path / "out.xlsx")
    assert loaded(tmp_path / "out.xlsx").sheetnames == ["sUMMARY", "Summary (2)"]


# --- refused ---------------------------------------------------------------------------------------------


def test_formulas_under_our_names_are_not_overwritten(tmp_path):
    source = simple(tmp_path / "in.xlsx", [["text", "confidence"], ["a", "=1"]])
    with pytest.raises(UserInputError, match=r"in\.xlsx, sheet 'Data' has formulas in column 'confidence'"):
        predicted(source, tmp_path / "out.xlsx")


def test_no_columns_left(tmp_path):
    source = simple(tmp_path / "in.xlsx", [["text"], ["a"]], write=(1, 16_380, "x"))
    with pytest.raises(UserInputError, match=r"which has no name|no room at its right"):
        predicted(source, tmp_path / "out.xlsx")


def test_entities_are_refused(tmp_path):
    source = edited(
        simple(tmp_path / "in.xlsx", [["text"], ["a"]]), "xl/sharedStrings.xml", b"<sst",
        b'<!DOCTYPE sst [<!ENTITY a "aaaa">]><sst',
    )  # fmt: skip
    with pytest.raises(UserInputError, match=r"xl/sharedStrings\.xml has a document type declaration"):
        predicted(source, tmp_path / "out.xlsx")
    with pytest.raises(UserInputError, match="document type"):
        read_table(source)


def test_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    source = simple(tmp_path / "in.xlsx", [["text"], ["a"]])
    monkeypatch.setattr(archive, "_SMALL_BYTES", 1 << 20)
    with zipfile.ZipFile(source, "a", zipfile.ZIP_DEFLATED) as target:
        target.writestr("xl/media/zero.bin", bytes(2 << 20))
    with pytest.raises(UserInputError, match=r"xl/media/zero\.bin would unpack to 2 MiB from 0\.0"):
        read_table(source)
    monkeypatch.setattr(archive, "LARGEST_BYTES", 1 << 20)
    with pytest.raises(UserInputError, match="would unpack to more than"):
        read_table(source)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_parts_of_one_name_are_refused(tmp_path):
    source = simple(tmp_path / "in.xlsx", [["text"], ["a"]])
    with zipfile.ZipFile(source, "a") as target:
        target.writestr("xl/worksheets/Sheet1.xml", b"<worksheet/>")
    with pytest.raises(UserInputError, match=r"holds xl/worksheets/sheet1\.xml twice"):
        read_table(source)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'<row r="2"', b'<row r="1"', "row 1 comes after row 1"),
        (b'<?xml version="1.0" encoding="UTF-8" standalone="yes"?>', b"\xff\xfe<\0", "damaged|UTF-16"),
        (b"</sheetData>", b"", "damaged"),
    ],
)
def test_damage_is_told_with_its_place(tmp_path, old, new, words):
    source = edited(simple(tmp_path / "in.xlsx", [["text"], ["a"], ["b"]]), SHEET, old, new)
    with pytest.raises(UserInputError, match=words) as caught:
        predicted(source, tmp_path / "out.xlsx")
    assert "in.xlsx" in str(caught.value)
    assert not (tmp_path / "out.xlsx").exists()


def test_a_row_that_is_not_found_again_ends_it(tmp_path, monkeypatch):
    source = simple(tmp_path / "in.xlsx", [["text"], ["a"], ["b"]])
    more = roundtrip.Roundtrip._values

    def too_many(self, frames):
        yield from more(self, frames)
        yield 9, ("x",) * 5

    monkeypatch.setattr(roundtrip.Roundtrip, "_values", too_many)
    with pytest.raises(UserInputError, match="row 9 was read and is not found again"):
        predicted(source, tmp_path / "out.xlsx")


def test_what_is_written_is_read_again_and_compared(tmp_path, monkeypatch):
    """A cell of the user's that would change, by whatever fault, ends it without an output."""
    source = rich(tmp_path / "in.xlsx")
    flush = splice.Splicer._flush

    def careless(self):
        self._out = self._out.replace(b"<v>1.5</v>", b"<v>2.5</v>")
        flush(self)

    monkeypatch.setattr(roundtrip.SheetWriter, "_flush", careless)
    with pytest.raises(RuntimeError, match="would not be given back as it was"):
        predicted(source, tmp_path / "out.xlsx")
    assert not (tmp_path / "out.xlsx").exists()
