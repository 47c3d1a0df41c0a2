"""What the documents speak of: tables, runs, reviews, and a ``snugtune`` that does its work in seconds.

A plugin of the tests that execute them (``pytest_plugins``).
"""

import os
import sqlite3
import sys

import polars as pl
import pytest
from transformers import AutoModel, AutoTokenizer

from documents import ROOT, Page, blocks
from snugtune.config import make_config
from snugtune.data.sample import write_sample
from snugtune.fit import fit
from snugtune.model.backbone import resolve
from snugtune.serve.web.reviews import Person, Prediction, ReviewStore

SHIM = """#!{python}
import sys

sys.path[:0] = {paths!r}
from documents import shortened

sys.argv[1:] = shortened(sys.argv[1:], {model!r})
from snugtune.cli import main

main()
"""


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """MiniLM's first layer with its embeddings: it knows English, and trains in seconds."""
    folder = tmp_path_factory.mktemp("model")
    model = AutoModel.from_pretrained(resolve("minilm"))
    model.encoder.layer = model.encoder.layer[:1]
    model.config.num_hidden_layers = 1
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve("minilm")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def programs(tmp_path_factory, small_model):
    """A folder with a ``snugtune`` that does the same in seconds."""
    folder = tmp_path_factory.mktemp("programs")
    shim = folder / "snugtune"
    paths = [str(ROOT / "tests"), str(ROOT / "src")]
    shim.write_text(SHIM.format(python=sys.executable, paths=paths, model=str(small_model)))
    shim.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def template(tmp_path_factory, small_model):
    """Tables, runs and reviews under the names that the pages use."""
    folder = tmp_path_factory.mktemp("template")
    for seed, name in enumerate(("complaints", "new", "may", "june", "held_out")):
        write_sample(folder / f"{name}.csv", rows=500, seed=seed)
        write_sample(folder / f"{name}.xlsx", rows=500, seed=seed)
    frame = pl.read_csv(folder / "complaints.csv")
    frame.write_parquet(folder / "complaints.parquet")
    _write_topics(frame, folder)
    with sqlite3.connect(folder / "complaints.db") as database:
        names = ", ".join(f'"{name}"' for name in frame.columns)
        database.execute(f"create table may ({names})")
        database.executemany(f"insert into may values ({', '.join('?' * frame.width)})", frame.rows())
    database.close()
    (folder / "rules.md").write_text("# Rules\n\nA fee is a fee.\n")
    _write_labels(frame, folder)
    _write_common(folder)
    _write_run(folder, "issue", "minilm", label="Issue")
    _write_run(folder, "product", small_model, label="Product")
    _write_reviews(folder, frame)
    return folder


def _write_labels(frame, folder):
    """Rules as their page shows them, and a spreadsheet of chosen texts that was filled in."""
    page = ROOT / "docs" / "fewer-labels.md"
    (folder / "rules.yaml").write_text(next(b.text for b in blocks(page) if b.language == "yaml"))
    rows = frame.drop_nulls(["Issue", "Consumer complaint narrative"]).head(8)
    chosen = {"text": "Hello, " + rows["Consumer complaint narrative"], "label": rows["Issue"]}
    pl.DataFrame(chosen).write_excel(folder / "filled_in.xlsx")


def _write_common(folder):
    """Complaints of the commonest issues: MiniLM is sure of them, so half precision changes no label."""
    write_sample(folder / "common.csv", rows=1500)
    frame = pl.read_csv(folder / "common.csv")
    issues = frame["Issue"].drop_nulls().value_counts(sort=True)["Issue"].head(4).implode()
    frame.filter(pl.col("Issue").is_in(issues)).write_csv(folder / "common.csv")


def _write_run(folder, name, model, **settings):
    config = {
        "train": str(folder / "common.csv"), "model": str(model), "max_length": 40, "num_train_epochs": 1,
        **settings,
    }  # fmt: skip
    fit(make_config(config), folder / "runs" / name)


def _write_topics(frame, folder):
    """The same texts under several labels: in a cell, in columns, in lists."""
    narrative = "Consumer complaint narrative"
    words = {"Fees": "fee|charge", "Card": "card", "Loan": "loan|mortgage|payment"}
    topics = frame.filter(pl.col(narrative).is_not_null()).select(
        pl.col(narrative),
        *(pl.col(narrative).str.contains(pattern).alias(name) for name, pattern in words.items()),
    )
    lists = pl.concat_list(*(pl.when(pl.col(name)).then(pl.lit(name)) for name in words)).list.drop_nulls()
    said = [pl.when(name).then(pl.lit("yes")).otherwise(pl.lit("no")).alias(name) for name in words]
    topics = topics.with_columns(lists.alias("Topics"))
    topics.select(narrative, "Topics").write_parquet(folder / "topics.parquet")
    topics.with_columns(pl.col("Topics").list.join("; "), *said).write_csv(folder / "topics.csv")


def _write_reviews(folder, frame):
    rows = frame.drop_nulls(["Issue", "Consumer complaint narrative"]).head(5)
    issues = tuple(sorted(set(frame["Issue"].drop_nulls())))
    store = ReviewStore.open(folder / "runs" / "issue.reviews.db", issues, None)
    for i, row in enumerate(rows.iter_rows(named=True)):
        uncertain = Prediction(
            text=row["Consumer complaint narrative"], predicted=(row["Issue"],), confidence=0.3, row=i,
            candidates=((row["Issue"], 0.3),), position=0.3, reason="uncertain", source="may.csv",
        )  # fmt: skip
        store.add([uncertain])
        ana = Person("Ana", "a" * 16)
        item = store.next(ana)
        store.decide(ana, item["id"], [row["Issue"]])


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Offline, with a cache of its own, and with this very source."""
    sources = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    return {
        "SNUGTUNE_CACHE": str(tmp_path_factory.mktemp("cache")), "HF_HUB_OFFLINE": "1", "PYTHONPATH": sources,
        "PYTHONWARNINGS": "ignore",
    }  # fmt: skip


@pytest.fixture
def run_page(tmp_path, template, programs, environment):
    def run(path):
        Page(path, tmp_path, template, programs, environment).run()

    return run
