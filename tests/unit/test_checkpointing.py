import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from snugtune.config import make_config
from snugtune.memory.trace import Ledger
from snugtune.model.adapter import wrap
from snugtune.model.checkpointing import checkpoint_layers, encoder_layers, trained_layers
from snugtune.model.offload import embedding_to_host, move_whole, word_embedding

SHAPE = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 32, "num_labels": 3,
}  # fmt: skip


def small(dropout=0.0, **settings):
    torch.manual_seed(0)
    config = BertConfig(**SHAPE, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    model = wrap(
        BertForSequenceClassification(config),
        make_config({"train": "", **({} if settings else {"r": 4}), **settings}),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model.train()


def gradients(model, seed=1):
    torch.manual_seed(seed)
    ids = torch.randint(1, 99, (4, 16))
    model(
        input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([0, 1, 2, 0])
    ).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_gradients_are_those_of_the_plain_model(k, dropout):
    model = small(dropout)
    plain = gradients(model)
    assert checkpoint_layers(model, k) == k
    checkpointed = gradients(model)
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def test_memory_falls_with_each_layer_and_comes_back():
    def peak(model):
        with Ledger() as ledger:
            gradients(model)
        return ledger.close().peak_bytes

    model = small()
    peaks = []
    for k in range(5):
        checkpoint_layers(model, k)
        peaks.append(peak(model))
    # The first one checkpointed is recomputed while all others are still held.
    assert peaks[1:] == sorted(peaks[1:], reverse=True)
    assert peaks[4] < 0.7 * peaks[0]
    checkpoint_layers(model, 0)
    assert peak(model) == peaks[0]
    assert all("forward" not in layer.__dict__ for layer in encoder_layers(model))


def test_layers_below_the_lowest_adapter_hold_nothing_and_are_left_alone():
    model = small(layers_to_transform=(2, 3))
    assert trained_layers(model) == encoder_layers(model)[2:]
    assert checkpoint_layers(model, 9) == 2


@pytest.mark.parametrize(
    "targets", [("word_embeddings",), r".*(word_embeddings|layer\.3\.attention\.self\.query)"]
)
def test_an_adapter_of_the_embedding_needs_every_layer(targets):
    model = small(target_modules=targets)
    assert trained_layers(model) == encoder_layers(model)


def test_full_training_holds_every_layer():
    assert len(trained_layers(small(method="full"))) == 4


def test_a_model_without_layers():
    with pytest.raises(ValueError, match="no list of layers"):
        encoder_layers(torch.nn.Linear(2, 2))


def test_evaluation_does_not_recompute():
    model = small().eval()
    checkpoint_layers(model, 4)
    ids = torch.ones(1, 8, dtype=torch.long)
    with torch.no_grad():
        first = model(input_ids=ids).logits
    checkpoint_layers(model, 0)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, first)


def test_the_embedding_on_the_host_gives_the_same_gradients_and_stays_there():
    model = small()
    plain = gradients(model)
    names = list(model.state_dict())
    assert embedding_to_host(model)
    assert not embedding_to_host(model)
    found = gradients(model)
    assert all(torch.equal(plain[name], found[name]) for name in plain)
    assert list(model.state_dict()) == names
    model.to("meta")
    assert word_embedding(model).weight.device.type == "cpu"
    assert {p.device.type for n, p in model.named_parameters() if "word_embeddings" not in n} == {"meta"}


def test_a_model_as_it_is_loaded_is_told_that_its_embedding_will_be_frozen():
    model = BertForSequenceClassification(BertConfig(**SHAPE))
    with pytest.raises(ValueError, match="is trained"):
        embedding_to_host(model)
    assert embedding_to_host(model, freeze=True)
    assert not word_embedding(model).weight.requires_grad


def test_a_model_that_does_not_fit_is_whole_on_the_host_again():
    model = small()
    moved = []

    class Full(torch.nn.Module):
        def _apply(self, function, recurse=True):
            if not moved:
                moved.append({p.device.type for p in model.parameters()})
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super()._apply(function, recurse)

    model.full = Full()
    back = []
    model.to = lambda device: back.append(device) or torch.nn.Module.to(model, device)
    with pytest.raises(torch.OutOfMemoryError):
        move_whole(model, torch.device("cpu"))
    assert [str(device) for device in back] == ["cpu", "cpu"]
    assert moved


def test_a_trained_embedding_must_stay_on_the_device():
    with pytest.raises(ValueError, match="is trained"):
        embedding_to_host(small(method="full"))
