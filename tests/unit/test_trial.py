"""The short pass that a quote is made from."""

import numpy as np
import pytest
import torch

from snugtune.config import make_config
from snugtune.memory.guard import Guard, Limit, device_memory
from snugtune.memory.timing import PADDING
from snugtune.train import trial
from snugtune.train.trial import (
    frozen_pass_s,
    padded_positions,
    some_rows,
    stepwise_pass_s,
    training_passes,
)
from tiny_training import CPU, examples, tiny_model


def test_rows_are_drawn_until_there_are_enough_tokens():
    lengths = np.full(1000, 10)
    rows = some_rows(lengths, 4096, 0)
    assert len(rows) == len(set(rows.tolist())) == 409
    assert some_rows(lengths, 4096, 0).tolist() == rows.tolist() != some_rows(lengths, 4096, 1).tolist()
    assert len(some_rows(lengths[:5], 4096, 0)) == 5
    assert len(some_rows(np.array([512]), 100, 0)) == 1


def test_padding_is_counted():
    # 8 + 8 and 2 + 2 + 2 in micro-batches of at most 16 positions.
    assert padded_positions(np.array([2, 8, 2, 7, 2]), 16) == 2 * 8 + 3 * 2


def test_the_pass_is_scaled_from_the_few_to_all(monkeypatch):
    tokens, calls = examples(400, 1).tokens, []

    def read(model, part, **_):
        calls.append(part.lengths)

    ticks = iter((100.0, 102.0))
    monkeypatch.setattr(trial, "predict_logits", read)
    monkeypatch.setattr(trial.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setitem(trial.TRIAL_TOKENS, "cpu", 1000)
    guard = Guard(device_memory(CPU))
    seconds = frozen_pass_s(None, tokens, pad_token_id=0, device=CPU, dtype=torch.float32, guard=guard)
    warm_up, read_rows = calls
    assert len(warm_up) == len(read_rows) // trial.WARM_UP
    assert 900 < read_rows.sum() <= 1000
    positions = padded_positions(read_rows, 8192)
    assert seconds == pytest.approx(2.0 / positions * PADDING * tokens.lengths.sum())


def test_steps_are_read_as_training_cuts_them(monkeypatch):
    tokens, read = examples(400, 1).tokens, []
    monkeypatch.setattr(trial, "predict_logits", lambda model, part, **_: read.append(part.lengths))
    ticks = iter((100.0, 102.0))
    monkeypatch.setattr(trial.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setitem(trial.TRIAL_TOKENS, "cpu", 1000)
    guard = Guard(device_memory(CPU), training=Limit(64))
    seconds = stepwise_pass_s(
        None, tokens, step_examples=32, pad_token_id=0, device=CPU, dtype=torch.float32, guard=guard
    )
    warm_up = np.searchsorted(np.cumsum([len(lengths) for lengths in read]), 32 // trial.WARM_UP) + 1
    seen = sum(lengths.sum() for lengths in read[warm_up:])
    assert sum(map(len, read[:warm_up])) == 32 // trial.WARM_UP
    assert sum(map(len, read[warm_up:])) % 32 == 0
    assert all(len(lengths) == 1 or len(lengths) * lengths.max() <= 64 for lengths in read)
    assert 500 < seen <= 1000
    assert seconds == pytest.approx(2.0 * tokens.lengths.sum() / seen)


def test_fewer_texts_than_a_step_has_are_one_step():
    seconds = stepwise_pass_s(
        tiny_model(), examples(5, 1).tokens, step_examples=32, pad_token_id=0, device=CPU,
        dtype=torch.float32, guard=Guard(device_memory(CPU)),
    )  # fmt: skip
    assert seconds > 0


def test_it_leaves_the_model_and_the_random_numbers_as_they_were():
    model = tiny_model(dropout=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    seconds = frozen_pass_s(
        model, examples(40, 1).tokens, pad_token_id=0, device=CPU, dtype=torch.float32,
        guard=Guard(device_memory(CPU)),
    )  # fmt: skip
    assert seconds > 0
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layers_that_are_run_twice_cost_a_pass_more():
    lora, head = (make_config({"train": "x", "method": method}) for method in ("lora", "head"))
    lengths = np.array([10, 30])
    once = training_passes(lora, lengths, checkpointed=False)
    assert training_passes(lora, lengths, checkpointed=True) == once + 1
    assert training_passes(head, lengths, checkpointed=False) < once


def test_virtual_tokens_cost_what_tokens_cost():
    config = make_config({"train": "x", "method": "prompt", "num_virtual_tokens": 20})
    plain = make_config({"train": "x"})
    passes = [training_passes(c, np.array([10, 30]), checkpointed=False) for c in (plain, config)]
    assert passes[1] == 2 * passes[0]
