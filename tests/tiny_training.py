"""A tiny random BERT and examples whose class can be read off, for tests of the training engine."""

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from snugtune.data.tokens import Tokens, Truncation
from snugtune.model import attention
from snugtune.train.engine import Examples

CPU = torch.device("cpu")


def tiny_model(seed: int = 0, dropout: float = 0.0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        num_labels=4, hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0, pad_token_id=0,
    )  # fmt: skip
    config._attn_implementation = attention.register()
    return BertForSequenceClassification(config)


def examples(n: int, seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    # The class can be read off the second token.
    ids = [np.r_[1, 10 + label, rng.integers(20, 60, rng.integers(1, 30))].astype(np.int32) for label in y]
    lengths = np.array([len(row) for row in ids])
    return Examples(Tokens(ids, lengths, Truncation(64, n, 0, int(lengths.sum()), 0)), y)
