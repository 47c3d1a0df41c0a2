import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from snugtune.data import tokens
from snugtune.data.tokens import FlatRows, tokenize
from snugtune.model.backbone import resolve


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve("minilm"))


TEXTS = ["", "The bank charged a fee", "fee " * 40, "Ärger, ½ 💶 [SEP] und [MASK]", "x" * 300, "card"]


@pytest.mark.parametrize("at_a_time", [1, 4, 1000])
def test_ids_are_those_of_the_tokenizers_own_call(tokenizer, monkeypatch, at_a_time):
    monkeypatch.setattr(tokens, "TEXTS_AT_A_TIME", at_a_time)
    found = tokenize(TEXTS, tokenizer, 16)
    expected = [tokenizer(text, truncation=True, max_length=16)["input_ids"] for text in TEXTS]
    assert [row.tolist() for row in found.ids] == expected
    assert found.lengths.tolist() == [len(row) for row in expected]
    whole = [len(tokenizer(text)["input_ids"]) for text in TEXTS]
    assert found.whole.tolist() == whole
    cut = found.truncation
    assert (cut.rows, cut.rows_cut) == (len(TEXTS), sum(length > 16 for length in whole))
    assert (cut.tokens, cut.tokens_cut) == (sum(whole), sum(whole) - found.lengths.sum())


def test_settings_left_on_the_tokenizer_do_not_count(tokenizer):
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert tokenize(["The bank charged a fee"], tokenizer, 16).lengths.tolist() == [7]


@pytest.mark.parametrize("long_texts", ["truncate", "head_tail", "windows"])
def test_white_space_around_a_text_is_never_read(long_texts):
    texts = ["fee charged", "fee charged " * 20]
    spaced = [f" \n{text}\u00a0\t\n" for text in texts]
    tokenizer = byte_level(texts)
    assert tokenizer(spaced)["input_ids"] != tokenizer(texts)["input_ids"]
    clean, found = (tokenize(given, tokenizer, 16, long_texts) for given in (texts, spaced))
    assert [row.tolist() for row in found.ids] == [row.tolist() for row in clean.ids]
    assert found.truncation == clean.truncation


def byte_level(texts):
    """A tokenizer as GPT-2's, to which white space is a token, learned from ``texts``."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def test_no_texts(tokenizer):
    found = tokenize([], tokenizer, 16)
    assert len(found) == 0
    assert found.lengths.shape == (0,)
    assert list(found.ids) == []


def test_flat_rows_are_a_sequence_of_views():
    rows = FlatRows(np.arange(6, dtype=np.int32), np.array([0, 2, 2, 6]))
    assert [row.tolist() for row in rows] == [[0, 1], [], [2, 3, 4, 5]]
    assert rows[-1].tolist() == rows[np.int64(2)].tolist() == [2, 3, 4, 5]
    assert [row.tolist() for row in rows[1:]] == [[], [2, 3, 4, 5]]
    assert np.shares_memory(rows[0], rows.flat)
    for outside in (3, -4):
        with pytest.raises(IndexError, match="of 3"):
            rows[outside]
