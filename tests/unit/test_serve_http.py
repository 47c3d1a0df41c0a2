"""What goes over the wire, without a socket: formats, limits, errors, the key; it is `predict`'s answer."""

import asyncio
import json
import shutil

import numpy as np
import pytest

from families import LABELS, texts_and_labels
from serving import Service
from snugtune.evaluate.baseline import TfidfBaseline
from snugtune.predict.predictor import Predictor
from snugtune.serve.refusal import failed
from snugtune.serve.server import until_broken
from snugtune.serve.settings import Limits
from trained import change_record, write_run

TEXTS = [*texts_and_labels(12)[0], "", "?! \u0130 \U0001f600 <script>alert(1)</script>"]
LONG = " ".join(texts_and_labels(12)[0])
KEY = b"a-key-of-some-length"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("one"), "bert")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, run):
    """The same run with the baseline in its decision, and a threshold that some texts do not reach."""
    folder = tmp_path_factory.mktemp("mixed") / "run"
    shutil.copytree(run, folder)
    texts, y = texts_and_labels(90)
    TfidfBaseline().fit(texts, np.array(y), len(LABELS)).save(folder / "baseline")
    decision = json.loads((run / "run.json").read_text(encoding="utf-8"))["decision"]
    decision["mixture"]["weight"] = 0.4
    decision["confidence_threshold"] = float(np.median(Predictor.load(run).probabilities(TEXTS).max(1)))
    change_record(folder, decision=decision)
    return folder


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("several"), "bert", several=True)


@pytest.fixture(scope="module")
def service(run, mixed, several):
    limits = Limits(max_client_batch_size=20, payload_limit=20_000, timeout_s=20.0)
    found = Service({"one": run, "mixed": mixed, "several": several}, limits=limits)
    yield found
    found.close()


# --- formats -------------------------------------------------------------------------------------


def test_one_text_gives_a_list_of_all_labels_the_highest_first(service):
    answer = service.post("/predict", {"inputs": TEXTS[0]})
    assert answer.status_code == 200
    scores = [row["score"] for row in answer.json()]
    assert sorted(row["label"] for row in answer.json()) == sorted(LABELS)
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1.0)
    assert {"x-compute-tokens", "x-compute-time", "x-queue-time", "x-inference-time"} <= set(answer.headers)


def test_a_batch_is_a_list_of_lists_and_two_strings_are_a_pair(service):
    batch = service.post("/predict", {"inputs": [["a b"], ["c d"]]}).json()
    assert [len(rows) for rows in batch] == [len(LABELS)] * 2
    pair = service.post("/predict", {"inputs": ["a b", "c d"]}).json()
    alone = service.post("/predict", {"inputs": "a b\nc d"}).json()
    assert scores_of(pair) == pytest.approx(scores_of(alone), abs=1e-6)
    in_batch = service.post("/predict", {"inputs": [["a b", "c d"], ["c d"]]}).json()
    assert scores_of(in_batch[0]) == pytest.approx(scores_of(alone), abs=1e-6)


