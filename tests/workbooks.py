"""Workbooks for tests, made by two libraries, and what an independent reader finds in them."""

import datetime as dt
import hashlib
import warnings
import zipfile
from xml.etree import ElementTree

import openpyxl
import polars as pl
import xlsxwriter

from snugtune.data.table import iter_tables
from snugtune.predict.alike import writer_like
from snugtune.predict.predictor import ADDED_COLUMNS
from snugtune.predict.summary import Summary
from snugtune.predict.write import write_tables

LABELS = ["Card", "=Fee", "Lo & an", "-1", "@x", "\tTab", "é", "a_x000D_"]


def labelled(frame, text="text"):
    """``frame`` with predictions that can be told from the text alone."""
    texts = [value or "" for value in frame[text]]
    marks = [int(hashlib.sha256(value.encode()).hexdigest(), 16) for value in texts]
    added = {
        "predicted_label": [LABELS[mark % 8] for mark in marks],
        "confidence": [0.5 + mark % 4096 / 10000 for mark in marks],
        "needs_review": [mark % 2 == 0 for mark in marks],
        "second_label": [LABELS[mark % 7] for mark in marks],
        "third_label": [None if mark % 3 else "third" for mark in marks],
    }
    types = {"third_label": pl.String, "confidence": pl.Float64, "needs_review": pl.Boolean}
    return frame.drop(ADDED_COLUMNS, strict=False).hstack(pl.DataFrame(added, schema_overrides=types))


def predicted(source, output, *, rows_per_batch=10, summary=True, date=None, ignored=(), **reading):
    """``source`` with ``labelled`` columns at ``output``, as predict writes it."""
    counts = Summary(("text",), date, ignored=(*ADDED_COLUMNS, *ignored)) if summary else None
    writer = writer_like(source, output, ADDED_COLUMNS, summary=counts, **reading)
    frames = map(labelled, iter_tables(source, rows_per_batch=rows_per_batch, **reading))
    return write_tables(frames, output, writer=writer)


def parts(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def local(tag):
    return tag.rpartition("}")[2]


def cells(xml):
    """Canonical XML of each cell by its reference."""
    root = ElementTree.fromstring(xml)
    found = {}
    for cell in root.iter():
        if local(cell.tag) == "c":
            cell.tail = None
            found[cell.attrib["r"]] = ElementTree.canonicalize(ElementTree.tostring(cell))
    return found


def around(xml, *but):
    """Canonical XML of what a sheet holds beside its cells, but for the elements named."""
    root = ElementTree.fromstring(xml)
    return [
        ElementTree.canonicalize(ElementTree.tostring(element))
        for element in root
        if local(element.tag) not in ("sheetData", "dimension", *but)
    ]


def rows_attributes(xml):
    root = ElementTree.fromstring(xml)
    return {
        row.attrib["r"]: {key: value for key, value in row.attrib.items() if key != "spans"}
        for row in root.iter()
        if local(row.tag) == "row"
    }


def rich(path, rows=30):
    """A workbook with about everything that a library which rewrites it might lose."""
    book = xlsxwriter.Workbook(path)
    sheet, other = book.add_worksheet("May's & more"), book.add_worksheet("Other")
    bold = book.add_format({"bold": True, "bg_color": "#DDEEFF", "border": 1})
    day, money = (book.add_format({"num_format": f}) for f in ("dd mmm yyyy", "#,##0.00"))
    sheet.set_column(0, 0, 12.5)
    sheet.set_column(1, 1, 60)
    for c, name in enumerate(["received", "text", "amount", "double"]):
        sheet.write(0, c, name, bold)
    for r in range(1, rows + 1):
        sheet.write_datetime(r, 0, dt.datetime(2024, 1 + r % 5, 3), day)
        sheet.write_rich_string(r, 1, "bold ", bold, f"text {r}")
        sheet.write_number(r, 2, r * 1.5, money)
        sheet.write_formula(r, 3, f"=C{r + 1}*2", money, r * 3)
    sheet.autofilter(0, 0, rows, 3)
    sheet.freeze_panes(1, 0)
    sheet.conditional_format(1, 2, rows, 2, {"type": "data_bar", "data_bar_2010": True})
    sheet.data_validation(1, 2, rows, 2, {"validate": "decimal", "criteria": ">", "value": 0})
    sheet.write_comment("C3", "a note")
    sheet.add_sparkline("H40", {"range": "C2:C9"})
    chart = book.add_chart({"type": "line"})
    chart.add_series({"values": "='May''s & more'!$C$2:$C$20"})
    other.insert_chart("C3", chart)
    other.write_formula("A1", "=SUM('May''s & more'!C2:C9)", None, 54)
    book.define_name("Amounts", "='May''s & more'!$C$2:$C$9")
    book.close()
    return path


def loaded(path):
    """The workbook as openpyxl, a library that had no part in writing it, reads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it would lose
        return openpyxl.load_workbook(path)
