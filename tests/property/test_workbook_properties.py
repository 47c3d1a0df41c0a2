"""Whatever a workbook holds, it comes back with every cell as it was and each prediction in its row."""

import datetime as dt
import tempfile
from pathlib import Path

import openpyxl
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl.styles import Font, PatternFill
from openpyxl.utils import get_column_letter
from openpyxl.utils.escape import unescape
from openpyxl.worksheet.table import Table

from snugtune.predict.predictor import ADDED_COLUMNS
from workbooks import around, cells, labelled, loaded, parts, predicted, rows_attributes

TEXT = st.text("ab =+-@'<&>é\t\n_x000D_", max_size=8)
VALUE = st.one_of(
    st.none(),
    TEXT,
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.booleans(),
    st.dates(dt.date(1950, 1, 1), dt.date(2100, 1, 1)),
    st.just("=SUM(A1:A2)"),
)
FORMATS = st.sampled_from(["General", "0.00", "dd/mm/yyyy", "@"])


@st.composite
def books(draw):
    """A workbook of openpyxl, the text of each sheet row, and the row of the header."""
    book = openpyxl.Workbook()
    if draw(st.booleans()):
        book.create_sheet("Before & after", 0)["B2"] = "=1+1"
    sheet = book.active = book["Sheet"]
    width, text_at = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    names = [f"c{i}" for i in range(width)]
    names[text_at % width] = "text"
    header = 1
    # Above a single column, a title could as well be the header.
    if width > 1 and draw(st.booleans()):
        sheet["A1"] = "A title"
        header = 3
        if draw(st.booleans()):
            sheet.merge_cells("A1:H2")
    for c, name in enumerate(names, start=1):
        sheet.cell(header, c, name).font = Font(bold=draw(st.booleans()))
    row, texts = header, {}
    for values in draw(st.lists(st.lists(VALUE, min_size=width, max_size=width), min_size=1, max_size=8)):
        row += draw(st.integers(1, 2))
        text = draw(TEXT.filter(str.strip))
        texts[row] = text
        values[text_at % width] = text
        for c, value in enumerate(values, start=1):
            cell = sheet.cell(row, c)
            cell.value = value
            if value == text and c == text_at % width + 1:
                cell.data_type = "s"  # text also where it begins like a formula
            cell.number_format = draw(FORMATS)
    edge = f"{get_column_letter(width)}{row}"
    extra = draw(st.sampled_from(["filter", "table", "styled", "nothing"]))
    if extra == "filter":
        sheet.auto_filter.ref = f"A{header}:{edge}"
    elif extra == "table":
        sheet.add_table(Table(displayName="T", ref=f"A{header}:{edge}"))
    elif extra == "styled":
        sheet.cell(row, width + 2).fill = PatternFill("solid", fgColor="FFFF00")
    if draw(st.booleans()):
        sheet.column_dimensions[get_column_letter(draw(st.integers(1, 12)))].width = 33
    return book, texts, header, width


@settings(max_examples=25)
@given(books(), st.integers(1, 5), st.booleans())
def test_every_cell_is_as_it_was_and_each_prediction_in_its_row(made, rows_per_batch, summary):
    book, texts, header, width = made
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "in.xlsx"), Path(folder, "out.xlsx")
        book.save(source)
        predicted(source, output, rows_per_batch=rows_per_batch, summary=summary, sheet="Sheet")
        before, after = parts(source), parts(output)
        sheet = loaded(output)["Sheet"]
    name = f"xl/worksheets/sheet{book.sheetnames.index('Sheet') + 1}.xml"
    old, new = cells(before[name]), cells(after[name])
    columns = [cell.column for cell in sheet[header] if cell.value in ADDED_COLUMNS]
    assert columns == list(range(width + 1, width + 6))
    letters = {get_column_letter(c) for c in columns}
    ours = {ref for ref in new if ref.rstrip("0123456789") in letters}
    assert {ref: new[ref] for ref in old if ref not in ours} == {
        ref: cell for ref, cell in old.items() if ref not in ours
    }
    assert rows_attributes(before[name]) == rows_attributes(after[name])
    assert around(before[name], "cols", "autoFilter") == around(after[name], "cols", "autoFilter")
    allowed = {name, "xl/workbook.xml", "xl/tables/table1.xml"}
    if summary:
        allowed |= {"xl/styles.xml", "[Content_Types].xml", "xl/_rels/workbook.xml.rels"}
    assert {part for part in before if before[part] != after.get(part)} <= allowed
    for row in range(header + 1, sheet.max_row + 1):
        found = sheet.cell(row, columns[0]).value, sheet.cell(row, columns[1]).value
        if row in texts:
            # openpyxl writes "_x0000_" as it is, which every reader of the format takes for the character.
            text = unescape(texts[row])
            label, confidence = labelled(pl.DataFrame({"text": [text]})).row(0)[1:3]
            assert found == (label.replace("_x", "_x005F_x"), confidence)
        else:
            assert found == (None, None)
