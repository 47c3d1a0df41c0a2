"""Whatever people do in whatever order, the store's states, leases and standing decisions agree with a
model.
"""

import sqlite3
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from reviewing import LABELS, store_with
from snugtune.data.reviews import read_reviews
from snugtune.serve.web.reviews import Filter, Person, TakenError

PEOPLE = [Person(name, name.lower() * 8) for name in ("A", "B", "C")]
TEXTS = [f"text {i}" for i in range(4)]


class Reviewing(RuleBasedStateMachine):
    """``log`` is what happened: (number, person, text, labels or None for a skip), undone ones taken out."""

    def __init__(self):
        super().__init__()
        self.folder = TemporaryDirectory()
        self.store = store_with(f"{self.folder.name}/reviews.db", TEXTS)
        self.log, self.has, self.appended = [], {}, 0

    def teardown(self):
        self.folder.cleanup()

    def last(self, text):
        return next((entry for entry in reversed(self.log) if entry[2] == text), None)

    @rule(person=st.sampled_from(PEOPLE))
    def next(self, person):
        item = self.store.next(person)
        others = {text for who, text in self.has.items() if who != person}
        if item is None:
            self.has.pop(person, None)
            return
        assert item["text"] not in others
        self.has[person] = item["text"]

    @rule(person=st.sampled_from(PEOPLE), text=st.sampled_from(TEXTS))
    def take(self, person, text):
        item = next(one for one in self.store.listed(Filter())[0] if one["text"] == text)
        if text in {other for who, other in self.has.items() if who != person}:
            try:
                self.store.take(person, item["id"])
            except TakenError:
                return
            raise AssertionError("two people have one text")
        assert self.store.take(person, item["id"])["text"] == text
        self.has[person] = text

    @rule(person=st.sampled_from(PEOPLE), label=st.sampled_from([*LABELS, None]))
    def decide(self, person, label):
        text = self.has.get(person)
        if text is None:
            return
        item = next(one for one in self.store.listed(Filter())[0] if one["text"] == text)
        seen = item["decision"]["id"] if item["decision"] else 0
        if label is None:
            number = self.store.skip(person, item["id"], seen=seen)
        else:
            number = self.store.decide(person, item["id"], [label], seen=seen)
        self.log.append((number, person, text, label))
        self.appended += 1
        del self.has[person]

    @rule(person=st.sampled_from(PEOPLE))
    def undo(self, person):
        own = [entry for entry in self.log if entry[1] == person]
        others = {text for who, text in self.has.items() if who != person}
        if own and own[-1][2] in others:
            return  # refused, as somebody is looking at it: test_reviews.py
        item = self.store.undo(person)
        assert (item is None) == (not own)
        if item is not None:
            assert item["text"] == own[-1][2]
            self.log.remove(own[-1])
            self.has[person] = item["text"]
            self.appended += 1

    @rule(person=st.sampled_from(PEOPLE))
    def close(self, person):
        self.store.release(person.session)
        self.has.pop(person, None)

    @invariant()
    def the_store_agrees(self):
        stands = {text: self.last(text) for text in TEXTS if self.last(text)}
        found = {row["text"]: (row["labels"] or [None])[0] for row in self.store.standing()}
        assert found == {text: entry[3] for text, entry in stands.items()}
        assert {one.text: one.labels[0] for one in read_reviews(self.store.path)} == {
            text: entry[3] for text, entry in stands.items() if entry[3] is not None
        }
        states = {one["text"]: one["state"] for one in self.store.listed(Filter())[0]}
        assert states == {
            text: "open" if text not in stands else "skipped" if stands[text][3] is None else "decided"
            for text in TEXTS
        }
        database = sqlite3.connect(self.store.path)
        assert database.execute("SELECT count(*) FROM decisions").fetchone() == (self.appended,)
        database.close()


Reviewing.TestCase.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
TestReviewing = Reviewing.TestCase
