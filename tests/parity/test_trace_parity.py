"""The rehearsal on fake tensors against the same ledger over a real step: the same bytes by storage."""

from itertools import groupby

import numpy as np
import pytest
from transformers import AttentionMaskInterface, BertConfig, ModernBertConfig, Qwen3Config
from transformers.masking_utils import sdpa_mask

from snugtune.config import make_config
from snugtune.memory import trace
from snugtune.memory.setup import Setup
from snugtune.memory.trace import Ledger, Trace
from snugtune.model import attention
from snugtune.train import rehearsal
from snugtune.train.rehearsal import Rehearsal, materialise, run_steps

SMALL = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
SHAPES = {
    "bert": BertConfig(**SMALL),
    "modernbert": ModernBertConfig(**SMALL, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=16),
}
MICRO_BATCH, LENGTH = 3, 24


@pytest.fixture
def folder(tmp_path, request):
    SHAPES[request.param].save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def _no_look_at_the_mask(monkeypatch):
    """On real tensors Transformers first looks whether a mask is needed; fake ones show nothing."""

    def always(*args, **options):
        return sdpa_mask(
            *args, **options | {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        )

    register = attention.register

    def registered():
        name = register()
        AttentionMaskInterface.register(name, always)
        return name

    monkeypatch.setattr(attention, "register", registered)
    yield
    register()


def real_trace(predicted):
    """The steps of ``predicted`` on real tensors, with one padded text so that there is a mask."""
    model = predicted.model
    materialise(model)
    ledger = Ledger(model)
    ledger.mark((*model.parameters(), *model.buffers()), trace.WEIGHTS)

    def batch():
        length = predicted._text_length(LENGTH)
        made = rehearsal._batch(MICRO_BATCH, length)
        made.inputs["attention_mask"].numpy()[0, length // 2 :] = 0
        return made

    ended = []
    with ledger:
        run_steps(
            model, predicted.config, predicted.head_names, ledger, batch=batch, autocast=predicted._autocast,
            accumulates=True, on_card=False, evaluate=lambda: ended.append(len(ledger._events)),
        )  # fmt: skip
    found = ledger.close()
    return Trace(found.storages, found.events[: ended[0]])


def training_part(found):
    """The trace up to where validation begins."""
    first = [s.category for s in found.storages].index(trace.EVALUATION)
    at = int(np.flatnonzero(found.events == first + 1)[0])
    return Trace(found.storages[:first], found.events[:at])


def in_order(found):
    """The events with neighbouring frees sorted: autocast drops its casts in a hash table's order."""
    runs = [list(run) for _, run in groupby(found.events.tolist(), key=lambda event: event > 0)]
    return [event for run in runs for event in (run if run[0] > 0 else sorted(run))]


def sizes(found):
    """Bytes of the storages in any order (gradients ready at once may come in either), less single numbers.

    A fake layer norm of bfloat16 inputs with float32 weights keeps mean and deviation in bfloat16, a real one
    in float32: 2 bytes a row, where a row is a text in ModernBERT's head.
    """
    return sorted(size for size in found.sizes.tolist() if size > 4 * MICRO_BATCH)


@pytest.mark.usefixtures("_no_look_at_the_mask")
@pytest.mark.parametrize("folder", ["bert", "modernbert", "qwen3"], indirect=True)
@pytest.mark.parametrize(
    ("settings", "setup"),
    [
        ({"method": "lora", "r": 4}, Setup("cpu", "float32", "float32")),
        ({"method": "lora", "r": 4, "target_modules": "all-linear"}, Setup("cpu", "bfloat16", "bfloat16")),
        ({"method": "full"}, Setup("cpu", "float32", "float32")),
        ({"method": "full"}, Setup("cpu", "float32", "bfloat16")),
        ({"method": "lora", "r": 4}, Setup("cpu", "bfloat16", "bfloat16", activation_checkpointing=1)),
        ({"method": "lora", "r": 4, "use_dora": True}, Setup("cpu", "float32", "float32")),
        ({"method": "vera", "r": 8}, Setup("cpu", "bfloat16", "bfloat16")),
        ({"method": "oft"}, Setup("cpu", "float32", "float32")),
        ({"method": "boft"}, Setup("cpu", "float32", "float32")),
        ({"method": "ia3"}, Setup("cpu", "bfloat16", "bfloat16")),
        ({"method": "head"}, Setup("cpu", "bfloat16", "bfloat16")),
    ],
)
def test_fake_and_real_steps_allocate_the_same_bytes(folder, settings, setup):
    predicted = Rehearsal(make_config({"train": "", "model": folder, **settings}), 5, setup)
    expected = training_part(predicted.trace(MICRO_BATCH, LENGTH))
    found = real_trace(predicted)
    assert found.peak_bytes == expected.peak_bytes
    assert found.composition() == expected.composition()
    assert sizes(found) == sizes(expected)
    assert in_order(found) == in_order(expected)


@pytest.mark.usefixtures("_no_look_at_the_mask")
@pytest.mark.parametrize("folder", ["bert"], indirect=True)
@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        # Its norms are those of which fake tensors keep less in bfloat16 (see ``sizes``).
        ("bitfit", "float32"),
        ("prefix", "float32"),
        ("prefix", "bfloat16"),
        ("prompt", "bfloat16"),
        ("p-tuning", "float32"),
    ],
)
def test_methods_that_decoders_or_modernbert_lack_allocate_the_same_bytes(folder, method, dtype):
    test_fake_and_real_steps_allocate_the_same_bytes(folder, {"method": method}, Setup("cpu", dtype, dtype))


@pytest.mark.usefixtures("_no_look_at_the_mask")
@pytest.mark.parametrize("folder", ["bert", "qwen3"], indirect=True)
def test_adalora_takes_what_was_predicted(folder):
    """Its products copy gradients whose layout fake attention does not know; none of them is at the peak."""
    config = make_config({"train": "", "model": folder, "method": "adalora", "init_r": 4, "target_r": 2})
    predicted = Rehearsal(config, 5, Setup("cpu", "float32", "float32"))
    expected = training_part(predicted.trace(MICRO_BATCH, LENGTH))
    found = real_trace(predicted)
    assert found.peak_bytes == expected.peak_bytes
    assert found.composition() == expected.composition()


@pytest.mark.parametrize("folder", ["bert"], indirect=True)
def test_validation_keeps_no_casts_of_weights(folder):
    """Autocast keeps none in inference mode, which fake tensors have not."""
    setup = Setup("cpu", "float32", "bfloat16", chunked_evaluation=True)
    found = Rehearsal(make_config({"train": "", "model": folder, "method": "full"}), 5, setup).trace(2, 8)
    casts = {i for i, s in enumerate(found.storages) if (s.category, s.kind) == (trace.EVALUATION, "casts")}
    kept = [s.n_bytes if i in casts else 0 for i, s in enumerate(found.storages)]
    assert 0 < found.running_bytes(np.array(kept)).max() < sum(kept) / 4
