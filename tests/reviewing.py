"""Predictions for the review queue, for tests of the store and of what comes after."""

from snugtune.serve.web.reviews import Person, Prediction, ReviewStore

LABELS = ("Card", "Fees", "Loan")
ANA, BEN = Person("Ana", "a" * 16), Person("Ben", "b" * 16)


def prediction(text, label="Card", confidence=0.4, *, reason="uncertain", row=0, **more):
    others = [name for name in LABELS if name != label]
    candidates = ((label, confidence), *((name, (1 - confidence) / len(others)) for name in others))
    values = {"predicted": (label,), "position": confidence, "source": "may.csv", "row": row, **more}
    return Prediction(text=text, confidence=confidence, candidates=candidates, reason=reason, **values)


def store_with(path, texts, labels=LABELS, separator=None):
    """A store whose queue holds ``texts`` in this order."""
    store = ReviewStore.open(path, labels, separator)
    store.add(prediction(text, confidence=0.1 + i / (2 * len(texts)), row=i) for i, text in enumerate(texts))
    return store


def decide_all(path, decisions, labels=LABELS, separator=None):
    """A store in which Ana gave each text of ``decisions`` its labels."""
    store = store_with(path, list(decisions), labels, separator)
    for text, given in decisions.items():
        item = store.next(ANA)
        assert item["text"] == text
        store.decide(ANA, item["id"], [given] if isinstance(given, str) else given)
    return store
