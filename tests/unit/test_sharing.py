"""Several classifiers on one backbone: its weights lie in memory once, and each answers as if alone."""

import gc
import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from families import texts_and_labels
from serving import Service
from snugtune.errors import UserInputError
from snugtune.model.sharing import SharedParts
from snugtune.predict.predictor import Predictor
from trained import write_run


@pytest.fixture(scope="module", params=["bert", "qwen2"])
def runs(request, tmp_path_factory):
    """Two runs of one backbone: a LoRA on attention, and one on all layers."""
    folder = tmp_path_factory.mktemp(request.param)
    return [
        write_run(folder / "a", request.param),
        write_run(folder / "b", request.param, target_modules="all-linear", r=2),
    ]


TEXTS = texts_and_labels(20)[0]


def storages(model):
    return {parameter.untyped_storage().data_ptr(): parameter.nbytes for parameter in model.parameters()}


def test_each_answers_as_if_alone_and_the_backbone_is_there_once(runs):
    alone = [Predictor.load(run) for run in runs]
    weights = SharedParts()
    together = [Predictor.load(run, shared=weights) for run in runs]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.probabilities(TEXTS), other.probabilities(TEXTS), atol=1e-5)
    assert np.abs(alone[0].probabilities(TEXTS) - alone[1].probabilities(TEXTS)).max() > 1e-3

    first, second = (storages(predictor.model) for predictor in together)
    common = sum(size for place, size in first.items() if place in second)
    assert common == weights.saved_bytes
    assert common > 0.8 * sum(first.values())
    for predictor in together:
        own = [p for name, p in predictor.model.named_parameters() if "lora_" in name]
        assert own
        assert not {p.untyped_storage().data_ptr() for p in own} & (set(first) & set(second))


def test_what_differs_in_a_bit_or_a_name_is_not_shared():
    def model(**layers):
        return nn.ModuleDict(layers)

    one, same, other, renamed = (nn.Linear(3, 3, bias=False) for _ in range(4))
    same.load_state_dict(one.state_dict())
    other.load_state_dict(one.state_dict())
    renamed.load_state_dict(one.state_dict())
    with torch.no_grad():
        other.weight[0, 0] = torch.nextafter(other.weight[0, 0], torch.tensor(9.0))
    weights = SharedParts()
    for found in (model(x=one), model(x=same), model(x=other), model(y=renamed), model(x=one)):
        weights.share(found)
    assert same.weight.data_ptr() == one.weight.data_ptr()
    assert len({layer.weight.data_ptr() for layer in (one, other, renamed)}) == 3
    assert weights.saved_bytes == one.weight.nbytes  # the last one was there already


def test_weights_live_as_long_as_a_model_has_them():
    weights, first = SharedParts(), nn.Linear(50, 50)
    weights.share(first)
    second = nn.Linear(50, 50)
    second.load_state_dict(first.state_dict())
    weights.share(second)
    place = second.weight.data_ptr()
    del first
    gc.collect()
    third = nn.Linear(50, 50)
    third.load_state_dict(second.state_dict())
    weights.share(third)  # found by the second, though the first is gone
    assert third.weight.data_ptr() == place
    del second, third
    gc.collect()
    assert not any(ref() for refs in weights._known.values() for ref in refs)


def test_a_server_keeps_it_once_also_after_a_new_run(runs):
    served = Service({"a": runs[0], "b": runs[1]}, share_weights=True)
    try:
        models = served.models.by_name
        assert served.post("/models/a/predict", {"inputs": TEXTS[0]}).status_code == 200
        assert served.post("/models/b/predict", {"inputs": TEXTS[0]}).status_code == 200
        record = runs[1] / "run.json"
        record.write_text(record.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        before = models["b"].engine
        served.run(lambda _: models["b"].look())
        assert models["b"].engine is not before
        copies = {name: models[name].engine._tokenizers for name in "ab"}
        assert copies["a"] is copies["b"]
        assert copies["a"].qsize() == served.limits.tokenization_workers
        a, b = (storages(models[name].engine.predictor.model) for name in "ab")
        assert set(a) & set(b)
    finally:
        served.close()


def test_tokenizers_of_other_files_are_others(runs, tmp_path):
    shared = SharedParts()
    first, second = (Predictor.load(run, shared=shared).tokenizer for run in runs)
    assert first is second
    kept = shared.copies(first, 2)
    assert shared.copies(second, 2) is kept
    other = tmp_path / "other"
    shutil.copytree(runs[0], other)
    config = next(other.glob("*/tokenizer_config.json"))
    told = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(told | {"model_max_length": 77}), encoding="utf-8")
    assert Predictor.load(other, shared=shared).tokenizer is not first


def test_int8_has_nothing_in_common(runs):
    with pytest.raises(UserInputError, match="int8"):
        Predictor.load(runs[0], dtype="int8", shared=SharedParts())
