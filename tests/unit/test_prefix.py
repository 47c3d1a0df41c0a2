"""No work below the lowest adapter: no gradient, nothing saved for one, each text's output computed once."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from snugtune.config import make_config
from snugtune.data.batches import micro_batches
from snugtune.model.adapter import wrap
from snugtune.model.checkpointing import encoder_layers
from snugtune.train import prefix as prefix_module
from snugtune.train.engine import Services
from snugtune.train.forward import collate, predict_logits
from snugtune.train.prefix import Prefix, kept_prefix, lower_layers, may_keep, time_share
from snugtune.train.step import MicroBatch, add_gradients
from tiny_training import CPU, examples, tiny_model, train_tiny


@pytest.fixture
def prefixes(tmp_path):
    """Makes what keeps the outputs for a model and lengths; all are closed at the end."""
    made = []

    def make(model, lengths):
        made.append(Prefix(model, lengths, tmp_path))
        return made[-1]

    yield make
    for prefix in made:
        prefix.close()


TOP = {"layers_to_transform": (1,)}


def wrapped(dtype=torch.float32, **settings):
    return wrap(
        tiny_model().to(dtype),
        make_config({"train": "x"} | (settings if "method" in settings else TOP | settings)),
    )


class Calls:
    """Texts that pass through a module's own code, in training and in evaluation."""

    def __init__(self, module):
        self.texts = {True: 0, False: 0}
        module.register_forward_pre_hook(self._count)

    def _count(self, module, _args):
        self.texts[module.training] += 1


def gradients(model, rows, around=None):
    """Loss and gradients of the examples ``rows`` in micro-batches of at most 64 positions."""
    data = examples(20, 1)
    model.zero_grad(set_to_none=True)
    losses = []
    for part in micro_batches(rows, data.tokens.lengths, 64):
        batch = MicroBatch(collate(data.tokens, part, 0, CPU), torch.from_numpy(data.y[part]))
        with around(part) if around else torch.enable_grad():
            losses.append(
                add_gradients(
                    model, batch, len(rows), autocast=torch.enable_grad, backward=torch.Tensor.backward
                )
            )
    return torch.stack(losses), [p.grad for p in model.parameters() if p.grad is not None]


# No gradient and nothing saved below


@pytest.mark.parametrize(
    ("settings", "frozen"), [({"layers_to_transform": (1,)}, 1), ({"method": "head"}, 2)]
)
def test_nothing_is_saved_for_backward_below_the_lowest_trained_layer(settings, frozen):
    model = wrap(tiny_model(), make_config({"train": "x", **settings}))
    layers = encoder_layers(model)
    assert lower_layers(model) == layers[:1]
    saved, given = {}, {}

    def enter(name):
        def pack(tensor):
            saved[name] = saved.get(name, 0) + 1
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        given[name] = hooks
        hooks.__enter__()

    def leave(name, out):
        given[name].__exit__(None, None, None)
        given[name] = out

    for i, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda *_, i=i: enter(i))
        layer.register_forward_hook(lambda _module, _args, out, i=i: leave(i, out))
    embeddings = model.get_submodule("bert.embeddings" if frozen == 2 else "base_model.model.bert.embeddings")
    embeddings.register_forward_pre_hook(lambda *_: enter("embeddings"))
    embeddings.register_forward_hook(lambda _module, _args, out: leave("embeddings", out))
    gradients(model, np.arange(20))
    assert saved.keys() == set(range(frozen, 2))
    assert all(given[name].grad_fn is None for name in ("embeddings", *range(frozen)))
    assert all(given[i].grad_fn is not None for i in range(frozen, 2))


# The same numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"method": "head"}])
def test_loss_and_gradients_are_the_same_bits_the_second_time(prefixes, dtype, settings):
    model, rows = wrapped(dtype, **settings), np.arange(20)
    plain = gradients(model, rows)
    prefix = prefixes(model, examples(20, 1).tokens.lengths)
    lower = Calls(lower_layers(model)[0].attention)
    first, second = gradients(model, rows, prefix.rows), gradients(model, rows, prefix.rows)
    assert prefix.usable
    assert prefix.rows_kept == 20
    assert lower.texts[True] == len(micro_batches(rows, examples(20, 1).tokens.lengths, 64))
    for found in (first, second):
        assert torch.equal(found[0], plain[0])
        assert len(found[1]) == len(plain[1])
        assert all(torch.equal(a, b) for a, b in zip(found[1], plain[1], strict=True))


def test_other_company_and_other_padding_take_the_same_from_the_file(prefixes):
    model, data = wrapped().eval(), examples(20, 1)
    plain = predict_logits(model, data.tokens, pad_token_id=0, device=CPU)
    prefix = prefixes(model, data.tokens.lengths)
    around = {"pad_token_id": 0, "device": CPU, "around": prefix.rows}
    predict_logits(model, data.tokens, **around, max_examples=1)
    again = predict_logits(model, data.tokens, **around)
    assert prefix.rows_kept == 20
    np.testing.assert_allclose(again, plain, rtol=0, atol=1e-6)


