"""The notebook from its first cell to its last, on the invented complaints, in a real kernel."""

import os
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The executed notebook, and the folder it ran in."""
    sys.path.insert(0, str(NOTEBOOKS))
    try:
        from execute import execute
    finally:
        sys.path.remove(str(NOTEBOOKS))
    folder = tmp_path_factory.mktemp("notebook")
    before = os.environ.get("SNUGTUNE_NOTEBOOK")
    try:
        return execute(NOTEBOOKS / "complaints.ipynb", folder=folder, size="sample"), folder
    finally:
        os.environ.pop("SNUGTUNE_NOTEBOOK", None)
        if before is not None:
            os.environ["SNUGTUNE_NOTEBOOK"] = before


def outputs_of(notebook, source):
    """What the cell that holds ``source`` shows, as HTML."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and source in cell.source]
    return "".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)


def test_no_cell_fails_or_warns(done):
    notebook, _ = done
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("audit_table", "Labels that look wrong"),
        ("labels=214", "h100"),
        ("fit_table", "Loss by optimiser step"),
        ("fit_table", "Memory by optimiser step"),
        ('show("quality")', "automated"),
        ('show("classes")', "What is taken for what"),
        ('show("trust")', "Reliability after calibration"),
        ('show("training")', "Memory by optimiser step"),
        ('show("cost")', "Phase by phase"),
        ('read_excel("done.xlsx")', "predicted_label"),
        ("run.predict(", "needs_review"),
        ("Classifier.load", "fitted on"),
        ("run.report()", "srcdoc="),
    ],
)
def test_each_step_shows_its_result(done, source, expected):
    assert expected in outputs_of(done[0], source)


def test_the_price_of_an_hour_stands_in_the_plan(done):
    assert "USD" in outputs_of(done[0], "labels=214")


def test_what_it_writes_is_there_and_a_notebook_with_outputs_stays_small(done, tmp_path):
    import nbformat

    notebook, folder = done
    for name in ("done.xlsx", "audit/label_issues.xlsx", "runs/complaints/report.html", "complaints-model"):
        assert (folder / name).exists()
    path = tmp_path / "done.ipynb"
    nbformat.write(notebook, path)
    assert path.stat().st_size < 2_000_000


def test_every_output_loads_nothing_from_elsewhere(done):
    for cell in done[0].cells:
        for output in cell.get("outputs", []):
            html = output.get("data", {}).get("text/html", "")
            assert 'src="http' not in html
            assert "@import" not in html
