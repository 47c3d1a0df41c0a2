"""The review store: append-only, one item for one person, undo, progress; and its exports."""

import csv
import io
import json
import sqlite3
import threading

import pytest

from reviewing import ANA, BEN, LABELS, decide_all, prediction, store_with
from snugtune.data.reviews import read_reviews
from snugtune.errors import UserInputError
from snugtune.serve.web import reviews
from snugtune.serve.web.exports import as_argilla, as_csv, as_label_studio
from snugtune.serve.web.reviews import LISTED, Filter, Person, ReviewStore, TakenError


@pytest.fixture
def store(tmp_path):
    return store_with(tmp_path / "reviews.db", ["first", "second", "third", "100 % sure_thing"])


def test_two_people_get_two_texts(store):
    mine, theirs = store.next(ANA), store.next(BEN)
    assert (mine["text"], theirs["text"]) == ("first", "second")
    with pytest.raises(TakenError, match="Ben is looking"):
        store.decide(ANA, theirs["id"], ["Card"])
    with pytest.raises(TakenError, match="Ana is looking"):
        store.take(BEN, mine["id"])


def test_a_page_that_is_loaded_anew_gets_its_text_back(store):
    item = store.take(ANA, store.listed(Filter())[0][2]["id"])
    assert store.next(ANA)["id"] == item["id"]


def test_many_people_at_once_never_share_a_text(tmp_path):
    texts = [f"text {i}" for i in range(24)]
    store = store_with(tmp_path / "reviews.db", texts)

    def work(n):
        person = Person(f"P{n}", f"{n}" * 8)
        while item := store.next(person):
            store.decide(person, item["id"], ["Fees"])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    decided = [row["text"] for row in store.standing()]
    assert sorted(decided) == sorted(texts)
    with sqlite3.connect(store.path) as database:
        assert database.execute("SELECT count(*) FROM decisions").fetchone() == (len(texts),)


def test_a_lease_runs_out(store, monkeypatch):
    item = store.next(ANA)
    assert store.keep(ANA, item["id"])
    now = reviews.time.time()
    monkeypatch.setattr(reviews.time, "time", lambda: now + reviews.LEASE_S + 1)
    assert store.next(BEN)["id"] == item["id"]
    assert not store.keep(ANA, item["id"])
    store.decide(BEN, item["id"], ["Loan"])
    with pytest.raises(TakenError, match="Ben has decided"):
        store.decide(ANA, item["id"], ["Card"])


def test_a_closed_page_gives_its_text_back(store):
    item = store.next(ANA)
    store.release(ANA.session)
    assert store.next(BEN)["id"] == item["id"]


def test_what_is_decided_is_accepted_or_changed(store):
    first = store.next(ANA)
    store.decide(ANA, first["id"], ["Card"])
    second = store.next(ANA)
    store.decide(ANA, second["id"], ["Loan"])
    assert [(row["text"], row["kind"], row["labels"]) for row in store.standing()] == [
        ("first", "accept", ["Card"]), ("second", "change", ["Loan"])
    ]  # fmt: skip
    progress = store.progress()
    assert (progress["open"], progress["decided"], progress["accepted"], progress["changed"]) == (2, 2, 1, 1)
    assert progress["people"] == {"Ana": 2}


@pytest.mark.parametrize("labels", [[], ["Card", "Fees"], ["Unknown"]])
def test_other_labels_are_refused(store, labels):
    item = store.next(ANA)
    with pytest.raises(UserInputError, match="Choose labels of this run"):
        store.decide(ANA, item["id"], labels)
    assert store.progress()["decided"] == 0


def test_undo_takes_back_one_after_the_other_and_only_ones_own(store):
    for person in (ANA, BEN, ANA):
        item = store.next(person)
        store.decide(person, item["id"], ["Fees"])
    assert store.undo(ANA)["text"] == "third"
    assert store.undo(ANA)["text"] == "first"
    assert store.undo(ANA) is None
    assert [row["text"] for row in store.standing()] == ["second"]
    assert store.progress()["open"] == 3
    with sqlite3.connect(store.path) as database:
        kinds = [kind for (kind,) in database.execute("SELECT kind FROM decisions ORDER BY id")]
    assert kinds == ["change", "change", "change", "undo", "undo"]


def test_undo_of_a_second_thought_leaves_the_first(store):
    item = store.next(ANA)
    first = store.decide(ANA, item["id"], ["Fees"])
    again = store.take(BEN, item["id"])
    assert again["decision"]["labels"] == ["Fees"]
    store.decide(BEN, item["id"], ["Loan"], seen=first)
    assert [row["labels"] for row in store.standing()] == [["Loan"]]
    assert store.undo(BEN)["decision"]["who"] == "Ana"
    assert [row["labels"] for row in store.standing()] == [["Fees"]]
    assert store.progress()["decided"] == 1


def test_what_was_skipped_goes_to_others_at_the_end(store):
    item = store.next(ANA)
    store.skip(ANA, item["id"])
    seen = []
    while found := store.next(ANA):
        seen.append(found["text"])
        store.decide(ANA, found["id"], ["Card"])
    assert item["text"] not in seen
    assert store.next(BEN)["text"] == item["text"]
    decided = {one.text for one in read_reviews(store.path)}
    assert decided
    assert item["text"] not in decided


