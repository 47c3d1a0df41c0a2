"""``snugtune audit`` on the sample workbook: wrong labels are found, corrected, and given back to a fit."""

import json
import subprocess
import sys

import openpyxl
import polars as pl
import pytest

import tiny
from snugtune.data.corrections import ISSUE_COLUMNS
from snugtune.data.sample import sample_rows, write_sample

ROWS = 1000


def snugtune(*arguments, code=0):
    command = [sys.executable, "-m", "snugtune", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def workbook(tmp_path_factory):
    path = tmp_path_factory.mktemp("sample") / "complaints.xlsx"
    write_sample(path, rows=ROWS)
    return path


@pytest.fixture(scope="module")
def planted():
    """The true label of each row of the sheet that was given a wrong one."""
    rows = enumerate(sample_rows(ROWS), start=2)
    return {number: row.truth for number, row in rows if row.fault == "wrong label"}


@pytest.mark.slow
def test_wrong_labels_are_found_corrected_and_given_back(workbook, planted, tmp_path):
    folder = tmp_path / "audit"
    done = snugtune("audit", workbook, "--label", "Issue", "-o", folder, "--max-length", 64, "--json")
    record = json.loads(done.stdout)
    assert record == json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    found = record["audit"]
    assert found["leakage"] is None
    assert found["languages"] == [{"language": "en", "share": 1.0}]
    assert found["duplicates"]["rows"] > 0
    assert found["lengths"]["cut_rows"] > 0
    assert found["learning_curve"]["forecast"][0]["rows"] == 2 * found["rows"]
    assert sorted(path.name for path in folder.iterdir()) == ["audit.json", "label_issues.xlsx"]

    issues = pl.read_excel(folder / "label_issues.xlsx", sheet_name="label issues")
    assert tuple(issues.columns) == ISSUE_COLUMNS
    assert issues.height == found["label_issues"]["suspected_rows"]
    rows = issues["row"].to_list()
    assert len(planted.keys() & set(rows)) >= 0.6 * len(planted)
    assert found["label_issues"]["top"][0]["row"] == rows[0]

    corrected = correct(folder / "label_issues.xlsx", planted)
    fit = [
        "fit",
        workbook,
        "--label",
        "Issue",
        "--model",
        tiny.write_model(tmp_path / "model"),
        "--method",
        "head",
        "--no-audit",
    ]
    done = snugtune(
        *fit, "--epochs", 1, "--corrections", folder / "label_issues.xlsx", "-o", tmp_path / "run", "--json"
    )
    run = json.loads(done.stdout)
    applied = run["data"]["corrections"]
    assert applied["file"] == str(folder / "label_issues.xlsx")
    assert applied["applied"] >= corrected > 0
    assert applied["left_blank"] == len(rows) - corrected
    assert run["audit"] is None

    other = tmp_path / "other.xlsx"
    write_sample(other, rows=ROWS, seed=1)
    done = snugtune("fit", other, "--label", "Issue", "--corrections", folder / "label_issues.xlsx", code=2)
    assert "is another one; if rows were added" in done.stderr


def correct(path, truth):
    """As a person would: fill in what is right where the label is wrong."""
    book = openpyxl.load_workbook(path)
    sheet, filled = book["label issues"], 0
    for cells in sheet.iter_rows(min_row=2):
        if cells[0].value in truth:
            cells[5].value = truth[cells[0].value]
            filled += 1
    book.save(path)
    return filled


def test_in_words_and_without_a_model_pass(workbook, tmp_path):
    folder = tmp_path / "audit"
    arguments = ["audit", workbook, "--label", "Issue", "--test", workbook, "--no-frozen-pass", "-o", folder]
    told = " ".join(snugtune(*arguments).stdout.split())
    for words in (
        "usable rows", "largest class", "near-duplicates", "test rows like training rows",
        "too rare to learn", "suggested", "baseline's accuracy", "forecast", "Twice the rows",
        "labels look wrong", "judged by TF-IDF + linear.",
        "--text 'Consumer complaint narrative' --label Issue --corrections",
    ):  # fmt: skip
        assert words in told, told
    done = snugtune(*arguments, code=2)
    assert "already holds something" in done.stderr


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    done = snugtune("audit", "nowhere.csv", "-o", tmp_path / "audit", code=2)
    assert done.stderr.strip() == "nowhere.csv does not exist; check the path."
    assert not (tmp_path / "audit").exists()
