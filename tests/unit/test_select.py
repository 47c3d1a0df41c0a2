"""``snugtune select`` and ``weak-label`` with a model of one layer: files that go round to ``fit --add``."""

import json
import shutil

import openpyxl
import polars as pl
import pytest
from typer.testing import CliRunner

import tiny
from snugtune.cli import app
from snugtune.config import make_config
from snugtune.data.dataset import load_data
from snugtune.data.to_label import COLUMNS
from snugtune.errors import UserInputError
from snugtune.progress import Observer
from snugtune.select import select


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a run, tables of labelled and of unlabelled texts, and one of both."""
    folder = tmp_path_factory.mktemp("select")
    tiny.write_model(folder / "model")
    tiny.write_run(folder / "run", folder / "model")
    texts, labels = tiny.texts_and_labels(60)
    numbered = [f"{text} {'please ' * (i % 7)}{i % 10}" for i, text in enumerate(texts)]
    pl.DataFrame({"text": numbered, "label": labels}).write_csv(folder / "labelled.csv")
    pool = [f"{text} my call {i}" for i, text in enumerate(tiny.texts_and_labels(80, seed=5)[0])]
    pl.DataFrame({"id": range(84), "text": [*pool, "", None, *numbered[:2]]}).write_csv(folder / "pool.csv")
    pl.DataFrame(
        {"text": [*numbered, *pool], "label": [*labels, *[None] * len(pool)]}
    ).write_csv(folder / "both.csv")  # fmt: skip
    return folder


def run(folder, pool="pool.csv", out="out.csv", **arguments):
    settings = {key: arguments.pop(key) for key in ("label", "seed", "add") if key in arguments}
    config = make_config({"train": "", "model": str(folder / "model"), **settings})
    record = select(str(folder / pool), folder / out, config, overwrite=True, **arguments)
    return record, pl.read_csv(folder / out) if out.endswith(".csv") else None


def test_without_a_label_typical_texts_come_first(folder):
    record, frame = run(folder, count=6)
    assert (record["strategy"], record["chosen"], record["labelled"]) == ("typicality", 6, 0)
    assert tuple(frame.columns) == COLUMNS
    assert frame["predicted_label"].null_count() == 6
    assert frame["reason"].str.starts_with("typical of ").all() or "unlike" in " ".join(frame["reason"])
    texts = pl.read_csv(folder / "pool.csv")["text"].to_list()
    # Rows as a spreadsheet numbers them: the header is the first.
    assert [texts[row - 2].strip() for row in frame["row"].to_list()] == frame["text"].to_list()


@pytest.mark.parametrize("strategy", ["margin", "badge", "typicality", "random"])
def test_labelled_texts_and_what_is_like_them_are_left_out(folder, strategy):
    labelled = str(folder / "labelled.csv")
    record, frame = run(folder, labelled=labelled, count=500, strategy=strategy)
    assert record["pool"]["like_labelled"] >= 2
    assert (
        record["chosen"]
        == record["pool"]["texts"] - record["pool"]["repeated"] - record["pool"]["like_labelled"]
    )
    assert not set(frame["text"]) & set(pl.read_csv(labelled)["text"].str.strip_chars())
    assert set(frame["predicted_label"]) <= set(tiny.LABELS)
    assert frame["text"].n_unique() == frame.height


def test_rows_of_one_table_with_and_without_a_label(folder):
    record, frame = run(folder, pool="both.csv", label="label", count=5)
    assert record["labelled"] == 60
    assert record["labelled_file"].endswith("both.csv")
    assert record["strategy"] == "badge"
    assert (frame["row"] > 61).all()


def test_a_run_chooses_by_its_own_probabilities(folder):
    record, frame = run(folder, run=folder / "run", strategy="margin", count=4)
    assert record["labels"] == list(tiny.LABELS)
    from snugtune.predict.predictor import Predictor

    probabilities = Predictor.load(folder / "run").probabilities(frame["text"].to_list())
    assert probabilities.max(axis=1).tolist() == pytest.approx(frame["probability"].to_list(), abs=1e-4)
    record, _ = run(folder, run=folder / "run", count=4)
    assert record["strategy"] == "badge"


def test_a_second_call_reads_no_text_again(folder, monkeypatch):
    run(folder, count=3)
    said = []
    from snugtune.progress import Observer

    class Listener(Observer):
        def say(self, sentence):
            said.append(sentence)

    record, _ = run(folder, count=5, observer=Listener())
    read = record["pool"]["texts"] - record["pool"]["repeated"]
    assert any(f"{read:,} of {read:,} texts were read by this model before" in one for one in said)


def test_the_workbook_has_labels_to_choose_from_and_room_for_new_ones(folder):
    run(folder, out="out.xlsx", labelled=str(folder / "labelled.csv"), count=3)
    book = openpyxl.load_workbook(folder / "out.xlsx")
    sheet = book["to label"]
    assert [cell.value for cell in sheet[1]] == list(COLUMNS)
    assert [row[0].value for row in book["labels"].rows] == list(tiny.LABELS)
    (validation,) = sheet.data_validations.dataValidation
    assert (str(validation.sqref), validation.errorStyle) == ("C2:C4", "warning")


def test_what_was_labelled_joins_the_training_rows(folder, tmp_path):
    """The way round: select, fill in (with a label nobody had thought of), and load for a fit."""
    run(folder, out="next.xlsx", labelled=str(folder / "labelled.csv"), count=4)
    book = openpyxl.load_workbook(folder / "next.xlsx")
    sheet = book["to label"]
    for row, label in zip((2, 3, 4), ("Card", "fees ", "Fraud"), strict=True):
        sheet.cell(row, 3).value = label
    wanted = [sheet.cell(row, 2).value for row in (2, 3, 4)]
    book.save(tmp_path / "done.xlsx")
    data = load_data(make_config({"train": str(folder / "labelled.csv"), "add": str(tmp_path / "done.xlsx")}))
    part = data.parts["train"]
    assert data.labels.names == ("Card", "Fees", "Fraud", "Loan")
    added = dict(zip(part.texts[-part.reviewed :], part.y[-part.reviewed :].tolist(), strict=True))
    assert {text: data.labels.names[k] for text, k in added.items()} == dict(
        zip(wanted, ("Card", "Fees", "Fraud"), strict=True)
    )
    before = load_data(make_config({"train": str(folder / "labelled.csv")}))
    for name in ("validation", "test"):
        names = [data.labels.names[k] for k in data.parts[name].y]
        assert names == [before.labels.names[k] for k in before.parts[name].y]
    assert data.table.y.max() == 3


def answered(folder, name, tmp_path, label="Card"):
    """A round: the texts of a selection with labels beside them."""
    frame = pl.read_csv(folder / name).with_columns(label=pl.lit(label))
    frame.write_csv(tmp_path / f"answered-{name}")
    return str(tmp_path / f"answered-{name}"), set(frame["text"])


def test_a_later_round_asks_for_none_of_the_texts_before(folder, tmp_path):
    """Given again by hand, with the names of select's own columns, or known by the run."""
    run(folder, pool="both.csv", label="label", count=6, out="first.csv")
    first, texts = answered(folder, "first.csv", tmp_path)
    record, frame = run(folder, pool="both.csv", label="label", count=500, add=(first,))
    assert not texts & set(frame["text"])
    assert record["labelled"] == 66
    assert record["added_files"] == [first]
    later = tmp_path / "run"
    shutil.copytree(folder / "run", later)
    known = json.loads((later / "run.json").read_text("utf-8"))
    known["config"] = {"train": str(folder / "labelled.csv"), "add": [first, str(tmp_path / "gone.csv")]}
    (later / "run.json").write_text(json.dumps(known), encoding="utf-8")
    said = []
    record, frame = run(folder, run=later, count=500, observer=Told(said))
    assert not texts & set(frame["text"])
    assert record["added_files"] == [first]
    assert any("gone.csv, which" in sentence and "--add" in sentence for sentence in said)


