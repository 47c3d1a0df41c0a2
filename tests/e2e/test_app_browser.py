"""The web app in a real browser: it says what `predict` says, and review goes by the keyboard alone."""

import json
import sqlite3
import subprocess
import sys
import time

import httpx
import openpyxl
import polars as pl
import pytest

from serving import eventually
from snugtune.data.reviews import read_reviews
from snugtune.predict.predictor import Predictor
from trained import change_record, write_run

HOSTILE = "<img src=x onerror=alert(1)> Card"
PASSWORD = "a long password"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("shown"), "bert")
    decision = {"confidence_threshold": 1.1}  # everything is for a person
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    change_record(run, decision=record["decision"] | decision)
    return run


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "may.xlsx"
    texts = [f"card number {i} is lost" for i in range(5)] + [HOSTILE]
    pl.DataFrame({"text": texts, "id": range(6)}).write_excel(path)
    return path


@pytest.fixture(scope="module")
def app(run, table, tmp_path_factory):
    """The address of the app, and its reviews."""
    folder = tmp_path_factory.mktemp("app")
    reviews = folder / "reviews.db"
    with opened(run, "--reviews", reviews, "--queue", table) as address:
        yield address, reviews


class opened:  # noqa: N801  # used as a function
    """`snugtune app` in a process of its own."""

    def __init__(self, run, *arguments):
        self.command = [
            sys.executable,
            "-m",
            "snugtune",
            "app",
            str(run),
            "--port",
            "0",
            *map(str, arguments),
        ]

    def __enter__(self):
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for line in self.process.stdout:
            word = next((word for word in line.split() if word.startswith("http")), None)
            if word is not None:
                self._wait(word)
                return word.rstrip("/")
        self.__exit__()
        raise AssertionError("the app did not start")

    def _wait(self, address):
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            try:
                httpx.get(address, timeout=5)
                return
            except httpx.HTTPError:
                time.sleep(0.2)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture
def visit(browser, app):
    """Opens a page by itself; nothing but the app is asked, and nothing is complained of."""
    contexts, complaints = [], []
    address, _ = app

    def go(path="", size=(1440, 900)):
        context = browser.new_context(viewport={"width": size[0], "height": size[1]})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: complaints.append(request.url) if _elsewhere(request.url, address) else None,
        )
        page.goto(address + path)
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []


def _elsewhere(url, address):
    return not url.startswith((address, "data:", "blob:"))


def test_a_text_that_is_tried_gets_what_predict_says(visit, run):
    expected = Predictor.load(run).columns([HOSTILE]).row(0, named=True)
    page = visit()
    page.fill("#try-text textarea", HOSTILE)
    page.click("#try-button")
    page.wait_for_selector(".sn-words")
    shown = page.inner_text("body")
    assert expected["predicted_label"] in shown
    assert f"{100 * expected['confidence']:.1f} %" in shown
    assert HOSTILE.split(" Card", maxsplit=1)[0] in shown  # as text


def test_a_workbook_comes_back_with_its_columns(visit, run, table, tmp_path):
    page = visit("/?tab=batch")
    page.wait_for_selector("#batch-file")
    page.set_input_files("#batch-file input[type=file]", str(table))
    page.wait_for_selector("#batch-columns")
    page.wait_for_timeout(500)
    page.click("#batch-button")
    page.wait_for_selector("#batch-result .sn-card")
    with page.expect_download() as waiting:
        page.click("text=Download")
    done = tmp_path / "done.xlsx"
    waiting.value.save_as(done)
    sheet = openpyxl.load_workbook(done)[openpyxl.load_workbook(done).sheetnames[0]]
    header = [cell.value for cell in sheet[1]]
    assert header[:3] == ["text", "id", "predicted_label"]
    texts = [row[0].value for row in sheet.iter_rows(min_row=2)]
    expected = Predictor.load(run).columns(texts)["predicted_label"].to_list()
    assert [row[2].value for row in sheet.iter_rows(min_row=2)] == expected


def begin(page, name):
    page.fill("#name", name)
    page.press("#name", "Enter")
    page.wait_for_selector("#item:not([hidden])")
    page.wait_for_timeout(300)
    return page.inner_text("#item")


