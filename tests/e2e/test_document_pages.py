"""Every command and snippet of the README and of docs/ is executed, page by page, in order.

What a page speaks of (a table, a run) is there; fits are short: see ``shortened`` in ``documents.py``. The
pages of ``docs/how-to`` are in a file of their own, so that two processes share the work. The site is built.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from documents import ROOT, executable
from snugtune.config import FitConfig

pytest_plugins = ["document_fixtures"]
pytestmark = pytest.mark.long


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", executable(how_to=False), ids=lambda page: str(page.relative_to(ROOT)))
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