def test_the_next_command_has_all_rounds(folder, tmp_path):
    run(folder, pool="both.csv", label="label", count=6, out="first.csv")
    first, _ = answered(folder, "first.csv", tmp_path)
    given = ["select", str(folder / "both.csv"), "--label", "label", "--model", str(folder / "model")]
    done = CliRunner().invoke(app, [*given, "--add", first, "-o", str(tmp_path / "second.csv"), "-n", "3"])
    assert done.exit_code == 0, done.output
    assert f"--add {first} --add {tmp_path / 'second.csv'}" in done.output.replace("\n", "")


def test_the_table_of_a_run_is_read_as_the_run_read_it(folder, tmp_path):
    table = tmp_path / "semicolons.csv"
    pl.read_csv(folder / "labelled.csv").write_csv(table, separator=";")
    later = tmp_path / "run"
    shutil.copytree(folder / "run", later)
    known = json.loads((later / "run.json").read_text("utf-8"))
    known["config"] = {"train": str(table), "delimiter": ";"}
    (later / "run.json").write_text(json.dumps(known), encoding="utf-8")
    assert run(folder, run=later, count=3)[0]["labelled"] == 60


def test_a_run_with_virtual_tokens_is_refused(folder, monkeypatch):
    monkeypatch.setattr("snugtune.select.virtual_tokens", lambda _model: 20)
    with pytest.raises(UserInputError, match="puts virtual tokens before each text"):
        run(folder, run=folder / "run", count=3)


