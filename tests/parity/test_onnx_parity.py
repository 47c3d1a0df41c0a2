"""ONNX graphs of every architecture against torch, in float32 and in 8-bit integers."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import LABELS, texts_and_labels, write_family
from snugtune.data.labels import LabelSet
from snugtune.data.tokens import tokenize
from snugtune.errors import UserInputError
from snugtune.model.artifact import load_model, save_model
from snugtune.model.backbone import load_backbone
from snugtune.model.first_token import read_first_token_only
from snugtune.predict import onnx as subject
from snugtune.predict.onnx import OnnxModel, quantize, write_onnx
from snugtune.train.forward import collate, predict_logits

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
CPU = torch.device("cpu")
OTHERS = ("xlm-roberta", "distilbert", "modernbert", "deberta-v2", "electra", "gpt2", "qwen3")


def model_and_tokens(folder, family):
    """A classifier of ``family`` as ``load_model`` loads it, tokens of unlike lengths, the pad token."""
    backbone = load_backbone(str(write_family(folder / "base", family)), LabelSet(LABELS, {}))
    save_model(backbone.model, backbone.tokenizer, folder / "model", backbone.max_length)
    model, tokenizer = load_model(folder / "model", dtype=torch.float32, attn_implementation="sdpa")
    read_first_token_only(model)
    tokens = tokenize(texts_and_labels(24)[0], tokenizer, 64)
    return model.eval(), tokens, tokenizer.pad_token_id


def check(folder, family):
    model, tokens, pad = model_and_tokens(folder, family)
    expected = predict_logits(model, tokens, pad_token_id=pad, device=CPU)
    write_onnx(model, folder / "float.onnx")
    exact = OnnxModel(folder / "float.onnx")
    np.testing.assert_allclose(
        predict_logits(exact, tokens, pad_token_id=pad, device=CPU), expected, atol=1e-4, rtol=1e-4
    )

    quantize(folder / "float.onnx", folder / "int8.onnx")
    rounded = OnnxModel(folder / "int8.onnx")
    given = predict_logits(rounded, tokens, pad_token_id=pad, device=CPU)
    # A scale for 32 weights rounds each by 0.4 % of the largest at most; two layers add up to some per cent.
    assert 0 < np.abs(given - expected).max() < 0.15 * np.abs(expected).max()
    kinds = Counter(node.op_type for node in onnx.load(folder / "int8.onnx").graph.node)
    assert kinds["MatMulNBits"] >= 2 * 4
    assert kinds["Gemm"] == 0

    # What a text gets depends on nothing beside it: neither on its neighbours nor on padding.
    for one in (exact, rounded):
        together = one(**collate(tokens, np.arange(8), pad, CPU)).logits
        for i in (0, 3):
            alone = one(**collate(tokens, np.array([i]), pad, CPU)).logits
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


def test_a_graph_gives_torchs_logits(tmp_path):
    check(tmp_path, "bert")


@pytest.mark.long
@pytest.mark.parametrize("family", OTHERS)
def test_a_graph_of_any_family_gives_torchs_logits(tmp_path, family, monkeypatch):
    if family == "distilbert":  # as if it were a large one, whose weights lie beside the graph
        monkeypatch.setattr(subject, "LARGEST_FILE_BYTES", 1000)
    check(tmp_path, family)
    assert (tmp_path / "int8.onnx.data").exists() == (family == "distilbert")


def test_missing_packages_are_one_sentence(monkeypatch):
    monkeypatch.setattr(subject, "find_spec", lambda name: None if name == "onnxruntime" else True)
    with pytest.raises(UserInputError, match=r"pip install 'snugtune\[onnx\]'"):
        subject.require_onnx()


def test_a_damaged_graph_is_one_sentence(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(UserInputError, match="cannot be loaded"):
        OnnxModel(tmp_path / "model.onnx")


def test_what_the_exporter_cannot_do_is_one_sentence(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no translation for aten.oddity\nmore lines")

    model, _, _ = model_and_tokens(tmp_path, "distilbert")
    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(UserInputError, match=r"type distilbert cannot be exported to ONNX \(no translation"):
        write_onnx(model, tmp_path / "model.onnx")
