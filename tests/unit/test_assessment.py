"""The blocks of run.json that held-out rows make: complete, consistent with one another, and JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from snugtune.evaluate.assessment import Candidate, Rows, automation, part_metrics
from snugtune.evaluate.calibration import softmax
from snugtune.evaluate.decision import decide

NAMES = ["a", "b", "c"]


def logits_of(rows, seed, signal=2.5):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows)
    return signal * np.eye(3)[y] + rng.normal(size=(rows, 3)), y


def candidates(test=True):
    validation, y = logits_of(1000, 0)
    fresh, y_test = logits_of(1000, 1)
    found = []
    for signal in (1.0, 0.6):  # the baseline sees less
        decided = decide(signal * validation + (1 - signal) * logits_of(1000, 2)[0], None, y, precision=0.95)
        probabilities = decided.decision.probabilities(signal * fresh + (1 - signal) * logits_of(1000, 3)[0])
        found.append(Candidate(decided, probabilities if test else None))
    return (*found, y, y_test if test else None)


def test_automation_with_test_rows() -> None:
    model, baseline, y, y_test = candidates()
    block = automation(model, baseline, y, y_test, NAMES)
    json.dumps(block, allow_nan=False)
    taken = model.test.max(1) >= block["threshold"]
    assert block["test"]["coverage"] == pytest.approx(taken.mean())
    assert block["test"]["precision"] == pytest.approx((model.test.argmax(1) == y_test)[taken].mean())
    low, high = block["test"]["interval"]
    assert low < block["test"]["precision"] < high
    assert block["validation"]["lower_bound"] >= 0.95
    assert block["test"]["coverage"] > block["baseline"]["test"]["coverage"]
    assert sum(row["rows"] for row in block["by_class"]) == taken.sum()
    assert f"{100 * taken.mean():.0f} %" in block["sentence"]


def test_automation_without_test_rows() -> None:
    model, baseline, y, _ = candidates(test=False)
    block = automation(model, baseline, y, None, NAMES)
    assert block["test"] is block["baseline"]["test"] is None
    taken = model.decided.held_out.max(1) >= block["threshold"]
    assert sum(row["rows"] for row in block["by_class"]) == taken.sum()
    assert f"{100 * block['validation']['coverage']:.0f} %" in block["sentence"]


def test_test_rows_of_unknown_labels_alone_say_nothing() -> None:
    model, baseline, y, y_test = candidates()
    assert automation(model, baseline, y, np.full_like(y_test, -1), NAMES)["test"] is None


def test_metrics_of_a_part_agree_with_each_other() -> None:
    logits, y = logits_of(500, 4)
    y[:5] = -1
    part = Rows(y, np.arange(500) + 7, np.arange(500) % 40)
    block = part_metrics(part, softmax(9 * logits), softmax(2.5 * logits), NAMES, np.array([5, 50, 500]))
    json.dumps(block, allow_nan=False)
    mistakes = round(block["rows"] * (1 - block["accuracy"]))
    assert sum(pair["rows"] for pair in block["confused_pairs"]) == mistakes
    assert sum(row["rows"] for row in block["slices"]["by_length"]) == block["rows"] == 495
    assert sum(row["rows"] for row in block["slices"]["by_class_size"]) == 495
    assert block["reliability"]["after"]["ece"] == pytest.approx(block["ece"])
    assert block["reliability"]["before"]["ece"] > block["ece"]
    assert block["risk_coverage"][0]["precision"] == pytest.approx(block["accuracy"])
    assert all(row >= 12 for pair in block["confused_pairs"] for row in pair["examples"])
