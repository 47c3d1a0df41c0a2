"""The benchmark of flipped labels: what is flipped, what is counted, what the page says."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import label_noise
from lib import common, noise


def test_flipped_labels_are_others_and_as_many_as_asked():
    y = np.arange(1000) % 7
    given, flipped = label_noise.flip(y, 7, 0.05, seed=0)
    assert flipped.sum() == 50
    assert (given[flipped] != y[flipped]).all()
    assert (given[~flipped] == y[~flipped]).all()
    assert set(given) == set(range(7))


def test_what_is_counted(monkeypatch):
    from snugtune.evaluate import label_quality

    y = np.zeros(100, dtype=int)
    given, flipped = y.copy(), np.zeros(100, dtype=bool)
    given[:10], flipped[:10] = 1, True
    quality = np.ones(100)
    quality[:6] = 0.0  # six of the flipped rows come first, then two that are right
    quality[50:52] = 0.1
    suspected = quality < 0.5
    found = label_quality.LabelQuality(quality, y, suspected)
    monkeypatch.setattr(label_quality, "judge_labels", lambda *_args, **_options: found)
    scores = label_noise.judge(["some words"] * 100, y, given, flipped, y, None)
    assert scores["recall_looked_at"] == 0.6
    assert scores["precision_at_flipped"] == 0.8  # of equal quality, the earlier rows come first
    assert scores["suspected_share"] == 0.08
    assert scores["suspected_precision"] == 0.75
    assert scores["suspected_recall"] == 0.6
    assert scores["suggestion_right"] == 1.0


def test_the_section():
    scores = {key: common.spread([0.5, 0.75, 1.0]) for key in (*noise.COLUMNS, "seconds")}
    result = {
        "settings": {"flipped": 0.05, "seeds": 3, "max_length": 128},
        "looked_at": 0.08,
        "data": {"some": {"rows": 1000, "flipped_rows": 50, "methods": {"words": scores}}},
    }
    text = "\n".join(noise.label_noise(result))
    assert "5% of the training labels" in text
    assert "found in the first 8% of the list" in text
    assert "| some | words | 50 of 1,000 | 75.0 (50.0 to 100.0) |" in text
