"""The model card: metadata that model hubs read, the verdict, and what was promised."""

import json

import pytest
from huggingface_hub import ModelCard

from reports import write_run
from snugtune.report.card import card


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("run"), classes=12, rows=200)
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def test_the_metadata_is_a_model_index_that_hubs_read(record):
    found = ModelCard(card(record))
    results = {one.metric_type: one for one in found.data.eval_results}
    metrics = record["metrics"]["test"]
    assert results["accuracy"].metric_value == pytest.approx(metrics["accuracy"], abs=1e-4)
    assert results["f1"].metric_value == pytest.approx(metrics["f1_macro"], abs=1e-4)
    assert results["f1"].dataset_split == "test"
    assert found.data.pipeline_tag == "text-classification"


def test_the_verdict_and_the_promise_come_first(record):
    text = card(record)
    promised, tested = record["automation"]["sentence"], record["automation"]["test"]
    review = 100 * record["verdict"]["review_share"]
    assert f"**Ready, with review of {review:.0f} % of the texts.** {promised}" in text
    assert f"{100 * tested['precision']:.1f} % of these were right (95 % interval 94.9 to 96.2 %)" in text
    assert "- The promised precision was met on the test texts." in text
    assert text.count(promised) == 1
    assert text.index("## Verdict") < text.index("| on test |")


@pytest.mark.parametrize("tested", [None, {"coverage": 0.0, "precision": None, "interval": [0.0, 1.0]}])
def test_where_nothing_is_left_to_the_model_nothing_is_said_of_the_test(record, tested):
    verdict = {**record["verdict"], "level": "not_ready", "reasons": ["<b>`odd`</b>\nbaseline's"]}
    automation = {**record["automation"], "test": tested}
    text = card({**record, "verdict": verdict, "automation": automation})
    assert "**Not ready.**" in text
    assert "of these were right" not in text
    assert "- &lt;b&gt;&#96;odd&#96;&lt;/b&gt; baseline's" in text