def test_decisions_can_be_neither_changed_nor_removed(store):
    item = store.next(ANA)
    store.decide(ANA, item["id"], ["Card"])
    with sqlite3.connect(store.path) as database:
        for statement in ("DELETE FROM decisions", "UPDATE decisions SET who = 'Eve'"):
            with pytest.raises(sqlite3.IntegrityError, match="decisions stay"):
                database.execute(statement)


@pytest.mark.parametrize(
    ("wanted", "texts"),
    [
        (Filter(search="SEC"), ["second"]),
        (Filter(search="100 %"), ["100 % sure_thing"]),
        (Filter(search="_"), ["100 % sure_thing"]),
        (Filter(search="%' OR 1 --"), []),
        (Filter(label="Fees"), []),
        (Filter(reason="audit"), []),
        (Filter(state="decided"), []),
    ],
)
def test_search_and_filters(store, wanted, texts):
    found, count = store.listed(wanted)
    assert [item["text"] for item in found] == texts
    assert count == len(texts)
    if wanted.state is None:
        assert (store.next(ANA, wanted) or {}).get("text") == (texts[0] if texts else None)


def test_the_list_comes_in_pages(tmp_path):
    store = store_with(tmp_path / "reviews.db", [f"text {i}" for i in range(LISTED + 3)])
    pages = [store.listed(Filter(), page=page)[0] for page in range(3)]
    assert [len(page) for page in pages] == [LISTED, 3, 0]


def test_a_new_prediction_reaches_open_texts_only(store):
    item = store.next(ANA)
    store.decide(ANA, item["id"], ["Card"])
    assert store.add([prediction("first ", "Loan", 0.9), prediction("second", "Loan", 0.9)]) == 0
    found = {one["text"]: one["predicted"] for one in store.listed(Filter())[0]}
    assert found["first"] == ["Card"]
    assert found["second"] == ["Loan"]


def test_audited_predictions_are_counted_with_an_interval(tmp_path):
    store = ReviewStore.open(tmp_path / "reviews.db", LABELS)
    store.add(prediction(f"text {i}", confidence=0.9, reason="audit", position=i) for i in range(4))
    for label in ("Card", "Card", "Card", "Loan"):
        store.decide(ANA, store.next(ANA)["id"], [label])
    audit = store.progress()["audit"]
    assert (audit["decided"], audit["kept"]) == (4, 3)
    assert audit["interval"][0] < 0.75 < audit["interval"][1]


def test_a_store_is_opened_again_by_runs_of_the_same_labels_only(store, tmp_path):
    assert ReviewStore.open(store.path, LABELS[::-1]).progress()["items"] == 4
    with pytest.raises(UserInputError, match="other labels"):
        ReviewStore.open(store.path, ["Card", "Cash"])
    other = tmp_path / "other.db"
    other.write_text("not a database at all, but long enough to look at " * 9)
    with pytest.raises(UserInputError, match="no file of reviews"):
        ReviewStore.open(other, LABELS)
    with pytest.raises(UserInputError, match="cannot be kept"):
        ReviewStore.open(tmp_path / "missing" / "reviews.db", LABELS)


@pytest.mark.parametrize("who", ["", "   ", "x" * 61])
def test_a_person_has_a_name(who):
    with pytest.raises(UserInputError, match="Say who you are"):
        Person.named(who, "s" * 16)


# --- exports ---------------------------------------------------------------------------------------------


@pytest.fixture
def decided(tmp_path):
    store = store_with(tmp_path / "reviews.db", ['a "quoted", text\nof two lines', "=1+1", "skipped"])
    for label in ("Card", "Loan"):
        store.decide(ANA, store.next(ANA)["id"], [label])
    store.skip(BEN, store.next(BEN)["id"])
    return store


def test_as_csv(decided):
    rows = list(csv.DictReader(io.StringIO("".join(as_csv(decided)))))
    assert [(row["text"], row["label"], row["kind"], row["who"]) for row in rows] == [
        ('a "quoted", text\nof two lines', "Card", "accept", "Ana"), ("=1+1", "Loan", "change", "Ana"),
        ("skipped", "", "skip", "Ben"),
    ]  # fmt: skip


def test_as_label_studio(decided):
    tasks = json.loads("".join(as_label_studio(decided)))
    assert [task["data"]["text"] for task in tasks][1] == "=1+1"
    assert tasks[1]["predictions"][0]["result"][0]["value"] == {"choices": ["Card"]}
    assert tasks[1]["annotations"][0]["result"] == [
        {"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": ["Loan"]}}
    ]
    assert [task["annotations"][0]["was_cancelled"] for task in tasks] == [False, False, True]


def test_as_argilla(decided):
    records = json.loads("".join(as_argilla(decided)))
    assert [(one["label"], one["response"]) for one in records] == [
        ("Card", "Card"), ("Card", "Loan"), ("Card", None)
    ]  # fmt: skip
    assert len({one["id"] for one in records}) == 3


def test_nothing_decided_exports_an_empty_list(store):
    assert json.loads("".join(as_argilla(store))) == []
    assert "".join(as_csv(store)).count("\n") == 1


def test_several_labels(tmp_path):
    store = decide_all(tmp_path / "reviews.db", {"one": ["Fees", "Card"], "none": []}, separator=";")
    rows = list(csv.DictReader(io.StringIO("".join(as_csv(store)))))
    assert [row["label"] for row in rows] == ["Card; Fees", ""]
    assert json.loads("".join(as_argilla(store)))[0]["response"] == ["Card", "Fees"]
    assert [one.labels for one in read_reviews(store.path)] == [("Card", "Fees"), ()]
