"""A table in, the same table with predictions out."""

import json

import numpy as np
import openpyxl
import polars as pl
import pytest

import tiny
from snugtune.data.table import read_table
from snugtune.errors import UserInputError
from snugtune.evaluate.drift import reference
from snugtune.predict import predictor as predictor_module
from snugtune.predict.evaluation import evaluate_table, read_reference
from snugtune.predict.predictor import ADDED_COLUMNS, Predictor
from snugtune.predict.table import predict_table, survey
from snugtune.predict.write import write_tables
from snugtune.progress import Observer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return tiny.write_run(folder / "run", tiny.write_model(folder / "model"))


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor.load(run)


@pytest.fixture
def frame():
    texts, labels = tiny.texts_and_labels(25, seed=1)
    return pl.DataFrame({"id": range(25), "text": texts, "label": labels})


class Listener(Observer):
    def __init__(self):
        self.said, self.phases, self.done = [], [], 0

    def say(self, sentence):
        self.said.append(sentence)

    def phase(self, name, total=None):
        self.phases.append((name, total))

    def advance(self, done):
        self.done += done


def write_input(frame, path):
    """The frame in the format of the suffix; ``_semicolon.csv`` and ``_dataset`` are formats as well."""
    if path.name.endswith("_semicolon.csv"):
        frame.write_csv(path, separator=";")
    elif path.name.endswith("_dataset"):
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_polars(frame).save_to_disk(str(path))
    elif path.suffix == ".tsv":
        frame.write_csv(path, separator="\t")
    else:
        kinds = {".csv": "write_csv", ".xlsx": "write_excel", ".parquet": "write_parquet"}
        getattr(frame, kinds.get(path.suffix, "write_ndjson"))(path)
    return path


INPUTS = ["a.csv", "a.tsv", "a_semicolon.csv", "a.xlsx", "a.parquet", "a.jsonl", "a_dataset"]
OUTPUTS = ["out.csv", "out.tsv", "out.jsonl", "out.ndjson", "out.parquet", "out.xlsx"]


@pytest.mark.parametrize("name", INPUTS)
def test_every_input_format(predictor, frame, tmp_path, name):
    source = write_input(frame, tmp_path / name)
    counts = predict_table(predictor, source, tmp_path / "out.parquet", rows_per_batch=10)
    assert counts["rows"] == 25
    out = pl.read_parquet(tmp_path / "out.parquet")
    assert out.columns == ["id", "text", "label", *ADDED_COLUMNS]
    assert [int(i) for i in out["id"]] == list(range(25))
    assert out["predicted_label"].to_list() == frame["label"].to_list()


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_output_format(predictor, frame, tmp_path, name):
    frame.write_parquet(tmp_path / "a.parquet")
    predict_table(predictor, tmp_path / "a.parquet", tmp_path / name, rows_per_batch=10)
    out = read_table(tmp_path / name).frame
    assert out.columns == ["id", "text", "label", *ADDED_COLUMNS]
    assert out["text"].to_list() == frame["text"].to_list()
    expected = predictor.columns(frame["text"].to_list())
    assert out["predicted_label"].to_list() == expected["predicted_label"].to_list()
    assert np.allclose(out["confidence"].cast(pl.Float64), expected["confidence"], atol=1e-6)


def test_columns_of_an_earlier_prediction_are_replaced_and_it_is_said(predictor, frame, tmp_path):
    source = tmp_path / "a.csv"
    frame.insert_column(0, pl.Series("predicted_label", ["old"] * 25)).write_csv(source)
    listener = Listener()
    predict_table(predictor, source, tmp_path / "out.csv", observer=listener)
    out = read_table(tmp_path / "out.csv").frame
    assert out.columns == ["id", "text", "label", *ADDED_COLUMNS]
    assert "old" not in out["predicted_label"].to_list()
    assert any("already has predicted_label: replaced" in sentence for sentence in listener.said)
    assert listener.phases == [("survey", None), ("predict", 25)]
    assert listener.done == 25


@pytest.mark.parametrize("suffix", [".csv", ".xlsx", ".parquet", ".jsonl"])
def test_the_output_may_be_the_input(predictor, frame, tmp_path, suffix):
    path = write_input(frame, tmp_path / f"a{suffix}")
    with pytest.raises(UserInputError, match="already exists"):
        predict_table(predictor, path, path)
    predict_table(predictor, path, path, overwrite=True, rows_per_batch=4)
    out = read_table(path).frame
    assert out["text"].to_list() == frame["text"].to_list()
    assert out["predicted_label"].to_list() == frame["label"].to_list()
    assert list(tmp_path.iterdir()) == [path]


