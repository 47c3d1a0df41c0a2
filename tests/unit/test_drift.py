"""Drift: no alarm on texts of the same kind, one on others, and nothing readable in the reference."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snugtune.evaluate.drift import DriftTally, Vocabulary, psi, reference

WORDS = np.array([f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(400)])


def texts(rows, seed, *, mean_length=12, words=WORDS):
    rng = np.random.default_rng(seed)
    lengths = 1 + rng.poisson(mean_length, rows)
    return [" ".join(rng.choice(words, n)) for n in lengths]


def said(rows, seed, *, sharpness=4.0, shares=(0.5, 0.3, 0.2)):
    rng = np.random.default_rng(seed)
    return rng.beta(sharpness, 1, rows), rng.choice(["a", "b", "c"], rows, p=shares).tolist()


@pytest.fixture(scope="module")
def known():
    made = reference(texts(2000, 0), texts(1000, 1), *said(1000, 2))
    return json.loads(json.dumps(made, allow_nan=False))


def drift(known, new_texts, confidence, predicted):
    tally = DriftTally(known)
    for start in range(0, len(new_texts), 300):
        part = slice(start, start + 300)
        tally.add(new_texts[part], confidence[part], predicted[part])
    return tally.result()


def levels(result):
    return {check["name"]: check["level"] for check in result["checks"]}


def test_texts_of_the_same_kind_raise_no_alarm(known) -> None:
    alarms = 0
    for seed in range(40):
        alarms += len(drift(known, texts(300, 100 + seed), *said(300, 200 + seed))["warnings"])
    assert alarms <= 3  # of 160 comparisons


def test_few_rows_raise_no_alarm_by_being_few(known) -> None:
    alarms = sum(
        len(drift(known, texts(40, 300 + seed), *said(40, 400 + seed))["warnings"]) for seed in range(40)
    )
    assert alarms <= 6


def test_longer_texts_are_noticed(known) -> None:
    result = drift(known, texts(400, 5, mean_length=24), *said(400, 6))
    assert levels(result) == {
        "length": "large",
        "unknown_words": "none",
        "confidence": "none",
        "predicted": "none",
    }
    (warning,) = result["warnings"]
    assert warning.startswith("Texts have 25 words on average, where the held-out texts had 13")


def test_unknown_words_are_noticed(known) -> None:
    other = np.concatenate([WORDS, [f"new{word}" for word in WORDS]])
    result = drift(known, texts(400, 7, words=other), *said(400, 8))
    check = next(check for check in result["checks"] if check["name"] == "unknown_words")
    assert check["level"] == "large"
    assert check["mean"] == pytest.approx(0.5, abs=0.04)
    assert check["reference_mean"] < 0.03


def test_lower_confidence_and_another_mix_are_noticed(known) -> None:
    result = drift(known, texts(400, 9), *said(400, 10, sharpness=1.0, shares=(0.1, 0.3, 0.6)))
    assert levels(result)["confidence"] == levels(result)["predicted"] == "large"
    assert "'a' from" in result["warnings"][1]


def test_a_label_never_predicted_before_counts(known) -> None:
    confidence, _ = said(400, 11)
    result = drift(known, texts(400, 12), confidence, ["d"] * 200 + ["a"] * 200)
    assert levels(result)["predicted"] == "large"


def test_too_few_rows_are_not_compared(known) -> None:
    result = drift(known, texts(29, 13), *said(29, 14))
    assert result["checks"] == result["warnings"] == []
    assert "29 rows" in result["note"]
    assert drift(known, [], np.empty(0), [])["rows"] == 0


def test_batches_do_not_matter(known) -> None:
    new, (confidence, predicted) = texts(700, 15), said(700, 16)
    whole = DriftTally(known)
    whole.add(new, confidence, predicted)
    assert whole.result() == drift(known, new, confidence, predicted)


def test_the_reference_holds_no_word(known) -> None:
    told = json.dumps(known)
    assert not any(word in told for word in WORDS)
    assert len(told) < 10_000


def test_another_format_is_refused(known) -> None:
    with pytest.raises(ValueError, match="format 2"):
        DriftTally(known | {"format": 2})


def test_vocabulary_knows_its_words_and_few_others() -> None:
    words = [f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopqrst" for c in "uvwxyzabcd"]
    vocabulary = Vocabulary.of([" ".join(words)] * 2)
    assert all(word in vocabulary for word in words)
    strangers = [f"zz{word}" for word in words]
    assert sum(word in vocabulary for word in strangers) / len(strangers) < 0.03
    assert (
        Vocabulary.from_dict(json.loads(json.dumps(vocabulary.as_dict()))).bits.tolist()
        == vocabulary.bits.tolist()
    )


def test_words_of_one_text_and_numbers_are_no_vocabulary() -> None:
    vocabulary = Vocabulary.of(["Hello there 123", "hello you 123"])
    assert "hello" in vocabulary
    assert vocabulary.words == 1
    assert vocabulary.unknown_share("HELLO 456") == 0
    assert vocabulary.unknown_share("hello, stranger") == 0.5
    assert vocabulary.unknown_share("12 !") == 0


def test_psi_by_hand() -> None:
    # (500.5, 500.5) / 1001 against (250.5, 750.5) / 1001.
    p, q = np.array([0.5, 0.5]), np.array([250.5, 750.5]) / 1001
    expected = ((q - p) * np.log(q / p)).sum()
    assert psi(np.array([500, 500]), np.array([250, 750])) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=20))
def test_psi_is_symmetric_and_not_negative(bins) -> None:
    a, b = (np.array(counts) for counts in zip(*bins, strict=True))
    assert 0 <= psi(a, b) == pytest.approx(psi(b, a))
    assert psi(a, a) == 0
