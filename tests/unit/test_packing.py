"""Texts packed into one row, without padding: logits and gradients are those of a padded batch."""

from dataclasses import replace
from functools import cache
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification

from families import FAMILIES as SETTINGS
from scarcity import MESSAGES, FailAt
from snugtune.config import make_config
from snugtune.data.tokens import Tokens, Truncation
from snugtune.memory.devices import find_device
from snugtune.memory.guard import Guard, HostMemory
from snugtune.memory.setup import Setup
from snugtune.memory.workspaces import workspace_bytes
from snugtune.model import attention, blocked_attention, varlen
from snugtune.model.adapter import trainable_state
from snugtune.model.backbone import set_dropout, without_cache
from snugtune.model.checkpointing import checkpoint_layers
from snugtune.model.first_token import FIRST_TOKEN_TYPES, read_first_token_only
from snugtune.model.packing import (
    FAMILIES,
    is_packable,
    kernel_takes,
    pack,
    packed_logits,
    packs_on_cpu,
    row_size,
)
from snugtune.model.varlen import (
    MAX_PADDING,
    by_blocks,
    by_text,
    kernel,
    packed_attention,
    takes_shared_heads,
    window,
)
from snugtune.train import forward
from snugtune.train.engine import Services
from snugtune.train.forward import collate, predict_logits
from snugtune.train.planning import make_planner
from snugtune.train.rehearsal import Rehearsal
from tiny_training import CPU, train_tiny

PAD = 1
SOME_LENGTHS = (5, 17, 1, 30, 9)
VARIANTS = {
    "gemma": {**SETTINGS["gemma3_text"], "model_type": "gemma"},
    "modernbert, mean": {**SETTINGS["modernbert"], "model_type": "modernbert", "classifier_pooling": "mean"},
    "modernbert, narrow": {**SETTINGS["modernbert"], "model_type": "modernbert", "local_attention": 8},
    "gemma3_text, narrow": {**SETTINGS["gemma3_text"], "model_type": "gemma3_text", "sliding_window": 4},
    "mistral, narrow": {**SETTINGS["mistral"], "model_type": "mistral", "sliding_window": 4},
}
FIRST_TOKEN = {f"{family}, last layer of the first token": family for family in sorted(FIRST_TOKEN_TYPES)}
CASES = [*sorted(set(FAMILIES) - {"gemma"}), *VARIANTS, *FIRST_TOKEN]


def shape_of(case):
    case = FIRST_TOKEN.get(case, case)
    values = dict(VARIANTS.get(case) or SETTINGS[case]) | {"initializer_range": 0.2, "num_labels": 5}
    config = AutoConfig.for_model(values.pop("model_type", case), **values)
    config.pad_token_id = PAD
    set_dropout(config, 0.0)
    without_cache(config)
    config._attn_implementation = attention.register()
    return config


@cache
def model_of(case):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(shape_of(case)).train()
    if case in FIRST_TOKEN:
        assert read_first_token_only(model)
    return model


def texts(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 200, n).astype(np.int32) for n in lengths]


def padded_logits(model, rows):
    lengths = np.array([len(row) for row in rows])
    tokens = Tokens(rows, lengths, Truncation(64, len(rows), 0, int(lengths.sum()), 0))
    return model(**collate(tokens, np.arange(len(rows)), PAD, CPU)).logits


def gradients(model, logits):
    model.zero_grad(set_to_none=True)
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (logits * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found, expected, scale, message=""):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6 * max(scale, 1.0), msg=message or None)


def assert_packed_is_unpacked(case, rows):
    model = model_of(case)
    expected = padded_logits(model, rows)
    expected_gradients = gradients(model, expected)
    found = packed_logits(model, pack(rows, model))
    found_gradients = gradients(model, found)
    assert_close(found, expected, float(expected.detach().abs().max()))
    assert found_gradients.keys() == expected_gradients.keys()
    # Some gradients, of the keys' biases for one, are nothing but rounding.
    scale = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        assert_close(found_gradients[name], gradient, scale, f"{case}: {name}")


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_a_padded_batch(case):
    assert is_packable(shape_of(case))
    assert_packed_is_unpacked(case, texts(SOME_LENGTHS))


