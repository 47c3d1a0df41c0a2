"""The trained model on published weights: where it cannot be scored on the card, it is scored on the host.

And a whole fit whose plan keeps the word embedding on the host, as plans for cards do.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import polars as pl
import pytest
import torch

from families import texts_and_labels, write_family
from scarcity import MESSAGES
from snugtune.config import make_config
from snugtune.errors import RestartNeededError
from snugtune.fit import fit
from snugtune.memory.guard import Guard, HostMemory
from snugtune.model import offload
from snugtune.stages import agreeing, training

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


def test_a_fit_whose_plan_keeps_the_embedding_on_the_host_gives_the_same_model(tmp_path, monkeypatch):
    texts, y = texts_and_labels(60)
    table = tmp_path / "table.csv"
    pl.DataFrame({"text": texts, "label": [f"class {i}" for i in y]}).write_csv(table)
    model = write_family(tmp_path / "model", "bert")
    config = make_config(
        {"train": str(table), "model": str(model), "num_train_epochs": 1.0, "audit": False, "bf16": False}
    )
    moved = []
    plain, on_host = agreeing.plan_run, offload._on_host
    monkeypatch.setattr(offload, "_on_host", lambda forward: moved.append(1) or on_host(forward))

    def metrics(name):
        run = fit(config, tmp_path / name)
        return json.loads((run / "run.json").read_text(encoding="utf-8"))["metrics"]

    expected = metrics("as planned")
    assert not moved

    def planned(*args, **options):
        plan = plain(*args, **options)
        return replace(plan, setup=replace(plan.setup, embedding_on_host=True))

    monkeypatch.setattr(agreeing, "plan_run", planned)
    assert metrics("on the host") == expected
    assert len(moved) == 2  # the model that is trained, and the one that is scored
