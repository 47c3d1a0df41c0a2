"""What is done with a damaged file: the calls that the command line makes, and what must hold after them.

Each target returns None or raises; an error of ours is a refusal, an ``AssertionError`` a wrong result.
"""

import hashlib
import shutil
from functools import cache
from pathlib import Path

SAMPLES = Path()
"""Where ``samples.write_samples`` wrote; set by the process that runs the targets."""

TEXTS = ["card stolen wallet please", "fee charged twice", ""]


def _source(path):
    return f"sqlite:///{path}?table=complaints" if path.suffix == ".db" else path


def read(path):
    """The table as ``fit`` reads it, and as ``predict`` does: the same rows, which can be written."""
    import io

    from snugtune.data.columns import choose_columns, join_texts
    from snugtune.data.table import iter_tables, read_table
    from snugtune.predict.write import stream_csv

    table = read_table(_source(path))
    frames = list(iter_tables(_source(path), rows_per_batch=3))
    assert table.frame.height == sum(frame.height for frame in frames) > 0, "rows are lost between batches"
    stream_csv(frames, io.BytesIO())
    columns = choose_columns(table.frame, source=str(path), text=None, label=None, need_label=False)
    join_texts(table.frame, columns.text)


@cache
def _predictor():
    from snugtune.predict.predictor import Predictor

    return Predictor.load(SAMPLES / "run" / "one")


def predict(path):
    """``snugtune predict``: the output is right or is not there, the input is what it was."""
    from snugtune.data.table import read_table
    from snugtune.errors import SnugtuneError
    from snugtune.predict.table import predict_table

    before = hashlib.sha256(path.read_bytes()).digest()
    output = path.parent / "out" / f"out{'.csv' if path.suffix == '.db' else path.suffix}"
    output.parent.mkdir()
    try:
        counts = predict_table(_predictor(), _source(path), output, text=["text"])
    except SnugtuneError:
        assert not list(output.parent.iterdir()), "something is left of an output"
        raise
    finally:
        assert hashlib.sha256(path.read_bytes()).digest() == before, "the input was changed"
    assert [one.name for one in output.parent.iterdir()] == [output.name], "something lies beside the output"
    old, new = read_table(_source(path)), read_table(output)
    assert counts["rows"] == old.frame.height == new.frame.height, "the output has another number of rows"
    assert set(_predictor().added_names) <= set(new.frame.columns), "the output lacks a column"
    assert _texts(old.frame) == _texts(new.frame), "the output has other texts"


def _texts(frame):
    return [value or "" for value in frame["text"].cast(str, strict=False)]


def config(path):
    """``snugtune fit TABLE --config``."""
    from snugtune.config import make_config, read_config, write_config

    settings = make_config(read_config(path) | {"train": "table.csv"})
    write_config(settings, path.parent / "written.yaml")
    again = make_config(read_config(path.parent / "written.yaml"))
    assert again == settings, "the settings are not those that were written"
    (path.parent / "written.yaml").unlink()


def load(path):
    """``snugtune predict`` opens a run: it gives probabilities, or says why not."""
    import numpy as np

    from snugtune.predict.predictor import Predictor

    predictor = Predictor.load(path)
    probabilities = predictor.probabilities(TEXTS)
    assert probabilities.shape == (len(TEXTS), len(predictor.labels.names)), "another number of labels"
    assert np.isfinite(probabilities).all(), "a probability that is no number"
    assert (probabilities >= 0).all(), "a negative probability"
    assert (probabilities <= 1 + 1e-9).all(), "a probability above one"
    predictor.added_columns(TEXTS, probabilities)


def report(path):
    """``snugtune report`` and ``snugtune compare``."""
    from snugtune.report.compare import compare_runs
    from snugtune.report.page import write_report

    page = write_report(path, path.parent / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page, "a text became markup"
    (path.parent / "report.html").unlink()
    compare_runs([SAMPLES / "run" / "one", path])


def export(path):
    """``snugtune export``; what a new process would answer is asked in this one, which is faster."""
    from snugtune.export import export

    names = {"answers": _answers, "check_folder": lambda *_, **__: [], "check_reloads": lambda _: [0.0]}
    kept = {name: getattr(export, name) for name in names}
    for name, of in names.items():
        setattr(export, name, of)
    out = path.parent / "exported"
    try:
        export.export_run(path, out)
    except BaseException:
        assert not list(path.parent.glob("*exported*")), "something is left of an export"
        raise
    finally:
        for name, of in kept.items():
            setattr(export, name, of)
    assert (out / "export.json").is_file()
    shutil.rmtree(out)


def _answers(folder, texts, labels, **_):
    import numpy as np
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(folder), device=-1, trust_remote_code=False)
    rows = classify(list(texts), top_k=None, function_to_apply="none", truncation=True)
    by_label = [{score["label"]: score["score"] for score in row} for row in rows]
    return np.array([[row[name] for name in labels] for row in by_label], dtype=np.float32)


def backbone(path):
    """``snugtune fit --model FOLDER``: the model is read and answers."""
    import torch

    from snugtune.data.labels import LabelSet
    from snugtune.data.tokens import tokenize
    from snugtune.model.backbone import load_backbone
    from snugtune.train.forward import predict_logits

    found = load_backbone(str(path), LabelSet(("a", "b"), {}))
    tokens = tokenize(TEXTS, found.tokenizer, min(found.max_length, 16))
    options = {"pad_token_id": found.tokenizer.pad_token_id, "device": torch.device("cpu")}
    assert predict_logits(found.model.eval(), tokens, **options).shape == (3, 2)


def reviews(path):
    """``snugtune fit --add``."""
    from snugtune.data.reviews import read_reviews

    for one in read_reviews(path):
        assert isinstance(one.text, str)
        assert all(isinstance(label, str) for label in one.labels)


ALL = {of.__name__: of for of in (read, predict, config, load, report, export, backbone, reviews)}