@pytest.mark.parametrize("case", ["xlm-roberta", "bert", "modernbert, narrow", "qwen3"])
@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_they_are_for_texts_of_any_lengths(case, lengths, seed):
    assert_packed_is_unpacked(case, texts(lengths, seed))


@pytest.mark.parametrize("case", CASES)
def test_nothing_leaks_from_one_text_into_another(case):
    model = model_of(case).eval()
    rows = texts(SOME_LENGTHS)
    others = [row if i == 1 else other for i, (row, other) in enumerate(zip(rows, texts(SOME_LENGTHS, 1)))]  # noqa: B905
    with torch.no_grad():
        before, after = (packed_logits(model, pack(some, model)) for some in (rows, others))
    model.train()
    assert torch.equal(before[1], after[1])
    assert not torch.isclose(before[[0, 2, 3, 4]], after[[0, 2, 3, 4]]).all(1).any()


@pytest.mark.parametrize("case", ["xlm-roberta", "roberta", "camembert", "gpt2", "llama"])
def test_the_pad_token_inside_a_text_is_read_as_in_a_padded_batch(case):
    rows = texts((6, 9, 4))
    rows[0][3] = rows[1][-1] = rows[2][1] = PAD
    model = model_of(case)
    # In a padded batch the family's own rules apply to a mask that hides none of it.
    assert_close(packed_logits(model, pack(rows, model)), padded_logits(model, rows), 3.0)


def test_positions_of_the_roberta_family_start_behind_the_padding():
    packed = pack(texts((3, 2)), model_of("xlm-roberta"))
    assert packed.position_ids.tolist() == [[2, 3, 4, 2, 3]]
    assert pack(texts((3, 2)), model_of("bert")).position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert packed.boundaries.tolist() == [0, 3, 5]
    assert packed.read_at.tolist() == [0, 3]
    assert pack(texts((3, 2)), model_of("llama")).read_at.tolist() == [2, 4]
    assert packed.longest == 3


def test_recomputed_layers_give_the_same_bits():
    model, rows = model_of("bert"), texts(SOME_LENGTHS)
    plain = gradients(model, packed_logits(model, pack(rows, model)))
    checkpoint_layers(model, 2)
    recomputed = gradients(model, packed_logits(model, pack(rows, model)))
    checkpoint_layers(model, 0)
    assert all(torch.equal(recomputed[name], gradient) for name, gradient in plain.items())


