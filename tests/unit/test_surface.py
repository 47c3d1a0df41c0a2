import numpy as np
import pytest
from transformers import BertConfig

from snugtune.config import make_config
from snugtune.memory.setup import Setup
from snugtune.memory.surface import Surface
from snugtune.memory.trace import Storage, Trace
from snugtune.train.rehearsal import Rehearsal

SHAPE = {
    "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 128, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    BertConfig(**SHAPE).save_pretrained(folder)
    return Rehearsal(
        make_config({"train": "", "model": str(folder), "r": 4}), 7, Setup(chunked_evaluation=True)
    )


@pytest.mark.parametrize("micro_batch", [4, 16])
def test_any_micro_batch_from_two_traces_is_exact(rehearsal, micro_batch):
    for expandable in (False, True):
        surface = Surface(rehearsal, expandable_segments=expandable)
        assert surface.peak_bytes(micro_batch, 64) == surface.exact_peak_bytes(micro_batch, 64)
    tensors = Surface(rehearsal, allocator=False)
    assert tensors.peak_bytes(micro_batch, 64) == tensors.exact_peak_bytes(micro_batch, 64)


def test_a_length_between_is_exact_on_the_kernels_grid(rehearsal):
    surface = Surface(rehearsal, allocator=False)
    between = surface.interpolated_peak_bytes(5, 96, (32, 64, 160))
    assert between == pytest.approx(surface.exact_peak_bytes(5, 96), rel=1e-4)


def test_the_peak_grows_with_micro_batch_and_length(rehearsal):
    surface = Surface(rehearsal, allocator=False)
    peaks = [surface.peak_bytes(micro_batch, 64) for micro_batch in range(1, 20)]
    assert peaks == sorted(peaks)
    assert surface.peak_bytes(4, 128) > 2 * surface.peak_bytes(4, 64) - surface.peak_bytes(1, 32) * 2


def test_the_trace_put_together_is_the_one_that_would_be_made(rehearsal):
    put_together = Surface(rehearsal).trace(6, 64)
    made = rehearsal.trace(6, 64, work=True)
    assert put_together.storages == made.storages
    assert put_together.work.flops.tolist() == pytest.approx(made.work.flops.tolist())
    assert put_together.work.n_bytes.tolist() == pytest.approx(made.work.n_bytes.tolist())


class Straight:
    """A step that holds 1,000 bytes and 100 for each example."""

    def trace(self, micro_batch, length, *, work=False):
        storages = [Storage(1000, "", "", ""), Storage(100 * micro_batch, "", "", "")]
        return Trace(storages, np.array([1, 2, -2]))


@pytest.mark.parametrize(("budget", "largest"), [(1099, 0), (1100, 1), (1999, 9), (2000, 10), (10**9, 64)])
def test_the_largest_micro_batch_within_a_budget(budget, largest):
    assert Surface(Straight(), allocator=False).max_micro_batch(budget, 8, 64) == largest
