"""What is read of long texts, for tokenizers with and without special tokens on either side."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import make_tokenizer
from snugtune.data.long_texts import HEAD_SHARE, WAYS, WINDOW_OVERLAP, Frame
from snugtune.data.tokens import tokenize
from snugtune.errors import UserInputError


def _with_template(single):
    tokenizer = make_tokenizer("bert")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return tokenizer


TOKENIZERS = {
    "both sides": make_tokenizer("bert"),
    "none": make_tokenizer("llama"),
    "bytes": make_tokenizer("qwen2"),
    "before": _with_template("<s> $A"),
    "after": _with_template("$A </s>"),
    "two before": _with_template("<s> <s> $A </s>"),
}

# Special tokens inside a text are a part of it.
texts = st.lists(st.sampled_from(["card", "fee", "the", "<s>", "</s>", "unknown", "word7"]), max_size=60).map(
    " ".join
)
tokenizers = st.sampled_from(list(TOKENIZERS))
unhurried = settings(deadline=None)  # a tokenizer's first call takes its time


def read(name, text, max_length, way):
    """The frame, the whole text framed, and the rows that are read of it."""
    tokenizer = TOKENIZERS[name]
    tokens = tokenize([text], tokenizer, max_length, way)
    assert len(tokens) == 1
    return Frame.of(tokenizer), tokenizer(text)["input_ids"], [row.tolist() for row in tokens.ids]


def bare(frame, row):
    assert row[: len(frame.before)] == list(frame.before)
    assert row[len(row) - len(frame.after) :] == list(frame.after)
    return row[len(frame.before) : len(row) - len(frame.after)]


@unhurried
@given(tokenizers, texts, st.integers(4, 40))
def test_a_short_text_is_the_same_in_every_way(name, text, max_length):
    whole = TOKENIZERS[name](text)["input_ids"]
    for way in WAYS:
        rows = read(name, text, max(max_length, len(whole)), way)[2]
        assert rows == [whole]


@unhurried
@given(tokenizers, texts, st.integers(4, 40))
def test_windows_cover_the_text_and_overlap_as_said(name, text, max_length):
    frame, whole, rows = read(name, text, max_length, "windows")
    room = max_length - frame.size
    overlap = int(room * WINDOW_OVERLAP)
    again = bare(frame, rows[0])
    for row in rows[1:]:
        window = bare(frame, row)
        assert len(window) > overlap
        assert again[len(again) - overlap :] == window[:overlap]
        again += window[overlap:]
    assert again == bare(frame, whole)
    assert all(len(row) == max_length for row in rows[:-1])
    assert len(rows[-1]) <= max_length


@unhurried
@given(tokenizers, texts, st.integers(4, 40))
def test_windows_are_those_of_the_tokenizers_own_call(name, text, max_length):
    frame, _, rows = read(name, text, max_length, "windows")
    stride = int((max_length - frame.size) * WINDOW_OVERLAP)
    own = TOKENIZERS[name](
        text, truncation=True, max_length=max_length, stride=stride, return_overflowing_tokens=True
    )
    assert rows == own["input_ids"]


@unhurried
@given(tokenizers, texts, st.integers(4, 40))
def test_head_and_tail_keep_the_first_and_the_last(name, text, max_length):
    frame, whole, rows = read(name, text, max_length, "head_tail")
    assert len(rows) == 1
    if len(whole) <= max_length:
        return
    kept, text_ids, room = bare(frame, rows[0]), bare(frame, whole), max_length - frame.size
    head = round(room * HEAD_SHARE)
    assert len(rows[0]) == max_length
    assert kept[:head] == text_ids[:head]
    assert kept[head:] == text_ids[len(text_ids) - (room - head) :]


@settings(max_examples=30, deadline=None)
@given(st.lists(texts, max_size=12), st.integers(4, 20))
def test_every_token_is_accounted_for(some, max_length):
    tokenizer = TOKENIZERS["both sides"]
    for way in WAYS:
        tokens = tokenize(some, tokenizer, max_length, way)
        alone = [tokenize([text], tokenizer, max_length, way) for text in some]
        assert [row.tolist() for row in tokens.ids] == [row.tolist() for one in alone for row in one.ids]
        assert tokens.lengths.tolist() == [len(row) for row in tokens.ids]
        assert tokens.text_of_row.tolist() == [i for i, one in enumerate(alone) for _ in range(one.rows)]
        cut = tokens.truncation
        assert cut.tokens == sum(len(tokenizer(text)["input_ids"]) for text in some)
        assert cut.tokens - cut.tokens_cut == tokens.text_lengths.sum()
        assert len(tokens) == len(some)
        if way == "windows":
            assert cut.rows_cut == cut.tokens_cut == 0
        else:
            assert tokens.price == 1


@unhurried
@given(st.lists(st.integers(1, 4), min_size=1, max_size=20), st.integers(0, 9))
def test_pooling_is_the_mean_and_leaves_single_rows_alone(rows_of_text, seed):
    rng = np.random.default_rng(seed)
    some = [" ".join(["card"] * (6 if n == 1 else 6 + 5 * (n - 1))) for n in rows_of_text]
    tokens = tokenize(some, TOKENIZERS["none"], 6, "windows")
    values = rng.normal(size=(tokens.rows, 3)).astype(np.float32)
    pooled = tokens.pooled(values)
    for i in range(len(some)):
        mine = tokens.rows_of(np.array([i]))
        np.testing.assert_allclose(pooled[i], values[mine].mean(0), rtol=1e-6, atol=1e-6)
        if len(mine) == 1:
            assert np.array_equal(pooled[i], values[mine[0]])
    drawn = rng.integers(0, len(some), 7)
    expected = [row for text in drawn for row in np.flatnonzero(tokens.text_of_row == text)]
    assert tokens.rows_of(drawn).tolist() == expected
    shares = tokens.share_of_text(np.arange(tokens.rows))
    np.testing.assert_allclose(np.bincount(tokens.text_of_row, shares), 1, rtol=1e-6)


def test_frames_are_read_off_the_tokenizer():
    assert [(list(f.before), list(f.after)) for f in map(Frame.of, TOKENIZERS.values())] == [
        ([2], [3]), ([], []), ([], []), ([2], []), ([], [3]), ([2, 2], [3])
    ]  # fmt: skip


def test_a_frame_that_is_none_is_refused():
    class Claims:
        backend_tokenizer = TOKENIZERS["both sides"].backend_tokenizer

        @staticmethod
        def num_special_tokens_to_add(pair):
            return 3

    with pytest.raises(UserInputError, match="use long_texts=truncate"):
        Frame.of(Claims)
