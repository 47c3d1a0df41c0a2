"""docs/run-folder.md describes run.json field by field; a real run must hold just those fields."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs" / "run-folder.md"

# Objects whose keys are data, settings or described by a table of their own, or that may be null as a whole.
OPEN = {
    "config", "label_aliases", "label_levels", "data.rows", "data.cleaning", "data.truncation",
    "parameters.parts",
    "decision.calibration", "decision.mixture", "decision.promise", "automation", "verdict",
    "metrics.validation", "metrics.test", "baseline.metrics", "versions",
    "reload.without_quantization", "audit", "frozen_pass", "data.additions", "data.corrections", "cost.price",
    "cost.compute_units",
    "cost.per_1000_predictions", "cost.per_year", "cost.quote", "long_texts.candidates",
    "imbalance.candidates",
}  # fmt: skip
OPTIONAL = {"metrics.test", "time.audit_s", "time.probe_s"}
OF_SEVERAL_LABELS = {"decision.thresholds", "decision.borrowed_rows", "decision.at_least_one"}


def documented() -> set[str]:
    table = DOCS.read_text(encoding="utf-8").split("## run.json")[1].split("Metrics of a part")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def fields(value, prefix=""):
    if isinstance(value, dict) and prefix.rstrip(".") not in OPEN:
        return {field for key, item in value.items() for field in fields(item, f"{prefix}{key}.")}
    return {prefix.rstrip(".")}


def check_record(record) -> None:
    """Raises AssertionError if the record has other fields than the page describes."""
    found = fields(record)
    assert found - documented() == set()
    several = record["label_separator"] is not None
    assert documented() - found <= OPTIONAL | (set() if several else OF_SEVERAL_LABELS)


def test_the_page_is_read():
    assert {"metrics.test", "memory.predicted_peak_gib", "cost.usd", "time.train_s"} <= documented()


def test_fields_are_listed_by_their_path():
    assert fields({"a": {"b": 1, "c": {"d": 2}}, "versions": {"x": 1}}) == {"a.b", "a.c.d", "versions"}
