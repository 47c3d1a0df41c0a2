"""The static page in a real browser, from a plain file server: it answers as the run does, and asks nobody.

Driven by Playwright, in Debian's Chromium (``apt-get install chromium``); what the page runs on comes from
the npm registry.
"""

import functools
import http.server
import itertools
import json
import struct
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import FILLER, LABELS, TOPICS, texts_and_labels
from snugtune.errors import UserInputError
from snugtune.evaluate.calibration import softmax
from snugtune.evaluate.decision import Decision
from snugtune.evaluate.mixing import Mixture
from snugtune.evaluate.multilabel.decision import LabelSetDecision, SigmoidMap
from snugtune.evaluate.scaling import Calibration
from snugtune.export import npm
from snugtune.export.export import export_run
from snugtune.export.static import CHECK_TEXTS, page_decision, page_notes
from snugtune.export.tables import normalizer_table, word_table
from snugtune.predict.agreement import ROUNDED
from snugtune.predict.predictor import Predictor
from trained import write_run

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


def check_close(given, expected):
    """Within what an export in 8-bit integers may differ by; the browser's products are in float32."""
    difference = np.abs(given - expected).max(axis=1)
    assert difference.mean() <= ROUNDED.mean_difference
    assert difference.max() < 0.05


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
    assert check["difference"] < 0.05
    predictor = Predictor.load(run)
    given, answers = told(page, TEXTS)
    check_close(given, predictor.probabilities([text.strip() for text in TEXTS]))
    assert answers[-1]["rows"] > 10
    assert page.evaluate("window.pwned") is None
    assert elsewhere() == []
    assert complaints == []


def test_what_a_visitor_sees(look, page_folder):
    page, elsewhere, complaints = look(page_folder, "phone", "dark")
    page.locator("#examples button").nth(1).click()
    page.wait_for_selector("#answer:not([hidden])")
    assert page.input_value("#text") == "<b>fee</b> charged twice"
    ((probabilities,), _) = told(page, ["<b>fee</b> charged twice"])
    assert page.inner_text("#label") == LABELS[probabilities.argmax()]
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


def test_label_sets(look, tmp_path):
    run = write_run(tmp_path / "several", "roberta", several=True, tokenizer=word_pieces())
    export_run(run, tmp_path / "page", to="static")
    page, elsewhere, complaints = look(tmp_path / "page")
    given, answers = told(page, TEXTS)
    predictor = Predictor.load(run)
    expected = predictor.probabilities([text.strip() for text in TEXTS])
    check_close(given, expected)
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


def random_decisions(rng, K):
    """Decisions of every kind that a run may have stored, as the page gets them."""
    prior = tuple(rng.dirichlet(np.ones(K)).tolist())
    row = lambda: tuple(rng.normal(size=K).tolist())  # noqa: E731
    beta = (0.7, 1.3, -0.2)
    maps = [
        Calibration(temperature=1.7),
        Calibration(temperature=0.8, confidence=beta),
        Calibration("vector", 1.2, scale=row(), offset=row(), confidence=beta),
        Calibration("dirichlet", 1.2, matrix=tuple(row() for _ in range(K)), offset=row()),
    ]
    mixtures = [
        Mixture(temperature_a=1.4),
        Mixture(tau=0.5, trained_tau=0.25, class_prior=prior, temperature_a=0.6),
    ]
    for mixture, calibration in itertools.product(mixtures, maps):
        yield Decision(mixture, 0.8, 0.95, calibration=calibration)
    for at_least_one in (True, False):
        yield LabelSetDecision(
            SigmoidMap(1.4, -0.3), SigmoidMap(), SigmoidMap(0.9, 0.1), 0.0,
            tuple(rng.uniform(0.2, 0.9, K)), None,
            at_least_one, beta, 0.8, 0.95,
        )  # fmt: skip


def test_answers_are_pythons_for_every_kind_of_decision(look, page_folder):
    page, _, _ = look(page_folder)
    rng, K = np.random.default_rng(0), 5
    logits = (3 * rng.standard_normal((40, K))).astype(np.float32)
    logits[0] = [80, -80, 0, 0, 0]
    logits[1] = 0
    for decision in random_decisions(rng, K):
        found = page.evaluate(
            """async ([logits, decision]) => {
              const { answer } = await import("./answers.js");
              return logits.map((row) => answer(row, decision));
            }""",
            [logits.tolist(), decision.as_dict()],
        )
        expected = decision.probabilities(logits)
        np.testing.assert_allclose([one["probabilities"] for one in found], expected, rtol=1e-9, atol=1e-12)
        if isinstance(decision, LabelSetDecision):
            sets = decision.predict(expected)
            labels, sure = sets.labels, sets.confidence
        else:
            labels, sure = np.eye(K, dtype=bool)[expected.argmax(1)], expected.max(1)
        given = np.zeros_like(labels)
        for i, one in enumerate(found):
            given[i, one["given"]] = True
        np.testing.assert_array_equal(given[2:], labels[2:])
        np.testing.assert_allclose([one["confidence"] for one in found], sure, rtol=1e-9, atol=1e-12)


