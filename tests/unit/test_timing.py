"""An epoch is cut as training cuts it, and each of its micro-batches takes what its own operators take."""

import numpy as np
import pytest
from test_plan import SHAPE, T4
from transformers import BertConfig

from snugtune.config import make_config
from snugtune.data.batches import micro_batches
from snugtune.memory.devices import find_device
from snugtune.memory.epoch import SAMPLE_ROWS, cut_epoch
from snugtune.memory.setup import Setup
from snugtune.memory.surface import MICRO_BATCHES
from snugtune.memory.timing import LAUNCH_S, costs
from snugtune.memory.trace import Work
from snugtune.train.planning import plan_devices
from snugtune.train.rehearsal import Rehearsal


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    BertConfig(**SHAPE).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("attention", ["fused", "packed"])
def test_few_traces_give_the_time_at_other_lengths_and_sizes(bert, attention):
    config = make_config({"train": "", "model": bert})
    rehearsal = Rehearsal(config, 5, Setup(attention=attention))
    few, more = (rehearsal.trace(n, 256, work=True).work for n in MICRO_BATCHES)
    of_operators = costs(few, more, MICRO_BATCHES, 256, micro_batches=3)
    for n, length in ((2, 256), (6, 64), (20, 512), (4, 32)):
        exact = rehearsal.trace(n, length, work=True).work
        alone = costs(
            exact, rehearsal.trace(n + 1, length, work=True).work, (n, n + 1), length, micro_batches=3
        )
        shape = np.array([float(n * length)]), np.array([float(n * length**2)])
        theirs = alone.seconds(T4, "float16", *shape)
        assert of_operators.seconds(T4, "float16", *shape) == pytest.approx(theirs, rel=0.02)


def test_attention_grows_with_the_square_and_a_launch_is_the_least():
    one = np.ones(1)
    # Twice as many texts do twice the work, all of it attention's.
    few, more = (
        Work(n * 1e12 * one, 0 * one, np.array(["activations"]), n * 1e12 * one, 0 * one) for n in (2, 4)
    )
    of_attention = costs(few, more, (2, 4), 100, micro_batches=1)
    tokens, pairs = np.array([200.0, 400.0, 1.0]), np.array([200.0 * 100, 400.0 * 200, 1.0])
    found = of_attention.seconds(T4, "float16", tokens, pairs)
    assert found[1] == pytest.approx(4 * found[0])
    assert found[2] == LAUNCH_S


def test_steps_of_other_operators_are_taken_to_grow_with_their_texts():
    few, more = (
        Work(*(np.full(n, 1e12) for _ in range(2)), np.full(n, "activations"), *np.zeros((2, n)))
        for n in (1, 2)
    )
    found = costs(few, more, (2, 3), 10, micro_batches=1)
    assert found.flops.T.tolist() == [[0.0, 5e10, 0.0]]


def test_an_epoch_is_cut_as_training_cuts_it():
    lengths = np.random.default_rng(1).integers(5, 200, 1000)
    whole = cut_epoch(lengths, step_examples=1000, tokens_per_micro_batch=2048)
    parts = micro_batches(np.arange(1000), lengths, 2048)
    assert whole.steps == 1
    assert whole.passes == len(parts)
    assert sorted(whole.tokens) == sorted(len(part) * lengths[part].max() for part in parts)
    assert sorted(whole.pairs) == sorted(len(part) * lengths[part].max() ** 2 for part in parts)
    packed = cut_epoch(lengths, step_examples=32, tokens_per_micro_batch=2048, packed=True)
    assert packed.tokens.sum() == lengths.sum()
    assert packed.pairs.sum() == (lengths**2).sum()
    assert packed.steps == 32
    few = cut_epoch(lengths, step_examples=32, tokens_per_micro_batch=2048, max_examples=4)
    assert few.passes >= 1000 / 4


def test_a_sample_stands_for_many_texts_and_devices_share_a_step():
    lengths = np.random.default_rng(1).integers(5, 200, 10 * SAMPLE_ROWS)
    sample = cut_epoch(lengths, step_examples=32, tokens_per_micro_batch=2048)
    assert len(sample.tokens) < SAMPLE_ROWS
    assert sample.scale == 10
    assert sample.of_slowest(sample.tokens) == pytest.approx(1.04 * lengths.sum(), rel=0.04)
    shared = cut_epoch(lengths, step_examples=32, tokens_per_micro_batch=2048, devices=4)
    assert shared.of_slowest(shared.tokens) == pytest.approx(sample.of_slowest(sample.tokens) / 4, rel=0.2)


def test_one_long_text_among_short_ones_makes_no_epoch_faster(bert):
    config = make_config({"train": "", "model": bert})
    for card in (T4, find_device("h100")):
        short, with_long, long = (
            plan_devices(config, 5, [card], lengths=np.array(lengths))[0].time_s
            for lengths in ([9] * 3200, [9] * 3200 + [512], [512] * 3201)
        )
        assert short < with_long < 1.2 * short
        assert long > 1.5 * short