@pytest.mark.parametrize(
    ("case", "setting"),
    [
        ("bert", {"attention_probs_dropout_prob": 0.1}),
        ("bert", {"is_decoder": True}),
        ("gpt2", {"attn_pdrop": 0.1}),
        ("gpt2", {"reorder_and_upcast_attn": True}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
        ("deberta-v2", {}),
        ("mpnet", {}),
        ("albert", {}),
    ],
)
def test_what_would_differ_is_not_packed(case, setting):
    config = shape_of(case)
    for name, value in setting.items():
        setattr(config, name, value)
    assert not is_packable(config)


def test_attention_dropout_is_refused():
    row = torch.zeros(1, 2, 3, 8)
    with pytest.raises(ValueError, match="without attention dropout"):
        packed_attention(torch.nn.Module(), row, row, row, dropout=0.1)


@pytest.mark.parametrize(
    ("causal", "sliding", "expected"),
    [(False, None, (-1, -1)), (True, None, (-1, 0)), (True, 4, (3, 0)), (False, 4, (3, 3))],
)
def test_windows_are_told_as_the_kernel_counts_them(causal, sliding, expected):
    assert window(causal, sliding) == expected


def test_the_reference_is_attention_written_out():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(7, heads, 8, generator=generator) for heads in (4, 2, 2))
    boundaries = torch.tensor([0, 3, 7], dtype=torch.int32)
    options = {"scale": 0.5, "window_size": (2, 0), "enable_gqa": True}
    found = by_text(query, key, value, boundaries, boundaries, 4, 4, **options)
    scores = 0.5 * torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(2, dim=1))
    at = torch.arange(7)
    text = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    behind = at[:, None] - at
    seen = (text[:, None] == text) & (behind >= 0) & (behind <= 2)
    shares = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    expected = torch.einsum("hqk,khd->qhd", shares, value.repeat_interleave(2, dim=1))
    torch.testing.assert_close(found, expected)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=20),
    behind=st.integers(0, 40),
    sort=st.booleans(),
    seed=st.integers(0, 99),
)
def test_texts_of_nearly_one_length_at_once_are_what_each_is_alone(lengths, behind, sort, seed):
    lengths = sorted(lengths) if sort else lengths
    generator = torch.Generator().manual_seed(seed)
    ends = np.cumsum([0, *lengths])
    boundaries = torch.from_numpy(ends.astype(np.int32))
    shape = (int(ends[-1]) + behind, 3, 8)
    rows = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    # Nobody's tokens may be anything.
    for row in rows:
        row[ends[-1] :] = 1e30
    places = (boundaries, boundaries, max(lengths), max(lengths))
    torch.testing.assert_close(by_blocks(*rows, *places), by_text(*rows, *places))


@given(lengths=st.lists(st.integers(1, 600), min_size=1, max_size=50))
def test_what_is_computed_at_once_has_little_padding(lengths):
    ends = np.cumsum([0, *lengths]).tolist()
    runs = list(varlen._nearly_alike(ends))
    assert [n for _, run in runs for n in run] == lengths
    assert [start for starts, _ in runs for start in starts] == ends[:-1]
    assert all(max(run) * len(run) - sum(run) <= MAX_PADDING for _, run in runs)


@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_goes_through_blocks_where_that_is_faster(monkeypatch, dtype, pays):
    took = []
    for name, take in (("by_blocks", by_blocks), ("by_text", by_text)):
        monkeypatch.setattr(varlen, name, lambda *a, n=name, t=take, **o: took.append(n) or t(*a, **o))
    monkeypatch.setattr(blocked_attention, "pays", lambda _length: pays)
    row = torch.randn(1, 2, 5, 8).to(dtype)
    boundaries = torch.tensor([0, 2, 5], dtype=torch.int32)
    texts = {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries, "max_length_q": 3, "max_length_k": 3}
    module = torch.nn.Module()
    for causal, sliding in ((False, None), (True, None), (False, 2)):
        packed_attention(module, row, row, row, is_causal=causal, sliding_window=sliding, **texts)
    first = "by_blocks" if pays and dtype == torch.bfloat16 else "by_text"
    assert took == [first, "by_text", "by_text"]


@pytest.mark.parametrize("settings", [{}, {"tokens_per_micro_batch": 60}, {"method": "full"}])
def test_training_on_packed_texts_trains_the_same_model(settings):
    settings = {"num_train_epochs": 1, "effective_batch_size": 12, **settings}
    padded, packed = (train_tiny(settings, packed=packed) for packed in (False, True))
    assert not padded[0].packed
    assert packed[0].packed
    losses = [[m["loss"] for m in result.metrics if "loss" in m] for result, _ in (padded, packed)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=2e-6)
    state = trainable_state(padded[1])
    for name, tensor in trainable_state(packed[1]).items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=5e-6, msg=name)


def test_it_trains_under_autocast():
    result, _ = train_tiny({"num_train_epochs": 1}, dtype=torch.bfloat16, packed=True)
    expected, _ = train_tiny({"num_train_epochs": 1}, packed=True)
    assert result.metrics[1]["loss"] == pytest.approx(expected.metrics[1]["loss"], rel=0.05)