def charsmap(images):
    """SentencePiece's compiled rules: a double-array trie of the keys' bytes, and the images."""
    root, blob = {}, b""
    for key, image in sorted(images.items()):
        node = root
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[None] = len(blob)
        blob += image.encode() + b"\0"
    units, used, waiting = {}, {0}, [(root, 0, 0)]
    while waiting:
        node, place, byte = waiting.pop(0)
        children = [child for child in node if child is not None]
        wanted = [*([0] if None in node else []), *children]
        base = next(b for b in itertools.count(1) if all(b ^ child not in used for child in wanted))
        used.update(base ^ child for child in wanted)
        units[place] = (base ^ place) << 10 | (256 if None in node else 0) | byte
        if None in node:
            units[base] = 1 << 31 | node[None]
        waiting += [(node[child], base ^ child, child) for child in children]
    flat = [units.get(i, 0) for i in range(max(units) + 256)]
    return struct.pack(f"<I{len(flat)}I", 4 * len(flat), *flat) + blob


def odd_texts(rows):
    pool = [
        "a", "Z", "fee", "card", "\u00e9", "e\u0301", "\u00fc", "\u1e9e", "\u0130", "\ufb01", "\u03a3",
        "\u03c2", "银行", "カード", "한국", "العربية", "עברית", "हिन्दी", "ไทย", "🧾", "👩\u200d👧", "🇩🇪",
        "\u200b", "\ufeff", "\u00ad", "\u0007", "\u0085", "\t", "\n", "\u00a0", "\u3000", "  ",
        "<s>", "<mask>", "&amp;", "don't", "\u2014", "12,345.67", "\U0001d49c", "𠀀", "\u2460", "\u00bd",
        "\u202e", "\u2028", "http://x.y/z?q=1",
        "[CLS]", "\u0345",
    ]  # fmt: skip
    rng = np.random.default_rng(1)
    return [("".join(rng.choice(pool, rng.integers(1, 9))) + " end").strip() for _ in range(rows)]


def other_tokenizers(texts):
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    options = {"vocab_size": 400, "special_tokens": special, "show_progress": False}
    bytewise = Tokenizer(models.BPE())
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.train_from_iterator(
        texts, trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    )
    images = {
        "\u00a0": " ",
        "\u3000": " ",
        "\u0007": "",
        "\ufb01": "fi",
        "\u2460": "1",
        "e\u0301": "\u00e9",
        "\u200b": " ",
    }
    pieces = Tokenizer(models.Unigram())
    pieces.normalizer = normalizers.Precompiled(charsmap(images))
    assert pieces.normalizer.normalize_str("e\u0301 \ufb01\u00a0\u0007x") == "\u00e9 fi x"
    pieces.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    pieces.train_from_iterator(texts, trainers.UnigramTrainer(unk_token="<unk>", **options))
    yield from (word_pieces().backend_tokenizer, bytewise, pieces)


def test_tokens_are_rusts_for_every_kind_of_tokenizer(look, page_folder):
    page, _, _ = look(page_folder)
    texts = odd_texts(400)
    for tokenizer in other_tokenizers(texts):
        tables = {"normalizer": normalizer_table(tokenizer, texts), "words": word_table(tokenizer)}
        assert (tables["words"] is None) == (type(tokenizer.model).__name__ != "WordPiece")
        expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        found = page.evaluate(
            """async ([description, tables, texts]) => {
              const { makeTokenizer } = await import("./tokens.js");
              const rows = makeTokenizer(description, { before: [], after: [], max_length: 1e6 }, tables);
              return texts.map((text) => rows(text).rows[0]);
            }""",
            [json.loads(tokenizer.to_str()), tables, texts],
        )
        wrong = [text for text, ours, theirs in zip(texts, found, expected, strict=True) if ours != theirs]
        assert wrong == []


def test_what_a_page_cannot_do_is_refused_or_said(run, tmp_path):
    with pytest.raises(UserInputError, match=r"has a part \(WordLevel\) by which a browser would not split"):
        export_run(write_run(tmp_path / "words", "bert"), tmp_path / "page", to="static")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    record["decision"]["mixture"] = Mixture(weight=0.4, temperature=2.0, temperature_a=1.3).as_dict()
    record["decision"]["calibration"] = Calibration(temperature=3.0).as_dict()
    alone = page_decision(record)
    logits = np.array([[2.0, 0.5, -1.0]], dtype=np.float32)
    np.testing.assert_allclose(alone.probabilities(logits), softmax(logits, 1.3))
    assert "share of 40 %" in page_notes(record)[0]
    assert "does not say which texts a person should look at" in page_notes(record)[1]
