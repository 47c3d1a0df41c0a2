"""Runs side by side: pairing by text, the tests against independent sums, and what is refused."""

import json
from math import comb

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control
from typer.testing import CliRunner

from snugtune.cli import app
from snugtune.errors import UserInputError
from snugtune.report.compare import _of_difference, compare_runs, holm

LABELS = ["Fees", "Loan", "Card"]


def write(folder, predicted, *, label=None, ids=None, part="test", settings=None, **columns):
    """A run folder of these predictions, with the metrics that they give."""
    folder.mkdir(parents=True)
    n = len(predicted)
    label = label if label is not None else truth(n)
    right = [a == b for a, b in zip(predicted, label, strict=True)]
    metrics = {
        "rows": n, "accuracy": float(np.mean(right)), "f1_macro": 0.5, "f1_weighted": 0.5, "log_loss": 1.0,
        "ece": 0.1, "intervals": {"accuracy": [0.1, 0.9], "f1_macro": [0.4, 0.6]},
    }  # fmt: skip
    record = {
        "config": {"train": "a.csv", "test": None, "r": 16, **(settings or {})},
        "metrics": {part: metrics, "validation": metrics},
        "versions": {"torch": "2.13.0"},
        "data": {"rows": {part: n}},
        "time": {"total_s": 10.0},
        "cost": {"usd": None},
    }
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    table = {"row": range(n), "part": [part] * n, "label": label, "predicted_label": predicted}
    if ids is not None:
        table["text_id"] = ids
    pl.DataFrame({**table, **columns}).write_parquet(folder / "predictions.parquet")
    return folder


def truth(n):
    return [LABELS[i % 3] for i in range(n)]


def wrong_at(rows, n):
    """The truth, but for ``rows``."""
    return [LABELS[(i + 1) % 3] if i in rows else LABELS[i % 3] for i in range(n)]


def test_shared_rows_are_paired_by_their_text_whatever_their_order(tmp_path):
    n = 200
    a = write(tmp_path / "a", wrong_at(set(range(30)), n), ids=list(range(n)))
    order = list(range(n))[::-1]
    other = wrong_at(set(range(25, 35)), n)
    b = write(
        tmp_path / "b", [other[i] for i in order], label=[truth(n)[i] for i in order], ids=order,
        settings={"r": 32, "price_per_hour_usd": 1.0},
    )  # fmt: skip
    found = compare_runs([a, b])
    one = found["differences"][0]
    assert (one["paired"], one["rows"]) == (True, n)
    assert (one["right_only_in_first"], one["right_only_in_other"]) == (5, 25)
    # The binomial tail, summed by hand.
    expected = 2 * sum(comb(30, k) for k in range(6)) / 2**30
    assert one["accuracy"]["p_value"] == pytest.approx(expected)
    assert one["accuracy"]["difference"] == pytest.approx(0.1)
    low, high = one["accuracy"]["interval"]
    assert 0 < low < 0.1 < high
    assert one["verdict"] == "better"
    assert "better, by more than noise" in one["sentence"]
    assert found["settings"] == {"r": [16, 32]}
    assert found["versions"] == {}


def test_a_text_that_occurs_twice_is_matched_one_by_one(tmp_path):
    ids = [7, 7, 7, *range(100, 137)]
    label = ["Fees"] * 40
    a = write(tmp_path / "a", ["Fees"] * 40, label=label, ids=ids)
    b = write(tmp_path / "b", ["Loan", "Fees", "Fees", *["Fees"] * 37], label=label, ids=ids)
    one = compare_runs([a, b])["differences"][0]
    assert one["rows"] == 40
    assert (one["right_only_in_first"], one["right_only_in_other"]) == (1, 0)
    assert one["verdict"] == "same"


def test_few_shared_rows_are_no_pairs(tmp_path):
    a = write(tmp_path / "a", wrong_at(set(range(50)), 100), ids=list(range(100)))
    b = write(tmp_path / "b", wrong_at(set(range(20)), 100), ids=list(range(80, 180)))
    one = compare_runs([a, b])["differences"][0]
    assert not one["paired"]
    assert one["rows"] == [100, 100]
    assert one["accuracy"]["test"] == "fisher_exact"
    assert one["verdict"] == "better"
    # Wilson's bounds by SciPy, put together by Newcombe's method 10.
    wilson = [binomtest(k, 100).proportion_ci(method="wilson") for k in (50, 80)]
    low = 0.3 - ((0.8 - wilson[1].low) ** 2 + (wilson[0].high - 0.5) ** 2) ** 0.5
    high = 0.3 + ((wilson[1].high - 0.8) ** 2 + (0.5 - wilson[0].low) ** 2) ** 0.5
    assert one["accuracy"]["interval"] == pytest.approx([low, high])