def test_dates_stay_dates_from_parquet_to_excel(predictor, frame, tmp_path):
    day = pl.Series("day", ["2024-01-31"] * 25).str.to_date()
    frame.with_columns(day, amount=pl.lit(2.5)).write_parquet(tmp_path / "a.parquet")
    predict_table(predictor, tmp_path / "a.parquet", tmp_path / "out.xlsx")
    book = openpyxl.load_workbook(tmp_path / "out.xlsx")
    header, first, *_ = book.active.iter_rows()
    cells = {head.value: cell for head, cell in zip(header, first, strict=True)}
    assert cells["day"].is_date
    assert cells["day"].value.isoformat() == "2024-01-31T00:00:00"
    assert (cells["amount"].value, cells["id"].value) == (2.5, 0)
    assert cells["needs_review"].data_type == "b"


def test_faults_are_told_before_the_model_runs(predictor, frame, tmp_path, monkeypatch):
    monkeypatch.setattr(predictor_module, "predict_logits", lambda *_, **__: pytest.fail("the model ran"))
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("text,label\n" + "card stolen,Card\n" * 500 + "one cell too many,x,y\n")
    empty = tmp_path / "empty.csv"
    empty.write_text("text,label\n")
    other = tmp_path / "other.csv"
    other.write_text("texts,label\na,b\n")
    long = tmp_path / "long.csv"
    pl.DataFrame({"text": ["a"] * 12_000 + ["x" * 40_000]}).write_csv(long)
    for source, output, words in (
        (ragged, "out.csv", "row 502"),
        (empty, "out.csv", "has a header but no rows"),
        (other, "out.csv", "did you mean 'texts'"),
        (long, "out.xlsx", "Row 12,001 of the table has 40,000 characters"),
        (ragged, "nowhere/out.csv", "does not exist; create it first"),
    ):
        with pytest.raises(UserInputError, match=words):
            predict_table(predictor, source, tmp_path / output)
    assert not list(tmp_path.glob("out*"))


def test_empty_texts_need_review_and_a_table_without_any_is_told(predictor, tmp_path):
    source = tmp_path / "a.csv"
    source.write_text("text,id\n,1\n  ,2\n")
    listener = Listener()
    assert predict_table(predictor, source, tmp_path / "out.csv", observer=listener)["needs_review"] == 2
    assert any("no row with a text in text" in sentence for sentence in listener.said)


def test_survey_counts_rows_and_lists_columns(frame, tmp_path):
    frame.write_csv(tmp_path / "a.csv")
    found = survey(tmp_path / "a.csv", text=["text"])
    assert (found.rows, found.columns) == (25, ("id", "text", "label"))


def test_columns_are_chosen_once(predictor, tmp_path, monkeypatch):
    tiny_frame = pl.DataFrame({"text": ["card stolen wallet"] * 30})
    tiny_frame.write_csv(tmp_path / "a.csv")
    calls = []
    choose = predictor_module.choose_columns
    monkeypatch.setattr(
        predictor_module, "choose_columns", lambda *a, **k: calls.append(1) or choose(*a, **k)
    )
    assert len(list(predictor.tables(tmp_path / "a.csv", rows_per_batch=7))) == 5
    assert len(calls) == 1


def test_bfloat16_agrees_on_clear_rows(run, predictor):
    rounded = Predictor.load(run, dtype="bfloat16")
    assert next(rounded.model.parameters()).dtype.itemsize == 2
    texts, _ = tiny.texts_and_labels(60, seed=2)
    texts += [" ".join(tiny.FILLER[i : i + 4]) for i in range(8)]
    exact, fast = predictor.probabilities(texts), rounded.probabilities(texts)
    top = np.sort(exact, axis=1)
    clear = top[:, -1] - top[:, -2] > 0.1
    assert clear.sum() > 50
    assert (exact.argmax(1) == fast.argmax(1))[clear].all()
    assert 0 < np.abs(exact - fast).max() < 0.2


def test_the_last_layer_is_not_rounded(run):
    """In bfloat16 logits near 8 would lie on a grid of 1/16, and classes would tie."""
    rounded = Predictor.load(run, dtype="bfloat16")
    assert rounded.model.classifier.weight.dtype.itemsize == 4
    probabilities = rounded.probabilities(tiny.texts_and_labels(60)[0])
    logs = np.log(probabilities)
    gaps = (logs[:, 0] - logs[:, 1]) * 64
    assert np.abs(gaps - gaps.round()).max() > 0.05


