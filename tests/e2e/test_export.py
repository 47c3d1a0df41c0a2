"""``snugtune export``: every kind of export of a tiny run, asked in a new process; what is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from families import LABELS, texts_and_labels
from snugtune.cli import app
from snugtune.errors import ArtifactError, UserInputError
from snugtune.export import export as subject
from snugtune.export.export import export_run
from snugtune.predict import int8
from snugtune.predict.predictor import Predictor, read_record
from snugtune.progress import Observer
from trained import HELD_OUT, write_run

TEXTS = texts_and_labels(12, seed=3)[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("trained"), "bert")


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("several"), "bert", several=True)


def told(folder):
    return json.loads((folder / "export.json").read_text(encoding="utf-8"))


class Told(Observer):
    def __init__(self):
        self.sentences = []

    def say(self, sentence):
        self.sentences.append(sentence)


@pytest.mark.slow
def test_a_merged_folder_is_a_stock_model(run, tmp_path):
    from transformers import pipeline

    done = CliRunner().invoke(app, ["export", str(run), "-o", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["agreement"]["rows"] > HELD_OUT / 2
    assert found["agreement"]["largest_logit_difference"] < 1e-4
    assert [verdict["runs"] for verdict in found["serving"]] == [True, True, True]
    assert told(tmp_path / "out")["tolerance"]["logit_difference"] == 1e-3
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "library_name: transformers" in card
    assert 'pipeline("text-classification"' in card

    # Long texts are cut where they were cut in training, without being told so.
    classify = pipeline("text-classification", model=str(tmp_path / "out"))
    labels = [row["label"] for row in classify(TEXTS, truncation=True)]
    assert labels == Predictor.load(run).columns(TEXTS)["predicted_label"].to_list()


@pytest.mark.slow
def test_graphs_of_a_run(run, tmp_path):
    exact = export_run(run, tmp_path / "onnx", to="onnx")
    assert exact.agreement.largest_logit_difference < 1e-4
    expected = {"model.onnx", "config.json", "tokenizer.json", "sentence_bert_config.json", "README.md"}
    assert {path.name for path in (tmp_path / "onnx").iterdir()} >= expected
    rounded = export_run(run, tmp_path / "int8", to="onnx-int8")
    assert rounded.agreement.largest_logit_difference > 1e-3
    assert rounded.agreement.changed_labels <= 1
    assert "import onnxruntime" in (tmp_path / "int8" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_predicting_in_int8(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SNUGTUNE_CACHE", str(tmp_path))
    first, second = Told(), Told()
    given = Predictor.load(run, dtype="int8", observer=first).probabilities(TEXTS)
    expected = Predictor.load(run).probabilities(TEXTS)
    assert 0 < np.abs(given - expected).max() < 0.1
    assert first.sentences[1].startswith("int8: ")
    assert "held-out rows keep their label" in first.sentences[1]

    # It is made once; the same texts get the same answers, alone or together.
    monkeypatch.setattr(int8, "write_int8", None)
    again = Predictor.load(run, dtype="int8", observer=second)
    assert second.sentences == first.sentences[1:]
    alone = np.concatenate([again.probabilities([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, given, atol=1e-6)


def test_an_int8_model_that_errs_is_told_of(run):
    record = read_record(run)
    model, tokenizer = int8.reference_model(run, record)
    wrong, _ = int8.reference_model(run, record)
    assert int8._measure(model, model, tokenizer, run, record)["told"].startswith("int8: 29 of 29")
    with torch.no_grad():
        wrong.classifier.bias += torch.tensor([3.0, 0.0, 0.0])
    found = int8._measure(wrong, model, tokenizer, run, record)
    assert found["told"].startswith("Warning: int8 changes this run's answers")
    (run / "predictions.parquet").rename(run / "kept.parquet")
    found = int8._measure(model, model, tokenizer, run, record)
    (run / "kept.parquet").rename(run / "predictions.parquet")
    assert found["told"].startswith("Whether int8 keeps this run's accuracy is not known")


@pytest.mark.slow
def test_an_adapter_is_copied_and_says_what_it_needs(run, tmp_path):
    found = export_run(run, tmp_path / "out", to="adapter")
    assert found.notes == [
        f"The adapter needs its base model, a folder of this machine: {run.parent / 'base'}."
    ]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert "AutoPeftModelForSequenceClassification" in (tmp_path / "out" / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_half_precision_is_compared_as_such(run, tmp_path):
    found = export_run(run, tmp_path / "out", dtype="bfloat16")
    assert 1e-4 < found.agreement.largest_logit_difference < 0.5
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["dtype"] == "bfloat16"


@pytest.mark.slow
def test_a_broken_export_is_caught_and_nothing_is_left(run, tmp_path, monkeypatch):
    def write_wrong(job, folder):
        with torch.no_grad():
            job.model.bert.encoder.layer[1].output.dense.weight[0] += 0.5
        write_merged(job, folder)

    write_merged = subject._WRITERS["merged"]
    monkeypatch.setitem(subject._WRITERS, "merged", write_wrong)
    with pytest.raises(ArtifactError, match="answers otherwise than the run, so nothing was written"):
        export_run(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_labels_in_another_order_are_caught(run, tmp_path, monkeypatch):
    def write_wrong(job, folder):
        names = [LABELS[1], LABELS[0], LABELS[2]]
        job.model.config.id2label = dict(enumerate(names))
        job.model.config.label2id = {name: i for i, name in enumerate(names)}
        write_merged(job, folder)

    write_merged = subject._WRITERS["merged"]
    monkeypatch.setitem(subject._WRITERS, "merged", write_wrong)
    with pytest.raises(ArtifactError, match="answers otherwise"):
        export_run(run, tmp_path / "out")


def test_a_run_that_is_no_longer_what_it_was(run, tmp_path):
    from safetensors.torch import load_file, save_file

    path = run / "adapter" / "adapter_model.safetensors"
    kept = path.read_bytes()
    weights = load_file(path)
    key = next(name for name in weights if name.endswith("classifier.bias"))
    save_file(weights | {key: weights[key] + torch.tensor([1.0, 0.0, 0.0])}, path, {"format": "pt"})
    try:
        with pytest.raises(ArtifactError, match="gives other confidences here than it recorded"):
            export_run(run, tmp_path / "out")
    finally:
        path.write_bytes(kept)
    assert list(tmp_path.iterdir()) == []


def test_refusals(run, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    cases = [
        (["-o", str(mine)], "already holds something"),
        (["-o", str(mine), "--overwrite"], "not written by this command"),
        (["-o", str(run), "--overwrite"], "not written by this command"),
        (["-o", str(tmp_path / "a"), "--to", "gguf"], "An export is to one of merged, onnx"),
        (["-o", str(tmp_path / "a"), "--dtype", "int4"], "The dtype must be one of"),
        (["-o", str(tmp_path / "a"), "--to", "onnx", "--dtype", "bfloat16"], "--dtype is for --to merged"),
        ([], "Name the folder to write"),
        (["--to", "hub"], "Name the repository"),
        (["--to", "hub", "-o", "x", "--repo-id", "a/b"], "goes to --repo-id"),
        (["-o", "x", "--repo-id", "a/b"], "--repo-id is for --to hub"),
    ]
    for arguments, words in cases:
        with pytest.raises(UserInputError, match=words):
            CliRunner().invoke(app, ["export", str(run), *arguments], catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (mine / "thesis.txt").read_text() == "mine"


@pytest.mark.slow
def test_runs_with_several_labels_a_text(several, tmp_path):
    from transformers import pipeline

    merged = export_run(several, tmp_path / "merged")
    assert merged.agreement.several
    assert merged.agreement.largest_logit_difference < 1e-4
    assert "keep their labels, accuracy" in merged.agreement.sentence()
    assert "under thresholds" in merged.notes[0]
    assert any("raw_scores" in sentence for verdict in merged.serving for sentence in verdict.why)
    assert [verdict.runs for verdict in merged.serving] == [True, True, True]
    config = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert config["problem_type"] == "multi_label_classification"

    # What others compute, at the thresholds beside it, are the labels that the run gives.
    thresholds = told(tmp_path / "merged")["thresholds"]
    classify = pipeline("text-classification", model=str(tmp_path / "merged"), top_k=None)
    given = [
        {row["label"] for row in rows if row["score"] >= thresholds[row["label"]]}
        for rows in classify(TEXTS, truncation=True)
    ]
    cells = Predictor.load(several).columns(TEXTS)["predicted_label"].to_list()
    assert given == [set((cell or "").split("; ")) - {""} for cell in cells]
    assert any(len(labels) != 1 for labels in given)

    assert export_run(several, tmp_path / "onnx", to="onnx").agreement.largest_logit_difference < 1e-4
    rounded = export_run(several, tmp_path / "int8", to="onnx-int8").agreement
    assert rounded.largest_logit_difference > 1e-3
    assert rounded.changed_labels <= 1
    assert export_run(several, tmp_path / "adapter", to="adapter").agreement.rows == 16


@pytest.mark.slow
def test_predicting_label_sets_in_int8(several, tmp_path, monkeypatch):
    monkeypatch.setenv("SNUGTUNE_CACHE", str(tmp_path))
    observer = Told()
    given = Predictor.load(several, dtype="int8", observer=observer).probabilities(TEXTS)
    assert 0 < np.abs(given - Predictor.load(several).probabilities(TEXTS)).max() < 0.1
    assert "held-out rows keep their labels" in observer.sentences[1]


def test_int8_is_measured_on_long_texts_as_the_run_reads_them(run, monkeypatch):
    seen = []
    tokenize = int8.tokenize
    monkeypatch.setattr(
        int8, "tokenize", lambda *arguments: seen.append(arguments[3]) or tokenize(*arguments)
    )
    for way in ("truncate", "windows"):
        record = read_record(run) | {"long_texts": {"chosen": way}}
        model, tokenizer = int8.reference_model(run, record)
        cut = int8.logits_of(model, TEXTS, tokenizer, 10, "truncate")
        found = int8.logits_of(model, TEXTS, tokenizer, 10, int8.long_texts_of(record))
        assert (np.abs(found - cut).max() > 0.01) == (way == "windows")
        seen.clear()
        int8._measure(model, model, tokenizer, run, record)
        assert seen == [way, way]
        names = {int8._content_name(run, read_record(run) | {"long_texts": {"chosen": one}}) for one in seen}
        assert int8._content_name(run, record) in names
    assert int8._content_name(run, read_record(run)) not in names


def test_a_full_disk_is_told_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "_needed_bytes", lambda job: 1 << 62)
    with pytest.raises(UserInputError, match="MiB free and the export needs about"):
        export_run(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changed", [{"mixture": {"weight": 0.4}}, {"long_texts": "windows"}])
def test_what_the_export_leaves_out_is_told(changed, tmp_path):
    record = {
        "decision": {"mixture": changed.get("mixture", {})}, "config": {}, "model": {"max_length": 10},
        "long_texts": {"chosen": changed.get("long_texts", "truncate")},
    }  # fmt: skip
    job = subject.Job(tmp_path, record, "merged", "float32", None, None, None, None)
    (note,) = subject._notes(job, tmp_path)
    assert "share of 40 %" in note or "reads their beginning alone" in note
