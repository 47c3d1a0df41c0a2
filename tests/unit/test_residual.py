import json
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snugtune.memory import residual
from snugtune.memory.devices import find_device
from snugtune.memory.residual import Residual, Step, Subject, record_residual, residual_for, residuals_file
from snugtune.memory.setup import Setup

GIB = 2**30
CARD = replace(find_device("t4"), name="Tesla T4", driver="CUDA driver 12040", context_gib=0.0)
SUBJECT = Subject("bert-base-uncased", "bert", "lora")
SETUP = Setup()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SNUGTUNE_CACHE", str(tmp_path / "cache"))


def record(device=CARD, setup=SETUP, subject=SUBJECT, *, micro_batch=8, length=128, predicted, measured):
    record_residual(
        device, setup, subject, micro_batch=micro_batch, length=length,
        predicted_bytes=predicted, measured_bytes=measured,
    )  # fmt: skip


def test_what_was_recorded_is_found_under_the_same_conditions_only():
    assert residual_for(CARD, SETUP, SUBJECT) is None
    record(predicted=4 * GIB, measured=4 * GIB + 100)
    found = residual_for(CARD, SETUP, SUBJECT)
    assert found.corrected(4 * GIB) == 4 * GIB + 100
    others = [
        (replace(CARD, card="l4"), SETUP, SUBJECT),
        (replace(CARD, driver="CUDA driver 13000"), SETUP, SUBJECT),
        (CARD, replace(SETUP, compute="float32"), SUBJECT),
        (CARD, replace(SETUP, attention="eager"), SUBJECT),
        (CARD, replace(SETUP, quantized=True), SUBJECT),
        (CARD, SETUP, replace(SUBJECT, architecture="qwen3")),
        (CARD, SETUP, replace(SUBJECT, method="full")),
    ]
    assert [residual_for(*other) for other in others] == [None] * len(others)


def test_other_versions_are_other_conditions(monkeypatch):
    record(predicted=GIB, measured=GIB + 1)
    monkeypatch.setattr(residual, "version", lambda package: "99.0")
    assert residual_for(CARD, SETUP, SUBJECT) is None


def test_levers_and_models_of_one_architecture_share_a_residual():
    record(predicted=GIB, measured=GIB + 1)
    assert residual_for(CARD, replace(SETUP, activation_checkpointing=3), SUBJECT)
    assert residual_for(CARD, SETUP, replace(SUBJECT, model="bert-large-uncased"))


def test_a_card_of_the_table_uses_what_the_machine_s_own_has_shown():
    record(predicted=GIB, measured=GIB + 7)
    assert residual_for(find_device("t4"), SETUP, SUBJECT).steps[0].missed_bytes == 7
    assert residual_for(find_device("l4"), SETUP, SUBJECT) is None


def test_the_same_step_again_takes_the_place_of_the_first():
    record(predicted=GIB, measured=GIB + 1)
    record(predicted=GIB, measured=GIB + 2)
    record(predicted=2 * GIB, measured=2 * GIB + 3, micro_batch=16)
    steps = residual_for(CARD, SETUP, SUBJECT).steps
    assert [step.missed_bytes for step in steps] == [2, 3]
    assert steps[0].date


def test_a_step_that_was_taken_is_known_exactly():
    record(predicted=GIB, measured=GIB - 5)
    found = residual_for(CARD, SETUP, SUBJECT)
    assert found.measured("bert-base-uncased", 8, 128, GIB) == GIB - 5
    assert found.measured("bert-large-uncased", 8, 128, GIB) is None
    assert found.measured("bert-base-uncased", 8, 128, GIB + 1) is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"format": 2, "entries": []}', '{"format": 1, "entries": 7}',
     '{"format": 1, "entries": [3, {"conditions": {}, "step": {}}, {"conditions": null}]}'],
)  # fmt: skip
def test_a_broken_file_is_none_and_is_replaced(content):
    residuals_file().parent.mkdir(parents=True)
    residuals_file().write_text(content)
    assert residual_for(CARD, SETUP, SUBJECT) is None
    record(predicted=GIB, measured=GIB + 1)
    assert residual_for(CARD, SETUP, SUBJECT)


def test_values_of_the_wrong_kind_are_left_out():
    record(predicted=GIB, measured=GIB + 1)
    content = json.loads(residuals_file().read_text())
    content["entries"][0]["step"]["measured_bytes"] = "much"
    residuals_file().write_text(json.dumps(content))
    assert residual_for(CARD, SETUP, SUBJECT) is None


def test_a_cache_that_cannot_be_written_fails_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SNUGTUNE_CACHE", str(tmp_path / "file" / "cache"))
    record(predicted=GIB, measured=GIB + 1)
    assert residual_for(CARD, SETUP, SUBJECT) is None


def test_nothing_measured_is_nothing_kept():
    record(predicted=GIB, measured=0)
    assert not residuals_file().exists()


def test_old_steps_make_room():
    for n in range(residual.MOST_STEPS + 5):
        record(predicted=GIB, measured=GIB + n + 1, micro_batch=n + 1)
    steps = residual_for(CARD, SETUP, SUBJECT).steps
    assert len(steps) == residual.MOST_STEPS
    assert steps[-1].micro_batch == residual.MOST_STEPS + 5


@given(st.integers(1, 2**40), st.integers(1, 2**40), st.integers(1, 2**40))
@example(1, 2**40, 11823)
@example(1, 2**40 - 1, 2**40 - 1)
def test_a_correction_hits_its_own_step_and_takes_the_safer_reading_elsewhere(predicted, measured, other):
    found = Residual((Step("m", 1, 1, predicted, measured, "2026-01-01"),))
    assert found.corrected(predicted) == measured
    missed = measured - predicted
    assert found.corrected(other) >= other + missed
    assert found.corrected(other) >= round(Fraction(other * measured, predicted)) - 1


def test_the_step_nearest_in_size_corrects():
    steps = (Step("m", 1, 1, GIB, GIB + 10, ""), Step("m", 9, 1, 8 * GIB, 8 * GIB + 500, ""))
    assert Residual(steps).corrected(GIB + 1) == GIB + 11
    assert Residual(steps).corrected(8 * GIB) == 8 * GIB + 500