@pytest.mark.parametrize(("dtype", "words"), [("int4", "must be one of"), ("float16", "needs a GPU")])
def test_other_dtypes_are_refused(run, dtype, words):
    import torch

    if dtype == "float16" and torch.cuda.is_available():
        pytest.skip("float16 is for GPUs")
    with pytest.raises(UserInputError, match=words):
        Predictor.load(run, dtype=dtype)


def test_auto_is_float32(predictor):
    assert {parameter.dtype.itemsize for parameter in predictor.model.parameters()} == {4}


@pytest.mark.parametrize(
    ("record", "words"), [(None, "not a finished run"), ({"labels": ["a"]}, "'label_aliases' is missing")]
)
def test_a_folder_that_is_no_run(tmp_path, record, words):
    if record is not None:
        (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserInputError, match=words):
        Predictor.load(tmp_path)


def test_a_run_whose_model_is_gone(run, tmp_path):
    (tmp_path / "run.json").write_text((run / "run.json").read_text())
    with pytest.raises(UserInputError, match="cannot be loaded"):
        Predictor.load(tmp_path)


# --- evaluation ------------------------------------------------------------------------------------------


def evaluated(predictor, frame, tmp_path, **options):
    frame.write_parquet(tmp_path / "a.parquet")
    return evaluate_table(predictor, tmp_path / "a.parquet", rows_per_batch=10, **options)


def test_evaluation_counts_every_row_once(predictor, frame, tmp_path):
    frame = frame.with_columns(
        label=pl.Series(["card", "", "Nowhere", None, "Card", *frame["label"][5:]]),
        text=pl.Series([*frame["text"][:5], " ", *frame["text"][6:]]),
    )
    result = evaluated(predictor, frame, tmp_path, output=tmp_path / "rows.parquet")
    assert (result["rows"], result["rows_without_text"], result["rows_without_label"]) == (24, 1, 2)
    assert result["unseen_labels"] == {"Nowhere": 1}
    assert result["metrics"]["rows"] == 21
    assert result["metrics"]["rows_unseen_label"] == 1
    assert sum(result["predicted"].values()) == 24
    rows = pl.read_parquet(tmp_path / "rows.parquet")
    assert rows.columns == ["id", "text", "label", *ADDED_COLUMNS, "correct"]
    assert rows["correct"].to_list()[:6] == [True, None, None, None, False, None]
    assert rows["correct"].mean() == pytest.approx(result["metrics"]["accuracy"])
    json.dumps(result, allow_nan=False)


def test_confusions_are_named(predictor, frame, tmp_path):
    frame = frame.with_columns(label=pl.Series(["Fees", "Card", *frame["label"][2:]]))
    result = evaluated(predictor, frame, tmp_path)
    assert result["confusions"] == [
        {"label": "Card", "predicted": "Fees", "rows": 1},
        {"label": "Fees", "predicted": "Card", "rows": 1},
    ]
    assert result["automated"]["share"] == pytest.approx(1.0)
    assert result["automated"]["accuracy"] == pytest.approx(23 / 25)


def test_without_labels_or_with_foreign_ones_the_mix_is_told(predictor, frame, tmp_path):
    bare = evaluated(predictor, frame.drop("label"), tmp_path)
    assert bare["label_column"] is None
    assert "metrics" not in bare
    assert sum(bare["predicted"].values()) == 25
    foreign = evaluated(predictor, frame.with_columns(label=pl.lit("x")), tmp_path)
    assert foreign["unseen_labels"] == {"x": 25}
    assert "metrics" not in foreign
    blank = evaluated(predictor, frame.with_columns(label=pl.lit("")), tmp_path)
    assert blank["rows_without_label"] == 25
    other = evaluated(predictor, frame.rename({"label": "truth"}), tmp_path, label="truth")
    assert other["metrics"]["accuracy"] == 1.0
    with pytest.raises(UserInputError, match="no column 'nope'"):
        evaluated(predictor, frame, tmp_path, label="nope")