def test_other_labels_on_the_same_texts_are_no_pairs(tmp_path):
    n = 90
    a = write(tmp_path / "a", truth(n), ids=list(range(n)))
    b = write(tmp_path / "b", ["x"] * n, label=["x"] * n, ids=list(range(n)))
    assert not compare_runs([a, b])["differences"][0]["paired"]


def test_older_tables_are_paired_by_row_where_the_files_are_the_same(tmp_path):
    a = write(tmp_path / "a", wrong_at({1}, 60))
    b = write(tmp_path / "b", wrong_at({2}, 60))
    c = write(tmp_path / "c", wrong_at({2}, 60), settings={"train": "other.csv"})
    same, other = compare_runs([a, b, c])["differences"]
    assert same["paired"]
    assert not other["paired"]


def test_without_predictions_the_metrics_must_do(tmp_path):
    a, b = (write(tmp_path / name, truth(30), ids=list(range(30))) for name in "ab")
    (b / "predictions.parquet").unlink()
    one = compare_runs([a, b])["differences"][0]
    assert not one["paired"]
    assert one["accuracy"]["p_value"] == 1.0
    assert one["f1_macro"]["interval"][0] < 0 < one["f1_macro"]["interval"][1]


def test_validation_serves_where_one_has_no_test(tmp_path):
    a = write(tmp_path / "a", truth(30), ids=list(range(30)))
    b = write(tmp_path / "b", truth(30), ids=list(range(30)), part="validation")
    assert compare_runs([a, b])["part"] == "validation"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_never_lowers_keeps_the_order_and_is_at_most_bonferroni(p_values):
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1.0, p * len(p_values)) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()
    # Stricter than Benjamini and Hochberg's, which bounds less.
    assert (np.array(adjusted) >= false_discovery_control(p_values) - 1e-12).all()


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_several_comparisons_are_put_right(tmp_path):
    n = 300
    a = write(tmp_path / "a", wrong_at(set(range(20)), n), ids=list(range(n)))
    others = [write(tmp_path / f"b{i}", wrong_at(set(range(9)), n), ids=list(range(n))) for i in range(3)]
    found = compare_runs([a, *others])["differences"]
    for one in found:
        assert one["accuracy"]["p_value_adjusted"] == pytest.approx(3 * one["accuracy"]["p_value"])


def test_intervals_of_differences_add_in_squares():
    assert _of_difference(0.5, [0.4, 0.6], 0.7, [0.6, 0.8]) == pytest.approx(
        [0.2 - 0.1 * 2**0.5, 0.2 + 0.1 * 2**0.5]
    )


@pytest.mark.parametrize("case", ["one", "twice", "missing", "damaged", "table"])
def test_what_cannot_be_compared_is_refused(tmp_path, case):
    a = write(tmp_path / "a", truth(30))
    b = write(tmp_path / "b", truth(30))
    if case == "damaged":
        (b / "run.json").write_text("[1,")
    if case == "table":
        (b / "predictions.parquet").write_text("nothing of the kind")
    given_folders = {"one": [a], "twice": [a, a], "missing": [a, tmp_path / "c"]}.get(case, [a, b])
    with pytest.raises(UserInputError):
        compare_runs(given_folders)


def test_the_command_shows_scores_settings_and_the_verdict(tmp_path):
    n = 200
    a = write(tmp_path / "one", wrong_at(set(range(30)), n), ids=list(range(n)))
    b = write(tmp_path / "other", wrong_at({1}, n), ids=list(range(n)), settings={"r": 32})
    done = CliRunner().invoke(app, ["compare", str(a), str(b)], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.exception
    for words in ("0.8500 [0.1000, 0.9000]", "0.9950", "other against one: better", "200 shared rows"):
        assert words in done.output, done.output
    assert "32" in done.output
    found = json.loads(CliRunner().invoke(app, ["compare", str(a), str(b), "--json"]).output)
    assert found == compare_runs([a, b])
