"""Every command and snippet of the README and of docs/ is executed, page by page, in order.

What a page speaks of (a table, a run) is there; fits are short: see ``shortened`` in ``documents.py``.
"""

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from transformers import AutoModel, AutoTokenizer

from documents import EXECUTED, PAGES, ROOT, Page, blocks
from snugtune.config import FitConfig, make_config
from snugtune.data.sample import write_sample
from snugtune.fit import fit
from snugtune.model.backbone import resolve
from snugtune.serve.web.reviews import Person, Prediction, ReviewStore

pytestmark = pytest.mark.long

EXECUTABLE = [
    page for page in PAGES if any(b.reason is None and b.language in EXECUTED for b in blocks(page))
]

SHIM = """#!{python}
import sys
from pathlib import Path

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
    for name in ("python", "pip"):
        (folder / name).symlink_to(Path(sys.executable).with_name(name))
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
    _write_common(folder)
    _write_run(folder, "issue", "minilm", label="Issue")
    _write_run(folder, "product", small_model, label="Product")
    _write_reviews(folder, frame)
    return folder


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


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", EXECUTABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_the_page_works(page, run_page):
    run_page(page)


@pytest.mark.parametrize(
    "block",
    [
        "```bash\nsnugtune predict runs/issue no_such_table.csv -o done.csv\n```\n",
        "```bash\nsnugtune report runs/issue | false\n```\n",
        "```python\nfrom snugtune import NoSuchName\n```\n",
        "```python\nimport snugtune\n\nassert snugtune.Classifier is None\n```\n",
    ],
)
def test_a_block_that_is_wrong_fails(block, tmp_path, run_page):
    page = tmp_path / "page.md"
    page.write_text(block)
    with pytest.raises((AssertionError, ImportError)):
        run_page(page)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as strictly as ``make docs`` does."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(["make", "-s", "docs/index.md"], cwd=ROOT, check=True)
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, text=True, capture_output=True, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_the_site_asks_nothing_of_other_hosts(site):
    loads = re.compile(
        r"<(?:link|script|img|iframe|source|video)\b[^>]*?(?:href|src)=[\"']?(?:https?:)?//[^\"' >]+"
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        asked = [
            found for found in loads.findall(page.read_text(encoding="utf-8")) if "canonical" not in found
        ]
        assert not asked, f"{page.name}: {asked}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_the_site_has_what_is_made_from_the_program(site):
    command_line = (site / "reference/command-line.html").read_text(encoding="utf-8")
    settings = (site / "reference/settings.html").read_text(encoding="utf-8")
    python = (site / "reference/python.html").read_text(encoding="utf-8")
    for name in ("fit", "predict", "data cfpb", "watch"):
        assert f"snugtune {name}</code>" in command_line
    assert "--gradient-accumulation-steps" in command_line
    assert all(f"<code>{name}</code>" in settings for name in FitConfig.model_fields)
    for name in (
        "Classifier",
        "predict_proba",
        "make_config",
        "Predictor",
        "UserInputError",
        "RunInterruptedError",
    ):
        assert name in python


def test_the_search_knows_the_pages(site):
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    assert {"tutorial.html", "how-to/resume.html", "peers.html"} <= {d["location"] for d in index["docs"]}