def test_raw_scores_are_the_logits(service, run):
    predictor = Predictor.load(run)
    (logits,) = predictor.logits(predictor.tokens([TEXTS[0]]))
    rows = service.post("/predict", {"inputs": TEXTS[0], "raw_scores": True}).json()
    told = {row["label"]: row["score"] for row in rows}
    assert [told[name] for name in LABELS] == pytest.approx(logits.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", ["one", "mixed"])
def test_answers_are_those_of_predict(service, request, name):
    run = {"one": "run", "mixed": "mixed"}[name]
    expected = Predictor.load(request.getfixturevalue(run)).columns(TEXTS)
    answer = service.post("/v1/classify", {"inputs": TEXTS, "top_k": 2, "model": name}).json()
    results = answer["results"]
    assert [row["label"] for row in results] == expected["predicted_label"].to_list()
    assert [row["confidence"] for row in results] == pytest.approx(expected["confidence"].to_list(), abs=1e-5)
    assert [row["needs_review"] for row in results] == expected["needs_review"].to_list()
    assert [row["top"][1]["label"] for row in results] == expected["second_label"].to_list()
    if name == "mixed":
        assert set(expected["needs_review"]) == {True, False}


def test_several_labels_are_those_of_predict(service, several):
    expected = Predictor.load(several).columns(TEXTS)
    results = service.post("/v1/classify", {"inputs": TEXTS, "model": "several"}).json()["results"]
    assert [row["label"] or None for row in results] == [cell or None for cell in expected["predicted_label"]]
    assert [row["confidence"] for row in results] == pytest.approx(expected["confidence"].to_list(), abs=1e-5)
    assert [row["needs_review"] for row in results] == expected["needs_review"].to_list()


def test_a_threshold_may_be_asked_for(service):
    never = service.post("/v1/classify", {"inputs": TEXTS[:2], "threshold": 0.0}).json()
    always = service.post("/v1/classify", {"inputs": TEXTS[:2], "threshold": 1.1}).json()
    assert [row["needs_review"] for row in (*never["results"], *always["results"])] == [False] * 2 + [
        True
    ] * 2
    assert (never["threshold"], always["threshold"]) == (0.0, 1.1)


def test_models_are_asked_by_name(service):
    default = service.post("/predict", {"inputs": TEXTS[0]}).json()
    by_field = service.post("/predict", {"inputs": TEXTS[0], "model": "mixed"}).json()
    by_path = service.post("/models/mixed/predict", {"inputs": TEXTS[0]}).json()
    assert scores_of(by_field) == pytest.approx(scores_of(by_path), abs=1e-6)
    assert scores_of(by_field) != pytest.approx(scores_of(default), abs=1e-3)
    listed = service.get("/models").json()["models"]
    assert [(line["name"], line["default"]) for line in listed] == [
        ("one", True), ("mixed", False), ("several", False)
    ]  # fmt: skip
    assert service.post("/predict", {"inputs": "a", "model": "none"}).status_code == 404


def test_info_and_health_and_docs(service):
    info = service.get("/info").json()
    assert info["model_type"]["classifier"]["id2label"] == {str(k): name for k, name in enumerate(LABELS)}
    assert (info["max_input_length"], info["max_client_batch_size"]) == (10, 20)
    assert service.get("/models/several/info").json()["several_labels"] is True
    assert service.get("/health").status_code == 200
    page = service.get("/docs")
    assert "/v1/classify" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://127.0.0.1", "")


# --- limits and errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"inputs": []}, 400, "Empty"),
        ({"inputs": [["a"]] * 21}, 413, "Validation"),
        ({"inputs": 3}, 422, "Validation"),
        ({"inputs": ["a", "b", "c"]}, 422, "Validation"),
        ({}, 422, "Validation"),
        ({"inputs": LONG, "truncate": False}, 413, "Validation"),
        ({"inputs": "a", "truncation_direction": "Up"}, 422, "Validation"),
        (b'{"inputs": ', 400, "Validation"),
        (b'{"inputs": "' + b"a" * 30_000 + b'"}', 413, "Validation"),
    ],
)
def test_what_cannot_be_answered(service, body, status, kind):
    answer = service.post("/predict", body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
    assert answer.json()["error"]


def test_long_texts_are_cut_at_the_side_that_is_asked_for(service):
    first, last = TEXTS[0], TEXTS[1]
    text = f"{first} {'x ' * 20}{last}"
    right = service.post("/predict", {"inputs": text}).json()
    left = service.post("/predict", {"inputs": text, "truncation_direction": "Left"}).json()
    assert right != left


def test_another_kind_of_body_is_refused(service):
    answer = service.post("/predict", {"inputs": "a"}, headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    assert service.get("/nowhere").status_code == 404
    assert service.get("/predict").status_code == 405


def test_one_bad_item_fails_alone(service, monkeypatch):
    engine = service.models.get("one").engine
    whole = type(engine).answers

    def answers(self, texts):
        if any(len(text.rows[0]) == bad for text in texts):
            if len(texts) > 1:
                raise RuntimeError("all of them")
            return [failed("this one")]
        return whole(self, texts)

    (prepared,) = engine.prepare(["zq zq zq zq"], _reading(), max_text_tokens=10)
    bad = len(prepared.rows[0])
    lengths = [len(one.rows[0]) for one in engine.prepare(TEXTS, _reading(), max_text_tokens=10)]
    good = [text for text, length in zip(TEXTS, lengths, strict=True) if length != bad][:3]
    monkeypatch.setattr(type(engine), "answers", answers)
    results = service.post("/v1/classify", {"inputs": [good[0], "zq zq zq zq", *good[1:]]}).json()["results"]
    assert ["error" in row for row in results] == [False, True, False, False]
    assert service.post("/predict", {"inputs": [[good[0]], ["zq zq zq zq"]]}).status_code == 424


def scores_of(rows):
    return {row["label"]: row["score"] for row in rows}


def _reading():
    from snugtune.serve.engine import Reading

    return Reading()


def test_past_the_queue_is_429(run):
    service = Service({"one": run}, limits=Limits(max_concurrent_requests=2))

    async def ask(client):
        posts = (client.post("/predict", json={"inputs": "a b c"}) for _ in range(6))
        return await asyncio.gather(*posts)

    try:
        answers = service.run(ask)
        codes = sorted(answer.status_code for answer in answers)
        assert set(codes) == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error_type"] == "Overloaded"
        assert service.post("/predict", {"inputs": "a b c"}).status_code == 200  # and it recovers
    finally:
        service.close()


def test_no_key_no_answer(run):
    service = Service({"one": run}, key=KEY)
    try:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY.decode()}"}):
            answer = service.post("/predict", {"inputs": "a"}, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/info", "/metrics", "/models", "/openapi.json", "/docs"):
            assert service.get(path).status_code == 401
        assert service.get("/health").status_code == 200
        right = {"authorization": f"Bearer {KEY.decode()}"}
        assert service.post("/predict", {"inputs": "a"}, headers=right).status_code == 200
    finally:
        service.close()


def test_metrics_count_what_happened(service):
    before = service.get("/metrics").text
    service.post("/predict", {"inputs": "a b"})
    after = service.get("/metrics").text

    def count(page):
        line = next(
            line for line in page.splitlines() if line.startswith('te_request_count_total{method="single"')
        )
        return float(line.rsplit(" ", 1)[1])

    assert count(after) == count(before) + 1
    assert TEXTS[0].split()[0] not in after  # nothing of a text


def test_nothing_is_taken_on_while_shutting_down(run):
    service = Service({"one": run})
    try:
        service.state.draining = True
        answer = service.post("/predict", {"inputs": "a"})
        assert answer.status_code == 503
        assert service.get("/health").status_code == 503
    finally:
        service.close()


class Failing:
    """Models that fail their checks as told; the first failure is known already."""

    def __init__(self, *outcomes):
        self.outcomes, self.healthy = list(outcomes), False

    async def check(self):
        self.healthy = self.outcomes.pop(0)


def test_a_model_that_stays_broken_ends_the_server_and_one_that_recovers_does_not():
    broken = Failing(False, False, False)
    asyncio.run(asyncio.wait_for(until_broken(broken, every_s=0.001), 10))
    assert broken.outcomes == []
    recovers = Failing(False, False, True)
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(asyncio.wait_for(until_broken(recovers, every_s=0.001), 0.5))
    assert recovers.healthy


# --- a new run -------------------------------------------------------------------------------------


def test_a_new_run_takes_over_and_a_broken_one_does_not(tmp_path, run, mixed):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    service = Service({"one": folder})
    try:
        ask = {"inputs": TEXTS[0]}
        first = service.post("/predict", ask).json()
        model = service.models.get("one")
        assert service.run(lambda _client: model.look()) is None
        shutil.rmtree(folder)
        shutil.copytree(mixed, folder)
        assert "now serving" in service.run(lambda _client: model.look())
        second = service.post("/predict", ask).json()
        assert scores_of(second) != pytest.approx(scores_of(first), abs=1e-3)
        change_record(folder, labels=["only"])
        assert "the old one goes on" in service.run(lambda _client: model.look())
        assert scores_of(service.post("/predict", ask).json()) == pytest.approx(scores_of(second), abs=1e-6)
        assert 'outcome="failed"' in service.get("/metrics").text
    finally:
        service.close()