def test_packed_rows_are_found_in_their_order(prefixes):
    model = wrapped()
    (layer,) = lower_layers(model)
    lengths = np.array([2, 3, 1])
    layer.forward = lambda hidden: hidden * 2
    prefix = prefixes(model, lengths)
    hidden = torch.randn(1, 4, 32)
    with prefix.rows(np.array([2, 1])):
        assert torch.equal(layer(hidden), hidden * 2)
    with prefix.rows(np.array([1, 2])):
        found = layer(torch.empty(2, 3, 32))
    assert torch.equal(found[0], 2 * hidden[0, 1:])
    assert torch.equal(found[1, :1], 2 * hidden[0, :1])
    assert not found[1, 1:].any()


# In training


def trained(prefixes, settings, **options):
    counted = {}

    def services(model):
        lengths = np.concatenate([examples(32, 1).tokens.lengths, examples(12, 2).tokens.lengths])
        below, above = (encoder_layers(model)[i].attention for i in (0, 1))
        counted.update(below=Calls(below), above=Calls(above))
        return Services(prefix=prefixes(model, lengths) if prefixes else None)

    result, model = train_tiny({"num_train_epochs": 3, "effective_batch_size": 8} | TOP | settings,
                               services=services, **options)  # fmt: skip
    return result, model, {name: calls.texts for name, calls in counted.items()}


def test_training_computes_the_lower_layers_in_the_first_epoch_only(prefixes, tmp_path):
    result, model, calls = trained(prefixes, {})
    plain_result, plain_model, plain_calls = trained(None, {})
    assert calls["above"] == plain_calls["above"] == plain_calls["below"]
    assert calls["below"][False] == plain_calls["below"][False] / 4  # one look of four
    assert calls["below"][True] < plain_calls["below"][True] / 2
    assert result.best_step == plain_result.best_step
    for (name, found), plain in zip(model.named_parameters(), plain_model.parameters(), strict=True):
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-5, msg=name)
    assert not list(tmp_path.iterdir())


# Where it does not go


def test_a_layer_that_returns_more_than_a_tensor_is_computed_every_time(prefixes):
    model = wrapped()
    (layer,) = lower_layers(model)
    layer.forward = lambda hidden: (hidden, None)
    prefix = prefixes(model, np.array([4]))
    for _ in range(2):
        with prefix.rows(np.array([0])):
            assert isinstance(layer(torch.ones(1, 4, 32)), tuple)
    assert not prefix.usable


def test_something_trained_below_is_noticed(prefixes):
    model = wrapped()
    model.get_submodule("base_model.model.bert.embeddings.LayerNorm").weight.requires_grad_(True)
    prefix = prefixes(model, examples(20, 1).tokens.lengths)
    gradients(model, np.arange(20), prefix.rows)
    assert not prefix.usable
    assert prefix.rows_kept == 0


@pytest.mark.parametrize("full", ["before", "meanwhile"])
def test_without_room_on_the_disk_every_layer_is_computed(prefixes, monkeypatch, full):
    model, rows = wrapped(), np.arange(20)
    plain = gradients(model, rows)
    if full == "before":
        monkeypatch.setattr(prefix_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    else:

        class Full(io.BytesIO):
            def write(self, _data):
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(prefix_module.tempfile, "TemporaryFile", lambda **_: Full())
    prefix = prefixes(model, examples(20, 1).tokens.lengths)
    for _ in range(2):
        found = gradients(model, rows, prefix.rows)
        assert torch.equal(found[0], plain[0])
    assert not prefix.usable


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (TOP, True), ({"method": "head"}, True), ({}, False), ({"method": "full"}, False),
        (TOP | {"num_train_epochs": 1}, False), (TOP | {"hidden_dropout": 0.1}, False),
        (TOP | {"bias": "all"}, False),
    ],
)  # fmt: skip
def test_it_is_used_where_layers_give_the_same_again(tmp_path, settings, kept):
    config = make_config({"train": "x", **settings})
    model = wrap(tiny_model(), config)
    plain = [layer.forward for layer in encoder_layers(model)]
    with kept_prefix(model, config, np.array([3, 4]), CPU, tmp_path) as prefix:
        assert (prefix is not None) == kept
    assert [layer.forward for layer in encoder_layers(model)] == plain


def test_not_on_a_gpu_where_nobody_measured_it():
    assert not may_keep(make_config({"train": "x", **TOP}), torch.device("cuda"))


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 1.0), ({"method": "full"}, 1.0),
        # Of two layers one is below: of four passes three in the first epoch, two in each of the others.
        (TOP | {"num_train_epochs": 1}, 3 / 4), (TOP | {"num_train_epochs": 2}, 5 / 8),
        (TOP | {"num_train_epochs": 4}, 9 / 16), (TOP | {"hidden_dropout": 0.1}, 3 / 4),
        # The head alone: two passes forward in the first epoch, and one in each of the others.
        ({"method": "head", "num_train_epochs": 4}, 5 / 8),
    ],
)  # fmt: skip
def test_the_forecast_counts_what_is_left_to_compute(settings, share):
    assert time_share(make_config({"train": "x", **settings}), tiny_model(), CPU) == pytest.approx(share)
