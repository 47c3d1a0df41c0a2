"""The report: one file, self-contained, escaped, with the blocks a run has and without those it lacks."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import polars as pl
import pytest

from reports import HOSTILE, write_run
from snugtune.errors import UserInputError
from snugtune.report import formats
from snugtune.report.page import data_block, read_run_files, report_html, write_report

VOID = {"meta", "link", "input", "br", "img"}


class Page(HTMLParser):
    """What is in the page: elements with their attributes, texts of styles and scripts, unclosed elements."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.raw, self.open, self.words = [], {}, [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "script"):
            self.raw.setdefault(self.open[-1], []).append(data)
        else:
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def page_of(folder, **options):
    return Page(write_report(folder, **options).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run):
    return page_of(run)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return page_of(write_run(tmp_path_factory.mktemp("hostile"), hostile=True))


def source_hash(text):
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def policy_of(page):
    return next(
        meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"
    )


# Self-contained and strict


def test_the_policy_admits_the_style_and_the_script_in_the_page_and_nothing_else(page):
    policy = dict(part.strip().split(" ", 1) for part in policy_of(page).split(";"))
    assert policy["default-src"] == "'none'"
    (style,) = page.raw["style"]
    data, script = page.raw["script"]
    assert policy["style-src"] == f"'{source_hash(style)}'"
    assert policy["script-src"] == f"'{source_hash(script)}'"
    assert policy["base-uri"] == policy["form-action"] == "'none'"
    assert json.loads(data)["map"]["labels"]


def test_the_policy_comes_before_what_it_governs(run):
    html = (run / "report.html").read_text(encoding="utf-8")
    assert html.index("Content-Security-Policy") < html.index("<style>") < html.index("<script")


@pytest.mark.parametrize("name", ["page", "hostile"])
def test_no_attribute_holds_code_style_or_an_address(name, request):
    found = request.getfixturevalue(name)
    for _, attributes in found.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("style", "src", "srcset")]
        assert attributes.get("href", "#").startswith(("#", "data:,"))


def test_nothing_in_it_comes_from_elsewhere(run):
    html = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", html)


# Escaped


def test_hostile_labels_and_texts_stay_text(page, hostile):
    kinds = lambda found: {tag for tag, _ in found.elements}  # noqa: E731
    assert kinds(hostile) == kinds(page)
    assert len(hostile.all("script")) == len(page.all("script")) == 2
    assert not hostile.all("img")
    assert hostile.open == []
    for label in HOSTILE[:4]:
        assert label in hostile.text


def test_long_labels_are_cut_and_told_up_to_a_limit(hostile):
    assert "x" * 1000 not in hostile.text
    titles = [attributes["title"] for attributes in hostile.all("bdi") if "title" in attributes]
    assert titles
    assert max(map(len, titles)) <= 400


def test_text_that_turns_the_line_around_is_isolated(hostile):
    told = formats.words("\u202e drawkcab")
    assert told.startswith("<bdi>")
    assert told.endswith("</bdi>")
    assert "\u202e" in hostile.text


def test_no_text_ends_the_data_block():
    hostile = {"a": "</script><!--<script>\u2028&"}
    block = data_block(hostile)
    assert not set("<>&\u2028") & set(block)
    assert json.loads(block) == hostile


# What it says


def test_the_verdict_is_on_top(page):
    assert "Ready, with review of" in page.text
    assert page.text.index("Ready, with review") < page.text.index("How good it is")
    assert "It is right on more texts than the baseline, beyond chance." in page.text
    assert "Review the 20 most suspect labels before training again." in page.text


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("verdict", "Better than the baseline: +4.1 points of accuracy"),
        (
            "automation",
            "On validation at least 95.0 % of what is automated is right, with a confidence of 90 %",
        ),
        ("metrics.test.risk_coverage", "Try another threshold"),
        ("metrics.test.reliability", "Can its confidence be believed"),
        ("metrics.test.slices", "193 and more"),
        ("metrics.test.levels", "Each level of the labels"),
        ("audit", "Labels that look wrong"),
        ("audit.learning_curve", "Twice as many texts would likely bring about 1 point."),
        ("cost", "2 epochs instead of 5"),
        ("cost.energy_wh", "26.4 Wh"),
        ("parameters", "337,582 of 24,842,972 parameters were trained"),
        ("memory", "Peak predicted 3.62 GiB, measured 3.55 GiB, limit 4.00 GiB"),
        ("memory.restarts", "The process was started again at step 700"),
        ("long_texts", "truncate (chosen)2.0000.5000.2501.00 x"),
        ("imbalance", "weights (chosen)0.4800.270"),
        ("reload", "gave the same logits on 16 texts"),
        ("training", "the weights of step 1,200 were kept"),
        ("time", "22 min 58 s"),
        ("versions", "2.13.0"),
    ],
)
def test_each_block_is_told_and_can_be_absent(run, page, block, words):
    normal = lambda text: " ".join(text.replace("\N{NO-BREAK SPACE}", " ").split())  # noqa: E731
    assert normal(words) in normal(page.text)
    files = read_run_files(run)
    record = json.loads(json.dumps(files.record))
    *path, last = block.split(".")
    holder = record
    for key in path:
        holder = holder[key]
    for absent in ({key: value for key, value in holder.items() if key != last}, {**holder, last: None}):
        changed = _with(record, path, absent)
        without = Page(report_html(type(files)(changed, files.metrics, files.memory, files.predictions)))
        assert normal(words) not in normal(without.text)
        assert "Right on" in without.text or "Ready" in without.text


