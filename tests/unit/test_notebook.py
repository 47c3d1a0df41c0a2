"""What notebooks show: self-contained, escaped, in the notebook's theme; and the notebook itself."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from test_report_page import Page

import snugtune
from reports import HOSTILE, write_run
from snugtune.errors import UserInputError
from snugtune.memory.devices import find_device
from snugtune.notebook import Audit, NotebookObserver, in_notebook, watching
from snugtune.progress import Observer, StepInfo, ValidationInfo
from snugtune.report.inline import SECTIONS, style
from tiny import write_model

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "complaints.ipynb"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return snugtune.open_run(write_run(tmp_path_factory.mktemp("run"), classes=30, rows=600))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("hostile"), classes=30, rows=200, hostile=True)
    return snugtune.open_run(folder)


def check(html):
    """It loads nothing, runs nothing, closes what it opens, and styles nothing but itself."""
    page = Page(html)
    assert page.open == []
    assert page.elements[0] == ("div", {"class": "snugtune"})
    assert not page.all("script")
    for name, attributes in page.elements:
        assert name not in ("link", "img", "object", "embed", "base", "form")
        assert not [key for key in attributes if key.startswith("on") or key in ("src", "style", "srcset")]
        assert attributes.get("href", "#").startswith("#")
    for css in page.raw.get("style", []):
        assert "url(" not in css
        assert "@import" not in css
    return page


def test_a_run_shows_its_verdict_and_its_curves(run):
    page = check(run._repr_html_())
    assert "Verdict" in page.text
    assert {"Loss by optimiser step, in training and on validation", "Memory by optimiser step in GiB"} <= {
        svg.get("aria-label") for svg in page.all("svg")
    }
    assert repr(run) == f"Run('{run.folder}')"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_can_be_shown_alone(run, hostile, section):
    assert check(run.show(section)._repr_html_()).text
    check(hostile.show(section)._repr_html_())


def test_what_the_data_holds_is_text(hostile):
    html = hostile.show(*SECTIONS).html + hostile._repr_html_()
    for text in HOSTILE:
        if "<" in text:
            assert text not in html
    assert "&lt;script&gt;" in html


def test_a_section_of_another_name_is_told(run):
    with pytest.raises(ValueError, match="no section 'lost'; there are verdict, data"):
        run.show("lost")


def test_the_report_is_in_a_frame_that_may_do_nothing_outside(hostile):
    page = Page(hostile.report(300).html)
    ((name, frame),) = page.elements
    assert name == "iframe"
    assert frame["sandbox"] == "allow-scripts"  # no same origin: it cannot reach the notebook
    assert "300px" in frame["style"]
    assert frame["srcdoc"].startswith("<!DOCTYPE html>")
    assert "Content-Security-Policy" in frame["srcdoc"]


def test_texts_stay_out_where_the_run_was_told_so(run, tmp_path):
    import json
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    record["config"]["report_texts"] = False
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    told = snugtune.open_run(folder).show(*SECTIONS).html
    assert "I wrote to them" in run.show(*SECTIONS).html
    assert "I wrote to them" not in told


def test_the_style_is_that_of_the_page_and_touches_nothing_else():
    css = re.sub(r"@media[^{]*\{(.*?\})\s*\}", r"\1", style(), flags=re.DOTALL)
    for selectors in re.findall(r"([^{}]+)\{[^{}]*\}", css):
        for selector in selectors.split(","):
            assert ".snugtune" in selector, selector
    assert "prefers-color-scheme: dark" in style()
    assert ":root" not in style()


def test_an_audit_shows_what_it_found(hostile):
    page = check(Audit(hostile.record, Path("audit"))._repr_html_())
    assert "Usable rows" in page.text


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("tiny") / "model")
    return snugtune.plan(model=str(folder), labels=3, rows=100, gpu="t4,h100", max_cost_usd=0.000001)


def test_a_plan_shows_each_device_with_its_price(plans):
    page = check(plans._repr_html_())
    for one, name in zip(plans.devices, ("t4", "h100"), strict=True):
        assert one.name == find_device(name).name
        assert name in page.text
        assert f"{one.price.usd_per_hour:.2f} USD" in page.text
    assert "3 labels" in page.text
    assert "t4 fits, h100 fits" in repr(plans)


def test_a_plan_without_a_table_asks_for_the_number_of_classes():
    with pytest.raises(UserInputError, match="number of classes"):
        snugtune.plan(model="minilm")


def test_texts_to_predict_are_a_list(run):
    with pytest.raises(UserInputError, match="list of texts"):
        run.predict("one text")


class Cell:
    """Stands in for IPython's display: keeps what the cell shows now, and how often that changed."""

    def __init__(self):
        self.shown, self.changes = "", 0

    def display(self, html, *, display_id):
        assert display_id is True
        self.update(html)
        return self

    def update(self, html):
        self.shown, self.changes = html._repr_html_(), self.changes + 1