class Told(Observer):
    def __init__(self, said):
        self.say = said.append


def test_the_later_of_two_files_has_the_last_word(folder, tmp_path):
    for name, label in (("a.csv", "Card"), ("b.csv", "Loan")):
        pl.DataFrame({"text": ["quite another text"], "label": [label]}).write_csv(tmp_path / name)
    files = (str(tmp_path / "a.csv"), str(tmp_path / "b.csv"))
    data = load_data(make_config({"train": str(folder / "labelled.csv"), "add": files}))
    assert data.additions["added"] == 1
    assert data.labels.names[data.parts["train"].y[-1]] == "Loan"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"text": ["a"], "label": ["Feees"]}, "did you mean 'Fees'"),
        ({"text": ["a"], "label": [""]}, "no row with both a text and a label"),
        ({"text": ["a"], "other": ["Fees"]}, "neither the label column 'label'"),
    ],
)
def test_a_spreadsheet_that_cannot_join_is_told(folder, tmp_path, cells, message):
    pl.DataFrame(cells).write_csv(tmp_path / "added.csv")
    with pytest.raises(UserInputError, match=message):
        load_data(make_config({"train": str(folder / "labelled.csv"), "add": str(tmp_path / "added.csv")}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "badge"}, "needs labelled texts"),
        ({"strategy": "best"}, "must be one of auto"),
        ({"count": 0}, "must be 1 or more"),
        ({"out": "out.parquet"}, "name it with one of"),
        ({"out": "no/out.csv"}, "does not exist"),
        ({"pool": "labelled.csv", "label": "label"}, "has a label"),
        ({"label": "Lable", "pool": "both.csv"}, "did you mean 'label'"),
        ({"run": "no-run"}, "not a finished run"),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_written(folder, arguments, message):
    arguments = {"out": "never.csv", **arguments}
    with pytest.raises(UserInputError, match=message):
        run(folder, **arguments)
    assert not (folder / arguments["out"]).exists()


