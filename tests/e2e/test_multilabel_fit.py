"""A fit on texts with several labels, end to end: the folder, stock classes, tables in and out, the page."""

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from test_run_folder_docs import check_record

import tiny
from snugtune.data.label_sets import split_cell

pytestmark = pytest.mark.slow
ROWS = 360


def snugtune(*arguments, code=0):
    command = [sys.executable, "-m", "snugtune", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def draw(rows, seed):
    """Texts that carry the words of each topic that applies, among others."""
    rng = np.random.default_rng(seed)
    texts, sets = [], []
    for _ in range(rows):
        on = [name for name in tiny.TOPICS if rng.random() < 0.4]
        words = [word for name in on for word in tiny.TOPICS[name].split()]
        words += [*rng.choice(tiny.FILLER, 4), *map(str, rng.integers(0, 10, 3))]
        texts.append(" ".join(rng.permutation(words)))
        sets.append(tuple(sorted(on)))
    return texts, sets


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("multilabel")
    model = tiny.write_model(folder / "model")
    texts, sets = draw(ROWS, 0)
    columns = {name: ["yes" if name in labels else "no" for labels in sets] for name in tiny.TOPICS}
    pl.DataFrame({"text": texts, **columns}).write_csv(folder / "train.csv")
    run = folder / "run"
    done = snugtune(
        "fit", folder / "train.csv", "--label", "Card,Fees,Loan", "--multi-label", "--text", "text",
        "--model", model, "--epochs", 2, "--validation-fraction", 0.3, "--out", run, "--json",
    )  # fmt: skip
    return run, json.loads(done.stdout), folder


def test_the_record_is_as_documented(finished):
    _, record, _ = finished
    check_record(record)
    assert record["config"]["problem_type"] == "multi_label_classification"
    assert record["config"]["metric"] == "f1_micro"
    assert record["columns"]["label"] == ["Card", "Fees", "Loan"]
    assert record["label_separator"] == ";"
    assert record["metrics"]["test"]["f1_micro"] > 0.9
    assert record["verdict"]["difference"]["test"] == "paired_bootstrap"
    assert len(record["decision"]["thresholds"]) == 3
    # A text in five has no topic at all, so none may be given.
    assert record["decision"]["at_least_one"] is False
    assert record["reload"]["largest_logit_difference"] <= 1e-3
    assert record["audit"]["label_issues"] is None
    assert record["audit"]["labels_per_row"]["rows_with_none"] > 0


def test_stock_classes_apply_the_sigmoid(finished):
    run, record, _ = finished
    code = (
        "import sys, json, torch\n"
        "from peft import AutoPeftModelForSequenceClassification\n"
        "from transformers import AutoConfig, AutoTokenizer, pipeline\n"
        "folder = sys.argv[1]\n"
        "config = AutoConfig.from_pretrained(folder)\n"
        "model = AutoPeftModelForSequenceClassification.from_pretrained(folder, id2label=config.id2label,\n"
        "    label2id=config.label2id, pad_token_id=config.pad_token_id).eval()\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "text = 'card stolen wallet fee charged twice'\n"
        "logits = model(**tokenizer([text], return_tensors='pt')).logits[0]\n"
        "merged = model.merge_and_unload()\n"
        "merged.config.problem_type = config.problem_type\n"
        "told = pipeline('text-classification', model=merged, tokenizer=tokenizer, top_k=None)([text])[0]\n"
        "scores = {row['label']: row['score'] for row in told}\n"
        "print(json.dumps([config.problem_type, torch.sigmoid(logits).tolist(), scores]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(run / "adapter")], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    problem_type, expected, scores = json.loads(done.stdout.splitlines()[-1])
    assert problem_type == "multi_label_classification"
    assert [scores[name] for name in record["labels"]] == pytest.approx(expected, abs=1e-5)


def test_tables_in_and_out(finished, tmp_path):
    run, record, _ = finished
    texts, sets = draw(80, 5)
    pl.DataFrame({"text": texts, "topics": ["; ".join(labels) for labels in sets]}).write_csv(
        tmp_path / "new.csv"
    )
    snugtune("predict", run, tmp_path / "new.csv", "-o", tmp_path / "done.xlsx")
    done = pl.read_excel(tmp_path / "done.xlsx")
    added = ["predicted_label", "confidence", "needs_review", "label_confidences", "next_label"]
    assert done.columns == ["text", "topics", *added]
    told = [split_cell(cell or "", ";") for cell in done["predicted_label"]]
    assert np.mean([mine == theirs for mine, theirs in zip(told, sets, strict=True)]) > 0.8
    for labels, confidences, following in zip(
        told, done["label_confidences"], done["next_label"], strict=True
    ):
        assert len(split_cell(confidences or "", ";")) <= len(labels)
        assert following is None or following not in labels
    assert (done["confidence"].is_between(0, 1)).all()

    scored = json.loads(
        snugtune("evaluate", run, tmp_path / "new.csv", "--label", "topics", "--json",
                 "-o", tmp_path / "rows.csv").stdout
    )  # fmt: skip
    assert scored["label_column"] == "topics"
    assert scored["metrics"]["rows"] + scored["rows_without_label"] == 80
    rows = pl.read_csv(tmp_path / "rows.csv")
    right = rows["correct"].drop_nulls()
    assert right.mean() == pytest.approx(scored["metrics"]["accuracy"])
    assert set(scored["predicted"]) <= set(record["labels"])
    shown = snugtune("evaluate", run, tmp_path / "new.csv", "--label", "topics").stdout
    assert "Hamming loss" in shown


def test_the_page_and_the_card_tell_of_label_sets(finished):
    run, _, _ = finished
    from snugtune.report.page import write_report

    page = write_report(run).read_text(encoding="utf-8")
    for words in ("Micro F1", "Exactly right", "Label by label", "3 labels"):
        assert words in page
    assert "Most often taken for" not in page
    assert "What is taken for what" not in page
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "Micro F1" in card
    assert "`decision.thresholds`" in card
    rows = pl.read_parquet(run / "predictions.parquet")
    assert rows.filter(pl.col("part") == "test")["predicted_label"].null_count() == 0
    assert set(rows["label"].unique()) >= {"Card; Fees", "Loan", ""}


def test_two_runs_compare(finished):
    run, _, folder = finished
    other = folder / "other"
    if not other.exists():
        import shutil

        shutil.copytree(run, other)
    told = json.loads(snugtune("compare", run, other, "--json").stdout)
    (difference,) = told["differences"]
    assert difference["verdict"] == "same"
    assert difference["f1_macro"]["difference"] == 0.0


def test_a_cell_that_is_neither_yes_nor_no_is_one_sentence(tmp_path):
    pl.DataFrame({"text": ["one text", "two texts"], "a": ["yes", "perhaps"], "b": ["no", "no"]}).write_csv(
        tmp_path / "bad.csv"
    )
    done = snugtune(
        "fit", tmp_path / "bad.csv", "--text", "text", "--label", "a", "--label", "b", "--multi-label",
        "--out", tmp_path / "run", code=2,
    )  # fmt: skip
    assert "row 3 says 'perhaps'" in done.stderr.replace("\n", " ")
