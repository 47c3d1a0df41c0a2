"""Long texts: chosen by evidence on validation rows, and trained so that a text counts once."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import make_tokenizer
from snugtune.data.part import Part
from snugtune.data.tokens import Tokens, tokenize
from snugtune.evaluate.calibration import log_softmax
from snugtune.model.adapter import trainable_state
from snugtune.model.head import Head
from snugtune.train.engine import Examples
from snugtune.train.forward import predict_logits
from snugtune.train.long_texts import WAYS, Encoder, _cheapest_unbeaten, read_as_asked, read_by_evidence
from snugtune.train.probe import HeldOut, fit_probes, fit_probes_of_texts
from tiny_training import CPU, tiny_model, train_on

MAX_LENGTH, K, VOCABULARY = 10, 3, 200
NAMES = ("a", "b", "c")


def parts(place, long=40, n=240, seed=0):
    """Filler with the word of the class at ``place`` (a share of the text); every third is short."""
    rng = np.random.default_rng(seed)
    texts, y = [], rng.integers(0, K, n)
    for i, label in enumerate(y):
        words = [f"word{j}" for j in rng.integers(30, 60, 5 if i % 3 == 0 else long)]
        words[int(place * (len(words) - 1))] = f"word{label}"
        texts.append(" ".join(words))
    split = {"train": slice(0, 120), "validation": slice(120, 200), "test": slice(200, n)}
    return {name: Part(np.arange(n)[rows], texts[rows], y[rows]) for name, rows in split.items()}


class CountingPass:
    """Stands in for the frozen model: how often each token occurs in a row."""

    def __init__(self):
        self.seen = []

    def __call__(self, tokens):
        self.seen += [row.tobytes() for row in tokens.ids]
        return np.stack([np.bincount(row, minlength=VOCABULARY) for row in tokens.ids]).astype(np.float32)


def head():
    return Head(None, None, torch.nn.Linear(VOCABULARY, K), ("classifier",))


def chosen(place, **options):
    frozen = CountingPass()
    encoder = Encoder(make_tokenizer("bert"), MAX_LENGTH)
    return read_by_evidence(parts(place, **options), encoder, NAMES, head(), frozen), frozen


@pytest.mark.parametrize(("place", "expected"), [(0.0, "truncate"), (1.0, "head_tail"), (0.5, "windows")])
def test_the_way_is_the_cheapest_that_sees_the_class(place, expected):
    reading, _ = chosen(place)
    told = reading.as_dict()
    assert told["chosen"] == expected
    assert told["asked"] == "auto"
    scores = {way: one["accuracy"] for way, one in told["candidates"].items()}
    assert scores[expected] > 0.9
    assert [way for way in WAYS[: WAYS.index(expected)] if scores[way] > 0.8] == []
    assert set(reading.tokens) == {"train", "validation", "test"}
    assert {tokens.long_texts for tokens in reading.tokens.values()} == {expected}
    assert expected in reading.sentence()


def test_the_price_is_told_in_tokens_and_seconds():
    reading, frozen = chosen(0.5)
    found = reading.as_dict()
    assert found["price"] == found["candidates"]["windows"]["price"] > 2
    assert found["tokens"] == reading.tokens["train"].lengths.sum()
    assert found["candidates"]["truncate"]["price"] == found["candidates"]["head_tail"]["price"] == 1
    assert found["candidates"]["windows"]["pass_s"] > found["candidates"]["truncate"]["pass_s"] > 0
    # What several ways have in common is passed once.
    assert len(frozen.seen) == len(set(frozen.seen))
    rows = reading.tokens["train"].rows + reading.tokens["validation"].rows
    long = sum(one.whole.size - (one.whole <= MAX_LENGTH).sum() for one in _judged(reading))
    assert len(frozen.seen) == rows + long


def _judged(reading):
    return [reading.tokens[name] for name in ("train", "validation")]


def test_without_long_texts_nothing_is_compared():
    reading, frozen = chosen(0.5, long=6)
    assert reading.as_dict()["chosen"] == "truncate"
    assert reading.candidates is None
    assert frozen.seen == []
    assert "nothing is cut off" in reading.sentence()


def test_a_dearer_way_must_win_beyond_noise():
    rng = np.random.default_rng(0)
    cut = rng.exponential(size=400)
    noise = rng.normal(size=400)
    assert _cheapest_unbeaten({"truncate": cut, "head_tail": cut + noise, "windows": cut}) == "truncate"
    better = cut - 0.5 + noise
    assert _cheapest_unbeaten({"truncate": cut, "head_tail": better, "windows": better}) == "head_tail"
    assert _cheapest_unbeaten({"truncate": cut, "head_tail": cut, "windows": better}) == "windows"


@pytest.mark.parametrize("way", WAYS)
def test_a_way_that_is_asked_for_is_taken(way):
    reading = read_as_asked(parts(0.5), Encoder(make_tokenizer("bert"), MAX_LENGTH), way)
    assert reading.as_dict()["chosen"] == way
    words = {"truncate": "cuts", "head_tail": "from the middle", "windows": "read in windows"}
    assert words[way] in reading.sentence()


def test_a_probe_counts_each_text_once():
    tokens = tokenize(["card " * 30, "fee"], make_tokenizer("bert"), MAX_LENGTH, "windows")
    rng = np.random.default_rng(0)
    y = np.array([0, 1])
    features = rng.normal(size=(tokens.rows, VOCABULARY)).astype(np.float32)
    probe, _ = fit_probes_of_texts(features, tokens, y, K, head())
    share = np.where(tokens.text_of_row == 0, 1 / (tokens.rows - 1), 1)
    expected, _ = fit_probes(features, y[tokens.text_of_row], K, head(), weight=share)
    torch.testing.assert_close(probe.weight, expected.weight)
    held_out = HeldOut(features, y, tokens)
    of_rows = probe.logits(torch.from_numpy(features), None).numpy()
    np.testing.assert_allclose(held_out.logits(probe, head())[0], of_rows[:-1].mean(0), rtol=1e-5, atol=1e-5)


def windowed(n, seed, longest=5):
    """Examples of one to ``longest`` windows, whose class can be read off the second token of each."""
    rng = np.random.default_rng(seed)
    y, counts = rng.integers(0, 4, n), rng.integers(1, longest + 1, n)
    ids = [
        np.r_[1, 10 + label, rng.integers(20, 60, rng.integers(1, 12))].astype(np.int32)
        for label, count in zip(y, counts, strict=True)
        for _ in range(count)
    ]
    starts = np.r_[0, np.cumsum(counts)]
    lengths = np.array([len(row) for row in ids])
    whole = np.add.reduceat(lengths, starts[:-1])
    cut = tokenize([], make_tokenizer("bert"), 14).truncation
    return Examples(Tokens(ids, lengths, cut, whole, starts, "windows"), y)


@pytest.mark.parametrize("budget", [16, 40])
def test_the_cut_changes_nothing_with_windows_either(budget):
    settings = {"num_train_epochs": 2, "effective_batch_size": 8}
    train_set, held_out = windowed(40, 1), windowed(20, 2)
    whole, model = train_on(train_set, held_out, {**settings, "tokens_per_micro_batch": 100_000})
    cut, cut_model = train_on(train_set, held_out, {**settings, "tokens_per_micro_batch": budget})
    losses = [[m["loss"] for m in r.metrics if "loss" in m] for r in (whole, cut)]
    assert len(losses[0]) == 10  # a step is 8 texts, however many windows they have
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-6)
    for name, tensor in trainable_state(model).items():
        torch.testing.assert_close(trainable_state(cut_model)[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_the_first_loss_is_the_mean_over_texts_of_the_mean_over_windows():
    examples = windowed(12, 3)
    tokens = examples.tokens
    result, _ = train_on(examples, windowed(8, 2), {"effective_batch_size": 12, "num_train_epochs": 1})
    rows = Tokens(tokens.ids, tokens.lengths, tokens.truncation)
    of_rows = predict_logits(tiny_model().eval(), rows, pad_token_id=0, device=CPU)
    targets = torch.from_numpy(examples.y[tokens.text_of_row])
    losses = cross_entropy(torch.from_numpy(of_rows), targets, reduction="none").numpy()
    expected = np.mean([losses[tokens.text_of_row == i].mean() for i in range(12)])
    assert result.metrics[1]["loss"] == pytest.approx(expected, abs=1e-5)
    # And it bounds the loss of the pooled logits, by which the texts are classified.
    pooled = predict_logits(tiny_model().eval(), tokens, pad_token_id=0, device=CPU)
    np.testing.assert_allclose(pooled, tokens.pooled(of_rows), atol=1e-5)
    assert -log_softmax(pooled)[np.arange(12), examples.y].mean() <= expected


def test_windows_of_short_texts_train_to_the_same_weights():
    as_windows = windowed(24, 1, longest=1)
    tokens = as_windows.tokens
    plain = Examples(Tokens(tokens.ids, tokens.lengths, tokens.truncation), as_windows.y)
    settings = {"effective_batch_size": 8, "num_train_epochs": 1}
    states = [trainable_state(train_on(one, plain, settings)[1]) for one in (as_windows, plain)]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=0, atol=1e-7)