def test_more_texts_than_a_sheet_holds_are_refused_before_the_model_reads(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("snugtune.data.to_label.EXCEL_ROWS", 3)
    monkeypatch.setattr("snugtune.select.load_for_fit", None)
    with pytest.raises(UserInputError, match="An Excel sheet holds 3 rows below its header, not 4; lower"):
        run(folder, out=str(tmp_path / "a.xlsx"), count=4)


def test_a_file_that_is_there_is_not_replaced_unasked(folder, tmp_path):
    (tmp_path / "out.csv").write_text("mine")
    config = make_config({"train": ""})
    with pytest.raises(UserInputError, match="--overwrite"):
        select(str(folder / "pool.csv"), tmp_path / "out.csv", config)
    assert (tmp_path / "out.csv").read_text() == "mine"


def test_the_command_says_how_to_go_on(folder, tmp_path):
    arguments = [
        "select", folder / "pool.csv", "--labelled", folder / "labelled.csv", "--model", folder / "model",
        "-n", "3", "-o", tmp_path / "next.csv",
    ]  # fmt: skip
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    assert f"snugtune fit {folder / 'labelled.csv'} --add {tmp_path / 'next.csv'}" in done.output


# Weak labels

RULES = """
rules:
  - {label: Card, words: [stolen, wallet]}
  - {label: Fees, words: [fee], name: fees}
  - {label: Loan, words: [rate], unless: [card]}
  - {label: Fees, words: [interest]}
"""


@pytest.mark.parametrize("name", ["weak.csv", "weak.xlsx"])
def test_rules_label_a_table_and_are_judged(folder, tmp_path, name):
    (tmp_path / "rules.yaml").write_text(RULES)
    arguments = [
        "weak-label", folder / "labelled.csv", "--rules", tmp_path / "rules.yaml", "--label", "label",
        "-o", tmp_path / name, "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    record = json.loads(done.output)
    assert (record["rows"], record["labelled"], record["conflicts"]) == (60, 60, 20)
    # The rule that is always wrong is found out by the known labels, and overruled.
    assert record["agree"] == record["compared"] == 60
    fees, wrong = record["rules"][1], record["rules"][3]
    assert (fees["agree"], fees["known"], wrong["agree"], wrong["known"]) == (20, 20, 0, 20)
    assert wrong["accuracy"] < 0.4 < fees["accuracy"]
    frame = pl.read_csv(tmp_path / name) if name.endswith("csv") else pl.read_excel(tmp_path / name)
    assert frame["weak_label"].to_list() == frame["label"].to_list()
    assert frame.columns[:2] == ["text", "label"]
    assert "fees" in frame["weak_label_rules"][1]


def test_texts_of_which_no_rule_speaks_stay_without_a_label(folder, tmp_path):
    (tmp_path / "rules.yaml").write_text(
        "rules:\n- {label: Card, words: wallet}\n- {label: B, words: nothing}\n"
    )
    arguments = [
        "weak-label", folder / "pool.csv", "--rules", tmp_path / "rules.yaml", "-o", tmp_path / "weak.csv",
    ]  # fmt: skip
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    assert "1 rules match no text: B: nothing." in done.output
    frame = pl.read_csv(tmp_path / "weak.csv")
    fires = pl.col("text").fill_null("").str.contains("wallet")
    assert frame.filter(fires)["weak_label"].to_list() == ["Card"] * frame.filter(fires).height
    assert frame.filter(~fires)["weak_label"].null_count() == frame.filter(~fires).height


def test_rules_that_match_nothing_write_nothing(folder, tmp_path):
    from snugtune.weak import weak_label

    (tmp_path / "rules.yaml").write_text("rules:\n- {label: Card, words: nowhere}\n")
    with pytest.raises(UserInputError, match="No rule of"):
        weak_label(
            str(folder / "pool.csv"),
            tmp_path / "rules.yaml",
            tmp_path / "weak.csv",
            make_config({"train": ""}),
        )
    assert not (tmp_path / "weak.csv").exists()