def _with(record, path, value):
    if not path:
        return value
    return {**record, path[0]: _with(record[path[0]], path[1:], value)}


def test_a_run_with_nothing_but_scores_is_reported(tmp_path, run):
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    metrics = record["metrics"]["validation"]
    kept = ("rows", "accuracy", "f1_macro", "ece", "per_class", "confusion")
    bare = {
        "labels": record["labels"],
        "metrics": {"validation": {key: metrics[key] for key in kept}},
    }
    (tmp_path / "run.json").write_text(json.dumps(bare), encoding="utf-8")
    found = page_of(tmp_path)
    assert "validation texts" in found.text
    assert "Right on" in found.text


def test_scores_of_the_test_rows_go_before_those_of_validation(page):
    assert "Accuracy on test" in page.text
    assert "Accuracy on validation" not in page.text


def test_confident_errors_come_surest_first_with_their_texts(run):
    rows = pl.read_parquet(run / "predictions.parquet").filter(pl.col("part") == "test")
    wrong = rows.filter(pl.col("label") != pl.col("predicted_label")).sort("confidence", descending=True)
    html = report_html(read_run_files(run))
    table = html[html.index("Confident errors, the most confident first") :]
    # As a spreadsheet counts: its first data row is row 2.
    assert table.index(f">{wrong['row'][0] + 2}<") < table.index(f">{wrong['row'][5] + 2}<")
    assert "as your spreadsheet program numbers them" in table
    assert "I wrote to them about my" in table


def test_texts_can_be_left_out_labels_stay(run, tmp_path):
    with_texts = page_of(run)
    without = page_of(run, texts=False)
    assert "I wrote to them" in with_texts.text
    assert "To whom it may concern" in with_texts.text
    assert "I wrote to them" not in without.text
    assert "To whom it may concern" not in without.text
    assert "Card: not received" in without.text


def test_a_run_may_itself_leave_texts_out(run, tmp_path):
    for path in run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    record["config"]["report_texts"] = False
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert "To whom it may concern" not in page_of(tmp_path).text
    assert "To whom it may concern" in page_of(tmp_path, texts=True).text


def test_the_page_can_be_written_elsewhere(run, tmp_path):
    path = write_report(run, tmp_path / "page.html")
    assert path == tmp_path / "page.html"
    assert path.read_text(encoding="utf-8") == report_html(read_run_files(run))


def test_rows_of_a_test_file_are_counted_from_zero(run):
    files = read_run_files(run)
    record = {**files.record, "config": {**files.record["config"], "test": "held_out.csv"}}
    html = report_html(replace(files, record=record))
    assert "Rows count the data rows of their file from 0" in html


def test_where_no_threshold_qualifies_nothing_is_called_chosen(run):
    files = read_run_files(run)
    nothing = {"coverage": 0.0, "precision": None, "interval": [0.0, 1.0]}
    automation = {**files.record["automation"], "threshold": 1.000001, "test": nothing}
    found = Page(report_html(replace(files, record={**files.record, "automation": automation})))
    assert "No threshold keeps that precision" in found.text
    assert "chosen threshold" not in found.text
    assert "a person looks at every text" in found.text
    assert "data-chosen" not in dict(found.all("input")[-1])


def test_the_quote_stands_beside_the_bill(run):
    files = read_run_files(run)
    quote = {"time_s": 1300.0, "train_s": 1200.0, "usd": 0.126, "confirmed": False}
    record = {**files.record, "cost": {**files.record["cost"], "quote": quote}}
    text = Page(report_html(replace(files, record=record))).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "Quoted before training: 21 min 40 s, 0.13 USD, 20 min 00 s of it training." in text
    assert "It took 22 min 54 s from there on, 21 min 00 s of it training." in text


def test_the_reason_that_leads_is_not_told_twice(run):
    files = read_run_files(run)
    verdict = {**files.record["verdict"], "reasons": [files.record["automation"]["sentence"], "Another."]}
    found = Page(report_html(replace(files, record={**files.record, "verdict": verdict})))
    assert found.text.count(files.record["automation"]["sentence"]) == 1


def test_tables_have_captions_and_pictures_have_words(page):
    captions, tables = len(page.all("caption")), len(page.all("table"))
    assert captions == tables > 8
    for picture in page.all("svg"):
        assert picture.get("role") != "img" or picture.get("aria-label")
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(headings))


def test_two_hundred_classes_and_ten_thousand_rows_stay_small(tmp_path):
    path = write_report(write_run(tmp_path, classes=200, rows=10_000))
    assert path.stat().st_size < 1_000_000


# Files that are not there, or not whole


def test_without_journals_and_rows_there_is_a_page(run, tmp_path):
    (tmp_path / "run.json").write_bytes((run / "run.json").read_bytes())
    found = page_of(tmp_path)
    assert "How it was trained" not in found.text
    assert "Sure, and wrong" not in found.text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserInputError, match="is no run"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "predictions.parquet"])
def test_a_broken_file_is_refused_in_a_sentence(run, tmp_path, name):
    for path in run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_text('{"half": ', encoding="utf-8")
    with pytest.raises(UserInputError, match="cannot be read"):
        write_report(tmp_path)
