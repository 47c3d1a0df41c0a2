"""Whole files of every family, small and rich, from which damaged ones are made."""

import datetime as dt
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import polars as pl

TEXTS = [
    "my card was stolen",
    'the "fee" was charged twice',
    "loan; interest\nrate",
    "card lost, wallet too",
    "=1+1 é ẞ 漢字 😀",
    "fee",
]
LABELS = ["Card", "Fees", "Löan", "Card", "Löan", "Fees"]


def table():
    return pl.DataFrame(
        {
            "text": TEXTS,
            "label": LABELS,
            "n": [1, 2, None, 4, 5, 6],
            "x": [0.5, None, 1e-3, 4.0, -5.0, 6.0],
            "day": [dt.date(2024, 1, i) for i in range(1, 7)],
            "ok": [True, False, None, True, True, False],
        }
    )


def write_samples(folder, families=None):
    """A folder by family under ``folder`` (all, or those named); runs are of tiny models."""
    folder = Path(folder)
    writers = {
        "csv": _csv,
        "json": _json,
        "xlsx": _workbooks,
        "parquet": _parquet,
        "sqlite": lambda into: _sqlite(into / "table.db"),
        "yaml": _yaml,
        "reviews": lambda into: _reviews(into / "reviews.db"),
        "dataset": lambda into: _dataset(into / "saved"),
        "run": lambda into: _runs(into.parent),
    }
    for name in ("model", *writers):
        (folder / name).mkdir(parents=True)
    for name, write in writers.items():
        if families is None or name in families:
            write(folder / name)
    return folder


def _csv(folder):
    table().write_csv(folder / "a.csv")
    table().write_csv(folder / "b.csv", separator=";", quote_style="always", line_terminator="\r\n")
    (folder / "c.tsv").write_text("text\tlabel\n" + "a b\tCard\n" * 50, encoding="utf-16")


def _json(folder):
    table().write_ndjson(folder / "a.jsonl")
    rows = [
        {"text": text, "label": [label, "x"], "more": {"a": [1, None], "b": "c"}}
        for text, label in zip(TEXTS, LABELS, strict=True)
    ]
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _workbooks(folder):
    import openpyxl
    import xlsxwriter
    from openpyxl.worksheet.table import Table

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Data"
    sheet.append(table().columns)
    for row in table().iter_rows():
        sheet.append(row)
    sheet.auto_filter.ref = "A1:F7"
    sheet.merge_cells("A10:B10")
    book.create_sheet("Other")["A1"] = "=SUM(Data!C2:C7)"
    book.save(folder / "a.xlsx")

    sheet.auto_filter.ref = None
    sheet.add_table(Table(displayName="T", ref="A1:F7"))
    sheet.column_dimensions["A"].width = 40
    book.save(folder / "b.xlsx")

    with xlsxwriter.Workbook(folder / "c.xlsx") as other:
        page = other.add_worksheet("Complaints & more")
        bold = other.add_format({"bold": True, "num_format": "yyyy-mm-dd"})
        page.write_row(0, 0, ["A title"], bold)
        page.write_row(2, 0, ["text", "label", "n", "sum"], bold)
        for i, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True), start=3):
            page.write_string(i, 0, text)
            page.write_rich_string(i, 1, label[:1], bold, label[1:], bold)
            page.write_number(i, 2, i)
            page.write_formula(i, 3, f"=C{i + 1}*2", bold, 2 * i)
        page.add_table(2, 0, 9, 3, {"columns": [{"header": name} for name in ("text", "label", "n", "sum")]})
        chart = other.add_chart({"type": "bar"})
        chart.add_series({"values": "='Complaints & more'!$C$4:$C$9"})
        page.insert_chart("H2", chart)
        page.write_comment("A4", "a note")
        page.conditional_format("C4:C9", {"type": "data_bar"})


def _parquet(folder):
    more = table().with_columns(
        pl.col("label").cast(pl.Categorical).alias("c"),
        pl.Series("l", [["a"], [], None, ["b", "c"], ["d"], [None]]),
        pl.struct("n", "x").alias("s"),
        pl.col("text").cast(pl.Binary).alias("bytes"),
        pl.col("n").cast(pl.Decimal(10, 2)).alias("d"),
    )
    table().write_parquet(folder / "a.parquet", compression="uncompressed")
    more.write_parquet(folder / "b.parquet", compression="zstd", row_group_size=2, statistics=True)
    pl.concat([table()] * 50).write_parquet(folder / "c.parquet", compression="snappy", use_pyarrow=True)


def _sqlite(path):
    with closing(sqlite3.connect(path)) as base, base:
        base.execute("CREATE TABLE complaints (text TEXT, label TEXT, n INTEGER, x REAL)")
        base.executemany(
            "INSERT INTO complaints VALUES (?, ?, ?, ?)",
            table().select("text", "label", "n", "x").iter_rows(),
        )


def _yaml(folder):
    from snugtune.config import make_config, write_config

    write_config(make_config({"train": "a.csv", "text": ("text",), "label": "label"}), folder / "all.yaml")
    (folder / "few.yaml").write_text(
        "# mine\nr: 8\nlora_alpha: 16\ntext: [text]\nlearning_rate: 1e-3\nmax_time_s: 90min\n",
        encoding="utf-8",
    )


def _reviews(path):
    from reviewing import decide_all

    decide_all(path, dict(zip(TEXTS, ("Card", "Fees", "Loan") * 2, strict=True)))
    with closing(sqlite3.connect(path)) as base:
        base.execute("PRAGMA journal_mode=DELETE")


def _dataset(folder):
    import datasets

    datasets.Dataset.from_dict(table().select("text", "label", "n").to_dict(as_series=False)).save_to_disk(
        folder
    )


def _runs(folder):
    from trained import write_run

    made = folder.parent / "made"
    one = write_run(made / "one", "bert")
    several = write_run(made / "several", "distilbert", several=True)
    full = write_run(made / "full", "roberta", method="full")
    decoder = write_run(made / "decoder", "gpt2", long_texts="windows")
    for name, run in (("one", one), ("several", several), ("full", full), ("decoder", decoder)):
        run.rename(folder / "run" / name)
    _add_baseline(folder / "run" / "full", made / "full" / "table.csv")
    for name in ("one", "decoder"):
        (made / name / "base").rename(folder / "model" / name)
        # The adapters refer to their base models by path.
        path = folder / "run" / name / "adapter" / "adapter_config.json"
        text = path.read_text(encoding="utf-8")
        path.write_text(
            text.replace(str(made / name / "base"), str(folder / "model" / name)), encoding="utf-8"
        )


def _add_baseline(run, source):
    """The TF-IDF baseline beside the model, mixed in."""
    import numpy as np

    from families import LABELS as NAMES
    from snugtune.evaluate.baseline import TfidfBaseline

    rows = pl.read_csv(source)
    y = np.array([NAMES.index(label) for label in rows["label"]])
    TfidfBaseline(char_ngrams=False).fit(rows["text"].to_list(), y, len(NAMES)).save(run / "baseline")
    path = run / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["decision"]["mixture"]["weight"] = 0.3
    path.write_text(json.dumps(record), encoding="utf-8")
