import numpy as np
import pytest
from transformers import BertConfig, ModernBertConfig

from snugtune.config import make_config
from snugtune.memory.allocator import replay
from snugtune.memory.setup import Setup
from snugtune.memory.surface import Surface
from snugtune.memory.trace import LIBRARY, Storage, Trace
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


def test_workspaces_of_cublas_are_as_large_as_the_card_has_them(rehearsal):
    small, large = (Surface(rehearsal, library_bytes=n << 20) for n in (8, 32))
    assert [int(s.trace(6, 64).is_library.sum()) for s in (small, large)] == [2, 2]
    for measure in (Surface.peak_bytes, Surface.exact_peak_bytes):
        assert measure(large, 6, 64) - measure(small, 6, 64) == pytest.approx(48 << 20, abs=20 << 20)
    assert large.trace(6, 64).peak_bytes - small.trace(6, 64).peak_bytes == 48 << 20
    assert large.trace(6, 64).composition()[LIBRARY] == 64 << 20


class Fragmented:
    """Two tensors make the peak; later a third finds no hole between what is left of them."""

    def trace(self, micro_batch, length, *, work=False):
        sizes = (30 << 20, 2 << 20, 30 << 20, 2 << 20, 50 << 20)
        storages = [Storage(n, "", "", str(i)) for i, n in enumerate(sizes)]
        return Trace(storages, np.array([1, 2, 3, 4, -1, -3, 5]))


def test_a_reserved_peak_that_comes_after_the_tensors_own_is_told_where_it_comes():
    surface = Surface(Fragmented())
    trace = surface.exact_trace(1, 1)
    assert trace.peak_event == 3
    assert surface.peak_event(trace) == 6
    assert trace.peak_place(surface.peak_event(trace)).startswith("4 ")
    assert Surface(Fragmented(), allocator=False).peak_event(trace) == 3


class Straight:
    """A step that holds 1,000 bytes and 100 for each example."""

    def trace(self, micro_batch, length, *, work=False):
        storages = [Storage(1000, "", "", ""), Storage(100 * micro_batch, "", "", "")]
        return Trace(storages, np.array([1, 2, -2]))


@pytest.mark.parametrize(("budget", "largest"), [(1099, 0), (1100, 1), (1999, 9), (2000, 10), (10**9, 64)])
def test_the_largest_micro_batch_within_a_budget(budget, largest):
    assert Surface(Straight(), allocator=False).max_micro_batch(budget, 8, 64) == largest


@pytest.fixture(scope="module", params=["bert", "modernbert"])
def packing(request, tmp_path_factory):
    """Of a model trained in full; ModernBERT's head averages over (texts, tokens)."""
    folder = tmp_path_factory.mktemp(request.param)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    shape = {"bert": BertConfig, "modernbert": ModernBertConfig}[request.param](**SHAPE, **tokens)
    if request.param == "modernbert":
        shape.classifier_pooling = "mean"
    shape.save_pretrained(folder)
    setup = Setup(weights="float32", compute="bfloat16", attention="packed", chunked_evaluation=True)
    return Rehearsal(make_config({"train": "", "model": str(folder), "method": "full"}), 7, setup)


@pytest.mark.parametrize(("texts", "tokens"), [(8, 4096), (300, 4096), (64, 1000)])
def test_packed_texts_of_any_length_from_four_traces_are_exact(packing, texts, tokens):
    surface = Surface(packing)
    made = packing.trace(texts, 512, work=True, tokens=tokens)
    found = surface.packed_trace(texts, tokens, 512)
    assert found.peak_bytes == pytest.approx(made.peak_bytes, rel=1e-4)
    exact = replay(made, expandable_segments=True).peak_reserved
    assert surface.packed_peak_bytes(texts, tokens, 512) == exact
    if texts * 512 == tokens:
        assert surface.peak_bytes(texts, 512) == exact


def test_more_texts_of_as_many_tokens_take_more_and_are_found(packing):
    surface = Surface(packing)
    few, many = (surface.packed_trace(n, 4096, 512).peak_bytes for n in (8, 300))
    assert many > few
    assert surface.heaviest([(8, 4096), (300, 4096), (299, 3000), (300, 3999)], 512) == (300, 4096)
    assert surface.heaviest([(8, 4096), (9, 100)], 512) == (8, 4096)


@pytest.mark.parametrize("packing", ["bert"], indirect=True)
def test_buffers_that_begin_at_a_size_are_there_from_that_size_on(packing):
    """Sums over rows, as of biases' gradients, take nothing in the small micro-batches that are traced."""
    surface = Surface(packing, allocator=False)
    assert not any(s.n_bytes for i, s in enumerate(surface.trace(2, 64).storages) if i in of_sums(packing))
    large = surface.trace(64, 64)
    assert large.storages == packing.trace(64, 64, work=True).storages
    assert any(large.storages[i].n_bytes for i in of_sums(packing))


def of_sums(rehearsal):
    demands = rehearsal.trace(2, 64, work=True).demands
    return [i for i, demand in demands.items() if "reduction" in demand.rule.__name__]
