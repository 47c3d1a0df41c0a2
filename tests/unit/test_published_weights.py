"""The trained model on published weights: where it cannot be scored on the card, it is scored on the host."""

from types import SimpleNamespace

import pytest
import torch

from scarcity import MESSAGES
from snugtune.errors import RestartNeededError
from snugtune.memory.guard import Guard, HostMemory
from snugtune.stages import training

CPU = torch.device("cpu")


class Full(torch.nn.Linear):
    """A model whose way to the card always fails."""

    def to(self, device):
        raise MESSAGES[0]()


@pytest.fixture
def agreed():
    plan = SimpleNamespace(setup=SimpleNamespace(embedding_on_host=False))
    return SimpleNamespace(guard=Guard(HostMemory()), plan=plan)


def job(said):
    return SimpleNamespace(
        device=torch.device("cuda"), on_card=True, clock=SimpleNamespace(say=said.append),
        group=SimpleNamespace(sharded=False),
    )  # fmt: skip


def test_a_model_that_does_not_fit_in_float32_is_scored_on_the_cpu(agreed, monkeypatch):
    made, said = [], []

    def published(_job, _model, _state, device):
        made.append(device)
        return (Full if device.type == "cuda" else torch.nn.Linear)(2, 2)

    monkeypatch.setattr(training, "_published", published)
    model = training.on_published_weights(job(said), torch.nn.Linear(2, 2), agreed)
    assert [device.type for device in made] == ["cuda", "cpu"]
    assert type(model) is torch.nn.Linear
    assert not model.training
    assert agreed.guard.retreats == []
    assert said[-1].startswith("Memory ran out in moving the trained model to the device")
    assert said[-1].endswith("The trained model is scored on the CPU.")


def test_what_does_not_fit_even_there_asks_for_a_restart(agreed, monkeypatch):
    def published(*_):
        raise RestartNeededError("no memory at all")

    monkeypatch.setattr(training, "_published", published)
    with pytest.raises(RestartNeededError, match="at all"):
        training.on_published_weights(job([]), torch.nn.Linear(2, 2), agreed)