def test_drift_is_measured_against_the_runs_reference(predictor, frame, tmp_path):
    texts = [*frame["text"]] * 4
    said = predictor.columns(texts)
    seen = reference(texts, texts, said["confidence"].to_numpy(), said["predicted_label"].to_list())
    (tmp_path / "reference.json").write_text(json.dumps(seen))
    seen = read_reference(tmp_path)
    twice = pl.concat([frame, frame])
    assert evaluated(predictor, twice, tmp_path, reference=seen)["drift"]["warnings"] == []
    other = twice.drop("label").with_columns(text=pl.col("text") + " zebra" * 20)
    drift = evaluated(predictor, other, tmp_path, reference=seen)["drift"]
    assert drift["rows"] == 50
    assert {check["name"] for check in drift["checks"] if check["level"] == "large"} >= {
        "length",
        "unknown_words",
    }
    assert evaluated(predictor, frame, tmp_path)["drift"] is None


def test_a_damaged_reference_is_refused_and_a_missing_one_is_not(tmp_path):
    assert read_reference(tmp_path) is None
    for content in ("{", "[]", '{"format": 99}'):
        (tmp_path / "reference.json").write_text(content)
        with pytest.raises(UserInputError, match=r"reference\.json is damaged"):
            read_reference(tmp_path)


def test_a_table_without_texts_is_not_evaluated(predictor, tmp_path):
    with pytest.raises(UserInputError, match="no row with a text"):
        evaluated(predictor, pl.DataFrame({"text": ["", " "], "label": ["Card", "Fees"]}), tmp_path)


def test_evaluation_says_what_prediction_writes(predictor, frame, tmp_path):
    evaluated(predictor, frame, tmp_path, output=tmp_path / "rows.csv")
    write_tables(predictor.tables(tmp_path / "a.parquet"), tmp_path / "out.csv")
    rows, out = (read_table(tmp_path / name).frame for name in ("rows.csv", "out.csv"))
    assert rows.drop("correct", "confidence").equals(out.drop("confidence"))


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out.xlsx", "out.jsonl"])
def test_bytes_are_read_as_text_and_given_back(predictor, frame, tmp_path, name):
    plain, coded = tmp_path / "plain.parquet", tmp_path / "coded.parquet"
    frame.write_parquet(plain)
    frame.with_columns(pl.col("text").cast(pl.Binary)).write_parquet(coded)
    predict_table(predictor, plain, tmp_path / "expected.parquet")
    predict_table(predictor, coded, tmp_path / name)
    expected = pl.read_parquet(tmp_path / "expected.parquet")["predicted_label"].to_list()
    assert read_table(tmp_path / name).frame["predicted_label"].to_list() == expected


def test_bytes_that_are_no_text_are_told_before_the_model_runs(predictor, tmp_path, monkeypatch):
    path = tmp_path / "in.parquet"
    texts = [f"text {i}".encode() for i in range(9_000)]
    texts[8_500] = b"caf\xe9"
    pl.DataFrame({"text": texts}).write_parquet(path)
    monkeypatch.setattr(Predictor, "probabilities", None)
    with pytest.raises(UserInputError, match=r"Column 'text' of .*in\.parquet, row 8501 holds bytes"):
        predict_table(predictor, path, tmp_path / "out.parquet")


def test_labels_that_are_no_text_are_refused_with_their_row(predictor, frame, tmp_path):
    labels = [b"billing"] * 24 + [b"\xff"]
    frame.with_columns(pl.Series("label", labels)).write_parquet(tmp_path / "in.parquet")
    with pytest.raises(UserInputError, match="Column 'label' of the table, row 25 holds bytes"):
        evaluate_table(predictor, tmp_path / "in.parquet", rows_per_batch=10)


def test_lengths_of_time_may_be_a_part_of_the_text(predictor, frame, tmp_path):
    longer = frame.with_columns(pl.duration(days=pl.col("id"), hours=3).alias("waited"))
    longer.write_parquet(tmp_path / "in.parquet")
    predict_table(predictor, tmp_path / "in.parquet", tmp_path / "out.xlsx", text=["text", "waited"])
    assert read_table(tmp_path / "out.xlsx").frame["predicted_label"].null_count() == 0


def test_the_line_that_tells_excel_the_delimiter_comes_back(predictor, frame, tmp_path):
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    plain = frame.write_csv(separator=";")
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + b"sep=;\r\n" + plain.encode())
        predict_table(predictor, path, output, overwrite=True)
        assert output.read_bytes().startswith(mark + b"sep=;\nid;text;label;predicted_label;")
        assert read_table(output).frame["text"].to_list() == frame["text"].to_list()
    predict_table(predictor, output, output, overwrite=True)
    assert output.read_bytes().count(b"sep=") == 1