def test_two_people_review_by_keyboard_without_getting_the_same_text(visit, app):
    _, reviews = app
    ana, ben = visit("/review"), visit("/review", (390, 844))
    first, second = begin(ana, "Ana"), begin(ben, "Ben")
    assert first != second
    ana.keyboard.press("2")
    ana.keyboard.press("Enter")
    ana.wait_for_function("before => document.getElementById('item').innerText !== before", arg=first)
    eventually(lambda: len(decisions(reviews)) == 1)
    ana.wait_for_timeout(300)
    after = ana.inner_text("#item")
    ana.keyboard.press("u")
    ana.wait_for_function("before => document.getElementById('item').innerText !== before", arg=after)
    eventually(lambda: decisions(reviews) == [])
    with sqlite3.connect(reviews) as store:  # what was done is still there
        kinds = [kind for (kind,) in store.execute("SELECT kind FROM decisions ORDER BY rowid")]
    assert len(kinds) == 2
    assert kinds[1] == "undo"
    assert ben.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")


def decisions(path):
    return list(read_reviews(path))


def test_a_password_is_asked_for_where_there_is_one(run, tmp_path):
    secret = tmp_path / "password"
    secret.write_text(PASSWORD, encoding="utf-8")
    with (
        opened(run, "--no-review", "--password-file", secret) as address,
        httpx.Client(base_url=address) as client,
    ):
        for path in ("/", "/report", "/gradio_api/info", "/config"):
            assert client.get(path).status_code in (303, 307, 401, 403), path
        wrong = client.post("/login", data={"password": "wrong"}, headers={"origin": address})
        assert "set-cookie" not in wrong.headers
        right = client.post("/login", data={"password": PASSWORD}, headers={"origin": address})
        assert "set-cookie" in right.headers
        assert client.get("/").status_code == 200


