"""A tiny random BERT, examples whose class can be read off, and their training by the engine."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import BertConfig, BertForSequenceClassification

from snugtune.config import make_config
from snugtune.data.tokens import Tokens, Truncation
from snugtune.model import attention
from snugtune.model.adapter import on_trained, wrap
from snugtune.model.head import find_head
from snugtune.model.sharding import shard
from snugtune.train import engine
from snugtune.train.engine import Examples, Services, train

CPU = torch.device("cpu")


class ScalingAccelerator(Accelerator):
    """Scales the loss in float16 as on a card; Accelerate's own does not where a CPU computes."""

    def __init__(self, **settings):
        super().__init__(**settings)
        if settings["mixed_precision"] == "fp16":
            self.scaler = torch.amp.GradScaler("cpu")


@pytest.fixture
def loss_scaler(monkeypatch):
    """Inside, float16 trainings have a loss scaler."""
    monkeypatch.setattr(engine, "Accelerator", ScalingAccelerator)


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


def train_on(train_set, validation_set, settings, **more):
    """The result and the trained model, on examples that are given."""
    config = make_config({"train": "x", **settings})
    plain = tiny_model()
    head_names = find_head(plain).modules_to_save
    model = wrap(plain, config)
    result = train(
        model, train_set, validation_set, config, head_names=head_names, pad_token_id=0, dtype=torch.float32,
        device=CPU, **more,
    )  # fmt: skip
    return result, model


def train_tiny(
    settings, *, rows=32, held_out=12, dtype=torch.float32, dropout=0.0, head=None, services=None,
    inside=None, packed=False, group=None,
):  # fmt: skip
    """The result and the trained model, which is divided among the devices of a ``group`` that shards.

    ``head`` are tensors of the plain model to begin from, ``services`` makes the services from the model that
    is trained, and training takes place ``inside`` a context.
    """
    config = make_config({"train": "x", **settings})
    plain = tiny_model(dropout=dropout)
    head_names = find_head(plain).modules_to_save
    model = wrap(plain, config)
    begin_from = on_trained(model, head or {})
    if group is not None and group.sharded:
        shard(model, group.mesh(CPU))
    used = services(model) if services else Services()
    if group is not None:
        used = replace(used, group=group)
    with inside or nullcontext():
        result = train(
            model, examples(rows, 1), examples(held_out, 2), config, head_names=head_names, pad_token_id=0,
            dtype=dtype, device=CPU, begin_from=begin_from, services=used, packed=packed,
        )  # fmt: skip
    return result, model