def test_a_cell_ends_with_the_curves_and_is_not_redrawn_too_often():
    cell = Cell()
    with NotebookObserver(cell.display, price_per_hour_usd=3600.0) as observer:
        observer.say("<b>100 rows</b>")
        observer.phase("train", 300)
        for step in range(1, 301):
            info = StepInfo(step, 300, 1 / step, 1e-3, float(step), 300.0 - step, 1.5, {"resident_gib": 1.5})
            observer.on_step(info)
        observer.on_validation(ValidationInfo(300, 1.0, 0.9, 0.3, True))
    page = check(cell.shown)
    assert "Done, step 300 of 300" in page.text
    assert "300.00 USD so far" in page.text
    assert "<b>100 rows</b>" in page.text
    labels = {svg.get("aria-label") for svg in page.all("svg")}
    assert "Memory by optimiser step in GiB" in labels
    assert cell.changes < 30


def test_a_cell_says_that_it_failed():
    cell = Cell()
    with pytest.raises(ValueError, match="broken"), NotebookObserver(cell.display):
        raise ValueError("broken")
    assert "It ended with an error" in cell.shown


def test_nothing_is_drawn_outside_a_notebook_and_the_callers_observer_is_kept(monkeypatch):
    assert not in_notebook()
    own = Observer()
    with watching(own) as observer:
        assert observer is own
    with watching() as observer:
        assert not isinstance(observer, NotebookObserver)
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert in_notebook()
    ipython.get_ipython = SimpleNamespace  # a terminal's
    assert not in_notebook()


def test_a_classifier_shows_what_was_set_and_its_run(run):
    classifier = snugtune.Classifier("some/<i>model</i>", r=4)
    page = check(classifier._repr_html_())
    assert "not fitted yet: some/<i>model</i>, with r=4." in page.text
    classifier.predictor_, classifier.classes_, classifier.run_ = object(), [1, 2, 3], run.folder
    page = check(classifier._repr_mimebundle_()["text/html"])
    assert "fitted on 3 classes" in page.text
    assert "Verdict" in page.text


def test_the_notebook_is_committed_without_outputs_and_is_valid():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    # Each step is one or two calls.
    assert all(len(cell.source.splitlines()) <= 20 for cell in code)
    assert NOTEBOOK.stat().st_size < 100_000


def test_the_notebooks_settings_are_settings():
    """Those of the branch for real data, which no test runs."""
    source = "\n".join(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells)
    block = re.search(r"SETTINGS = \{\n(.*?)\n    \}", source, re.DOTALL)
    settings = eval("{" + block[1] + "}")
    assert settings["model"] == "xlm-roberta-large"
    from snugtune.config import make_config

    make_config({"train": "x.csv", **settings})


def test_public_names_are_these_and_all_of_them_are_there():
    assert snugtune.__all__ == [
        "Classifier", "FitConfig", "Predictor", "SnugtuneError", "UserInputError", "audit_table", "fit",
        "fit_table", "make_config", "open_run", "plan", "write_sample",
    ]  # fmt: skip
    assert all(callable(getattr(snugtune, name)) for name in snugtune.__all__)