def test_a_packed_micro_batch_that_does_not_fit_is_cut_by_its_own_tokens():
    guard = Guard(HostMemory())
    failing = {"left": 1}

    class FailsOnce(FailAt):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if failing["left"] and torch.is_grad_enabled() and func is torch.ops.aten.gelu.default:
                failing["left"] -= 1
                raise MESSAGES[0]()
            return func(*args, **(kwargs or {}))

    settings = {"num_train_epochs": 1, "effective_batch_size": 8}
    result, model = train_tiny(
        settings, packed=True, inside=FailsOnce(-1, None), services=lambda _: Services(guard=guard)
    )
    expected, undisturbed = train_tiny(settings, packed=True)
    assert [event["action"] for event in guard.events] == ["cut in two"]
    state = trainable_state(undisturbed)
    for name, tensor in trainable_state(model).items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=2e-6, msg=name)
    assert result.steps == expected.steps


LARGER = {
    "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128, "num_hidden_layers": 2,
    "vocab_size": 99, "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip


def planner(tmp_path, case="bert", **settings):
    values = {key: value for key, value in LARGER.items() if case != "gpt2"}
    AutoConfig.for_model(case, **values).save_pretrained(tmp_path)
    config = make_config({"train": "", "model": str(tmp_path), **settings})
    return make_planner(config, 3, np.full(40, 128))


@pytest.mark.parametrize(
    ("card", "case", "settings", "expected"),
    [
        ("a100-40", "bert", {}, "packed"),
        ("t4", "bert", {}, "fused"),
        ("a100-40", "bert", {"packing": "off"}, "fused"),
        ("a100-40", "bert", {"bf16": False}, "fused"),
        ("a100-40", "mpnet", {}, "fused"),
    ],
)
def test_the_plan_packs_where_card_and_model_can(tmp_path, card, case, settings, expected):
    assert planner(tmp_path, case, **settings)._base(find_device(card)).attention == expected


def test_the_rehearsal_runs_the_kernel_on_packed_texts(tmp_path):
    BATCH, LENGTH = 4, 128
    made, card = planner(tmp_path), find_device("a100-40")
    surfaces = [
        made.surface(Setup(attention=name, chunked_evaluation=True), card) for name in ("packed", "fused")
    ]
    packed, fused = (surface.rehearsal.trace(BATCH, LENGTH, work=True) for surface in surfaces)
    tokens = BATCH * LENGTH
    statistics = [s for s in packed.storages if s.kind == "attention" and s.n_bytes == 4 * 2 * tokens]
    # In a step of one micro-batch and one of two; the last layer has one query for each text.
    assert len(statistics) == 3
    assert packed.peak_bytes < fused.peak_bytes
    assert 0.9 < packed.work.flops.sum() / fused.work.flops.sum() < 1.1
    assert surfaces[0].column(LENGTH) is not None


def test_the_kernels_backward_pass_takes_what_its_source_says():
    operator = torch.ops.torch_attn._varlen_attn_backward.default
    query, key = torch.zeros(100, 4, 40, dtype=torch.half), torch.zeros(100, 2, 40, dtype=torch.half)
    boundaries = torch.zeros(4, dtype=torch.int32)
    args = (query, query, key, key, query, None, boundaries)
    rows = 100 + 3 * 128
    assert workspace_bytes(operator, args) == 4 * rows * 4 * 64 + 4 * rows * 4 + 2 * 100 * 4 * 40 * 2


def test_this_pytorch_has_the_kernel():
    assert kernel() is not None
    assert takes_shared_heads()


def test_no_pytorch_and_no_card_has_another_kernel_compute(monkeypatch):
    module = import_module("torch.nn.attention.varlen")
    monkeypatch.setattr(module, varlen.CHOOSES_CUDNN, lambda device_index: True)
    kernel.cache_clear()
    assert kernel() is module.varlen_attn
    assert not getattr(module, varlen.CHOOSES_CUDNN)(0)


def test_an_earlier_pytorch_packs_what_shares_no_heads(monkeypatch):
    def earlier(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        return by_text(
            query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size
        )

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", earlier)
    kernel.cache_clear()
    try:
        assert kernel_takes(AutoConfig.for_model("llama", **LARGER, num_key_value_heads=2))
        assert not kernel_takes(AutoConfig.for_model("llama", **LARGER, num_key_value_heads=1))
        assert kernel_takes(AutoConfig.for_model("bert", **LARGER))
        rows, edges = torch.randn(1, 2, 8, 16), torch.tensor([0, 3, 8], dtype=torch.int32)
        packed = packed_attention(
            torch.nn.Module(), rows, rows, rows, is_causal=False, run=kernel(), cu_seq_lens_q=edges,
            cu_seq_lens_k=edges, max_length_q=5, max_length_k=5,
        )  # fmt: skip
        assert packed.shape == (1, 8, 2, 16)
    finally:
        kernel.cache_clear()


def test_a_setup_of_packed_texts_is_rehearsed_with_checkpointing(tmp_path):
    AutoConfig.for_model("llama", **LARGER, num_key_value_heads=1).save_pretrained(tmp_path)
    config = make_config({"train": "", "model": str(tmp_path)})
    setup = Setup(attention="packed", chunked_evaluation=True)
    recomputed, kept = (
        Rehearsal(config, 3, replace(setup, activation_checkpointing=k)).trace(4, 128).peak_bytes
        for k in (2, 0)
    )
    assert recomputed < kept


# On a CPU, without gradients


@pytest.mark.parametrize("case", CASES)
def test_tokens_of_nobody_behind_the_texts_change_nothing(case):
    model = model_of(case).eval()
    rows = texts(SOME_LENGTHS)
    with torch.no_grad():
        expected, found = (packed_logits(model, pack(rows, model, size)) for size in (0, 96))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(st.integers(1, 9000))
def test_a_row_has_room_for_its_tokens_and_one_of_few_lengths(tokens):
    size = row_size(tokens)
    assert tokens <= size <= max(32, 1.25 * tokens + 32)
    assert row_size(size) == size


def test_there_are_few_lengths_of_rows():
    assert len({row_size(tokens) for tokens in range(1, 4097)}) == 24


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_predictor_packs_and_gives_each_text_what_it_gets_alone(dtype, monkeypatch):
    config = shape_of("bert")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval().to(dtype)
    rows = [*texts((3, 9, 9, 1, 30)), np.array([], dtype=np.int32)]
    options = {"pad_token_id": PAD, "device": CPU}
    sizes = []
    monkeypatch.setattr(
        forward, "pack", lambda rows, model, size: sizes.append(size) or pack(rows, model, size)
    )
    found = predict_logits(model, as_tokens(rows), **options)
    assert sizes == [0 if dtype == torch.float32 else 64]
    alone = np.concatenate([predict_logits(model, as_tokens([row]), **options) for row in rows])
    padded = model(**collate(as_tokens(rows[:5]), np.arange(5), PAD, CPU)).logits.detach().float().numpy()
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    np.testing.assert_allclose(found, alone, **close)
    np.testing.assert_allclose(found[:5], padded, **close)


def test_what_is_not_packed_on_a_cpu():
    config = shape_of("bert")
    model = AutoModelForSequenceClassification.from_config(config)
    assert packs_on_cpu(model)
    model.config._attn_implementation = "sdpa"  # stock attention lets texts in one row see each other
    assert not packs_on_cpu(model)
    assert not packs_on_cpu(torch.nn.Linear(2, 2))


def as_tokens(rows):
    lengths = np.array([len(row) for row in rows])
    return Tokens(rows, lengths, Truncation(64, len(rows), 0, int(lengths.sum()), 0))
