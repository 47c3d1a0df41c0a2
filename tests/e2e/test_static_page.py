"""The static page in a real browser, from a plain file server: it answers as the run does, and asks nobody.

Driven by Playwright, in Debian's Chromium (``apt-get install chromium``); what the page runs on comes from
the npm registry.
"""

import functools
import http.server
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import FILLER, TOPICS, texts_and_labels
from snugtune.export import npm
from snugtune.export.export import export_run
from snugtune.export.static import CHECK_TEXTS
from snugtune.predict.predictor import Predictor
from trained import write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}
TEXTS = [
    *texts_and_labels(4, seed=5)[0],
    *CHECK_TEXTS[1:7],
    "<img src=x onerror='window.pwned = 1'> card </textarea><script>window.pwned = 1</script>",
    "the bank " * 60,
]
pytestmark = pytest.mark.slow


def word_pieces():
    """A tokenizer of BERT's kind whose words, letters and signs are 200 at most."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*dict.fromkeys(word for topic in TOPICS for word in topic.split()), *FILLER]
    tokens = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *map("##{}".format, letters)]
    tokens += [*"0123456789.,'<>/\u03c3\u03c2ß银行", *map("##{}".format, "0123456789\u03c3\u03c2")]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, unk_token="[UNK]", pad_token="[PAD]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory):
    """What the page runs on, fetched once into the tests' cache."""
    try:
        npm.copy_packages(tmp_path_factory.mktemp("packages"))
    except npm.RegistryError as error:
        pytest.skip(f"the npm registry is out of reach: {error}")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium to look at the page with: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def look(browser):
    """Opens an exported folder through a plain file server: the page, and what it asked for elsewhere."""
    ends = []

    def open_page(folder, size="desktop", scheme="light"):
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        ends.extend([context.close, server.shutdown, server.server_close])
        page = context.new_page()
        page.set_default_timeout(120_000)
        asked, complaints = [], []
        context.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.wait_for_selector("html[data-ready]", state="attached")
        own = (address, f"blob:{address}")
        return page, lambda: [url for url in asked if not url.startswith(own)], complaints

    yield open_page
    for end in ends:
        end()


def told(page, texts):
    """What the page computes of ``texts``: (N, K), and the whole answers."""
    answers = page.evaluate(
        "(texts) => Promise.all(texts.map((text) => snugtune.classify(text)))",
        texts,
    )
    return np.array([answer["probabilities"] for answer in answers]), answers


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("page"), "bert", tokenizer=word_pieces(), long_texts="windows")


@pytest.fixture(scope="module")
def page_folder(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "page"
    found = export_run(
        run, folder, to="static", examples=["card stolen, please help", "<b>fee</b> charged twice"]
    )
    assert found.agreement.changed_labels <= 1
    assert [(one.program, one.runs) for one in found.serving] == [("web browser", True)]
    return folder


def test_it_answers_as_the_run_does_and_asks_nobody_else(look, run, page_folder):
    page, elsewhere, complaints = look(page_folder)
    check = json.loads(page.evaluate("document.documentElement.dataset.check"))
    assert check["texts"] == len(CHECK_TEXTS)
    assert check["split"] == 0
    assert check["difference"] < 0.02
    predictor = Predictor.load(run)
    given, answers = told(page, TEXTS)
    np.testing.assert_allclose(given, predictor.probabilities([text.strip() for text in TEXTS]), atol=0.02)
    assert answers[-1]["rows"] > 10
    assert page.evaluate("window.pwned") is None
    assert elsewhere() == []
    assert complaints == []


def test_what_a_visitor_sees(look, page_folder):
    page, elsewhere, complaints = look(page_folder, "phone", "dark")
    page.locator("#examples button").nth(1).click()
    page.wait_for_selector("#answer:not([hidden])")
    assert page.input_value("#text") == "<b>fee</b> charged twice"
    assert page.inner_text("#label") == "Fees"
    assert page.locator("#bars li").count() == 3
    assert "person should look" in page.inner_text("#review") or "Nobody need look" in page.inner_text(
        "#review"
    )
    page.fill("#text", TEXTS[-1])
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#length:has-text('overlapping windows')")
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES["phone"][0]
    page.fill("#text", "   ")
    page.click("#classify")
    assert page.evaluate("document.activeElement.id") == "text"
    assert elsewhere() == []
    assert complaints == []


def test_the_policy_holds_in_page_and_worker(look, page_folder):
    page, elsewhere, _ = look(page_folder)
    refused = page.evaluate(
        """async () => {
          const tried = await fetch("https://elsewhere.invalid/").then(() => "let through", () => "refused");
          const code = "fetch('https://elsewhere.invalid/').then(() => postMessage('let through'), " +
            "() => postMessage('refused'))";
          const worker = new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
          return [tried, await new Promise((done) => { worker.onmessage = ({ data }) => done(data); })];
        }"""
    )
    assert refused == ["refused", "refused"]
    assert elsewhere() == []


def test_label_sets_and_a_baseline_that_is_not_there(look, tmp_path):
    run = write_run(tmp_path / "several", "bert", several=True, tokenizer=word_pieces())
    export_run(run, tmp_path / "page", to="static")
    page, elsewhere, complaints = look(tmp_path / "page")
    given, answers = told(page, TEXTS)
    predictor = Predictor.load(run)
    expected = predictor.probabilities([text.strip() for text in TEXTS])
    np.testing.assert_allclose(given, expected, atol=0.02)
    sets = predictor.label_sets(expected)
    same = [
        set(answer["given"]) == set(np.flatnonzero(labels))
        for answer, labels in zip(answers, sets.labels, strict=True)
    ]
    assert np.mean(same) > 0.8
    confidence = [answer["confidence"] for answer in answers]
    np.testing.assert_allclose(confidence, sets.confidence, atol=0.06)
    page.fill("#text", TEXTS[0])
    page.click("#classify")
    page.wait_for_selector("#answer:not([hidden])")
    assert page.locator("#bars .mark").count() == 3
    assert elsewhere() == []
    assert complaints == []