def test_others_cannot_reach_it_without_a_password(run):
    command = [sys.executable, "-m", "snugtune", "app", str(run), "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "password" in done.stderr
    assert "Traceback" not in done.stderr


ATTACKS = {
    "script": "<script>alert(1)</script> card lost",
    "image": "<img src=x onerror=alert(1)> card",
    "attribute": '" onmouseover="alert(1)" x="',
    "template": "${alert(1)} `${1}` {{ 7 * 7 }} {% raw %} card",
    "link": "[card](javascript:alert(1)) javascript:alert(1)",
    "bidi": "card \u202egnorw si sihT\u202c \u2066left\u2069 \u200f",
    "marks": "Z\u0300\u0301\u0302\u0303" * 200,
    "end": "</textarea></div></script><!-- ]]>",
}


@pytest.fixture(scope="module")
def attacked(run, tmp_path_factory):
    """The address of an app whose queue holds nothing but hostile texts, and the table they come from."""
    folder = tmp_path_factory.mktemp("attacked")
    table = folder / "<b>hostile&amp;.csv"
    texts = [*ATTACKS.values(), "card \x1b[31m lost", "card " * 200_000]
    pl.DataFrame({"text": texts, "<img src=x onerror=alert(1)>": range(len(texts))}).write_csv(table)
    limits = ["--max-upload-mb", 2, "--max-rows", len(texts)]
    with opened(run, "--reviews", folder / "reviews.db", "--queue", table, *limits) as address:
        yield address, table, texts


@pytest.fixture
def look(browser, attacked):
    """Opens a page of that app; fails if anything of a text ran, asked for something or became an element."""
    address, complaints = attacked[0], []
    context = browser.new_context(viewport={"width": 1200, "height": 900})

    def go(path):
        page = context.new_page()
        page.set_default_timeout(90_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: complaints.append(request.url) if _elsewhere(request.url, address) else None,
        )
        page.goto(address + path)
        return page

    yield go
    for page in context.pages:
        assert page.locator("img[src=x], [onmouseover]").count() == 0
    context.close()
    assert complaints == []


@pytest.mark.long
def test_hostile_texts_are_only_texts_where_they_are_tried(look):
    page = look("/")
    for name, text in ATTACKS.items():
        page.fill("#try-text textarea", text)
        page.click("#try-button")
        told = "text => document.querySelector('.sn-words')?.textContent === text"
        page.wait_for_function(told, arg=text)
        assert page.locator(".sn-words script").count() == 0, name


@pytest.mark.long
def test_what_is_too_long_to_try_is_refused_in_words(look):
    page = look("/")
    # As a script would send it: the field itself takes no more than its limit.
    page.wait_for_selector("#try-text textarea")
    page.evaluate("document.querySelector('#try-text textarea').removeAttribute('maxlength')")
    page.fill("#try-text textarea", "card " * 200_000)
    page.click("#try-button")
    page.wait_for_selector("#try-result .sn-note.bad")
    assert "20,000 characters" in page.inner_text("#try-result")
    page.fill("#try-text textarea", "card\x00 lost")
    page.click("#try-button")
    page.wait_for_selector(".sn-words")


@pytest.mark.long
def test_a_hostile_table_comes_back_as_it_was(look, attacked, tmp_path):
    _, table, texts = attacked
    page = look("/?tab=batch")
    page.wait_for_selector("#batch-file")
    page.set_input_files("#batch-file input[type=file]", str(table))
    page.wait_for_selector("#batch-columns")
    page.wait_for_timeout(500)
    page.click("#batch-button")
    page.wait_for_selector("#batch-result .sn-card")
    with page.expect_download() as waiting:
        page.click("text=Download")
    done = tmp_path / "done.csv"
    waiting.value.save_as(done)
    frame = pl.read_csv(done)
    assert frame.columns[:2] == ["text", "<img src=x onerror=alert(1)>"]
    assert frame["text"].to_list() == texts


@pytest.mark.long
def test_hostile_texts_are_only_texts_where_they_are_reviewed(look, attacked):
    _, _, texts = attacked
    page, seen = look("/review"), set()
    begin(page, "<b>Ana</b>")
    for _ in texts:
        shown = page.evaluate("document.getElementById('text').textContent")
        seen.add(shown.strip())
        page.keyboard.press("s")
        page.wait_for_function(
            "before => document.getElementById('item').hidden"
            " || document.getElementById('text').textContent !== before",
            arg=shown,
        )
        if page.evaluate("document.getElementById('item').hidden"):
            break
        page.wait_for_timeout(300)
    assert {text.strip() for text in ATTACKS.values()} <= seen
    assert any(len(text) > 10_000 for text in seen)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    assert page.inner_text("#me") == "<b>Ana</b>"


@pytest.mark.long
def test_a_table_that_is_too_large_or_too_long_is_refused(look, attacked, tmp_path):
    _, _, texts = attacked
    long = tmp_path / "long.csv"
    pl.DataFrame({"text": [f"card {i}" for i in range(len(texts) + 1)]}).write_csv(long)
    page = look("/?tab=batch")
    page.wait_for_selector("#batch-file")
    page.set_input_files("#batch-file input[type=file]", str(long))
    page.wait_for_selector("#batch-columns")
    page.wait_for_timeout(500)
    page.click("#batch-button")
    page.wait_for_selector("#batch-result .sn-note.bad")
    assert f"{len(texts) + 1} rows and this page takes {len(texts)}" in page.inner_text("#batch-result")
    damaged = tmp_path / "damaged.csv"
    damaged.write_bytes(b"text\ncard \x00 lost\n")
    page = look("/?tab=batch")
    page.wait_for_selector("#batch-file")
    page.set_input_files("#batch-file input[type=file]", str(damaged))
    page.wait_for_selector("#batch-result .sn-note.bad")
    assert "damaged.csv, line 2 contains a NUL byte" in page.inner_text("#batch-result")
    large = tmp_path / "large.csv"
    large.write_text("text\n" + "card\n" * 600_000, encoding="utf-8")  # 3 MB
    page = look("/?tab=batch")
    page.wait_for_selector("#batch-file")
    page.set_input_files("#batch-file input[type=file]", str(large))
    page.wait_for_selector("text=/maximum allowed size|too large/i")
    assert page.locator("#batch-button").is_disabled()
