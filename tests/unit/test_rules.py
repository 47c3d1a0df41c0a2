"""Keyword rules: read from YAML and tables, matched as whole words, refused in one sentence."""

import time

import numpy as np
import polars as pl
import pytest

from snugtune.data.rules import Rule, read_rules, votes
from snugtune.errors import SnugtuneError


def rules_of(tmp_path, text, name="rules.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_rules(path)


def said(rules, text):
    names = sorted({rule.label for rule in rules})
    return [names[k] if k >= 0 else None for k in votes(rules, [text], names)[0].tolist()]


@pytest.mark.parametrize(
    ("words", "text", "fires"),
    [
        ("fee", "a FEE was charged", True), ("fee", "coffee", False), ("fee", "fees", False),
        ("fee*", "fees", True), ("charged twice", "charged \n twice", True), ("$5", "they took $5.", True),
        ("c++", "I like c++", True), ("naïve", "NAÏVE", True), ("a.b", "axb", False),
        ("карта", "Карта!", True),
    ],
)  # fmt: skip
def test_words_are_whole_and_of_any_case(tmp_path, words, text, fires):
    rules = rules_of(tmp_path, f"rules:\n- label: A\n  words: {words!r}\n")
    assert said(rules, text) == (["A"] if fires else [None])


def test_unless_forbids_and_priority_overrules(tmp_path):
    rules = rules_of(
        tmp_path,
        "rules:\n- {label: A, words: [card, wallet], unless: [loan]}\n- {label: B, words: stolen}\n"
        "- {label: C, regex: 'fraud(ulent)?', priority: 1}\n",
    )
    assert said(rules, "stolen card") == ["A", "B", None]
    assert said(rules, "stolen card, loan") == [None, "B", None]
    assert said(rules, "a fraudulent card was stolen") == [None, None, "C"]


def test_a_table_says_the_same(tmp_path):
    pl.DataFrame(
        {"label": ["A", "B", None], "words": ["card; wallet", "fee", None], "priority": ["0", "2", None]}
    ).write_csv(tmp_path / "rules.csv")
    rules = read_rules(tmp_path / "rules.csv")
    assert said(rules, "my wallet, a fee") == [None, "B"]
    assert [rule.priority for rule in rules] == [0, 2]


def test_names_are_told_apart(tmp_path):
    rules = rules_of(tmp_path, "rules:\n- {label: A, words: x}\n- {label: A, words: x}\n")
    assert len({rule.name for rule in rules}) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: []\n", "holds no rules"),
        ("rules: 3\n", "no list under the key rules"),
        ("rules:\n- {label: A}\n", "Rule 1 of .* needs words or a regex"),
        ("rules:\n- {label: A, words: x}\n- {words: x}\n", "Rule 2 of .*label: Field required"),
        ("rules:\n- {label: A, word: x}\n", "word: Extra inputs"),
        ("rules:\n- label\n", "a rule is a mapping"),
        ("rules:\n- {label: A, regex: '(?=a)b'}\n", "look-around"),
        ("rules:\n- {label: A, regex: '(a'}\n", "cannot be used"),
        ("rules:\n- {label: A, regex: 'a*'}\n", "matches every text"),
        ("rules:\n- {label: A, words: ['']}\n", "matches every text"),
        ("rules:\n- {label: A, words: x, priority: high}\n", "priority"),
        ("rules:\n- {label: A, regex: '(\\w{1000}){1000}'}\n", "cannot be used"),
        ("rules:\n- {label: A, words: x, unless: [no, not]}\n", "unless has a word that YAML reads as False"),
        ("rules:\n- {label: A, words: 007}\n", "YAML reads as 7; write it in quotes"),
        ("rules:\n- {label: A, words: [x, null]}\n", "YAML reads as None"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_sentence(tmp_path, text, message):
    with pytest.raises(SnugtuneError, match=message) as raised:
        rules_of(tmp_path, text)
    assert "\n" not in str(raised.value)


def test_no_pattern_takes_more_than_linear_time(tmp_path):
    """One that would keep a backtracking engine busy for longer than the universe has existed."""
    rules = rules_of(tmp_path, "rules:\n- {label: A, regex: '(a+)+$'}\n")
    started = time.process_time()
    assert said(rules, "a" * 50_000 + "!") == [None]
    assert time.process_time() - started < 30


def test_votes_take_a_byte_each_where_there_are_few_labels():
    rules = [Rule(str(k), f"label {k}", f"word{k}!") for k in range(200)]
    names = [rule.label for rule in rules]
    texts = [f"word{k}!" for k in range(200)]
    found = votes(rules[:100], texts, names[:100])
    assert found.dtype == np.int8
    many = votes(rules, texts, names)
    assert many.dtype == np.int16
    assert many.diagonal().tolist() == list(range(200))
    assert (many >= 0).sum() == 200
