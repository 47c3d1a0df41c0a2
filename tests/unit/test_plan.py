import json

import pytest
from transformers import BertConfig, Qwen3Config

from snugtune.config import make_config
from snugtune.memory.devices import find_device, this_device, with_memory
from snugtune.memory.plan import MARGIN
from snugtune.train.planning import make_job, plan_devices, plan_run

SHAPE = {
    "vocab_size": 20_000, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 1024, "max_position_embeddings": 512,
}  # fmt: skip
LENGTHS = [40] * 90 + [256] * 10
T4 = find_device("t4")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    BertConfig(**SHAPE).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def plans(bert):
    """Plans from ample memory to hardly any."""
    config = make_config({"train": "", "model": bert, "r": 8})
    devices = [with_memory(T4, memory) for memory in (14.56, 0.5, 0.44, 0.36, 0.05)]
    return plan_devices(config, 5, devices, lengths=LENGTHS)


def test_ample_memory_takes_a_whole_step_at_once(plans):
    assert plans[0].fits
    assert plans[0].micro_batch == 32
    assert plans[0].tokens_per_micro_batch == 32 * 256
    assert plans[0].levers == ("half-precision frozen weights",)


def test_what_fits_stays_within_the_margin_and_one_more_example_would_not(plans):
    for plan in plans:
        if plan.fits:
            assert plan.predicted_peak_gib <= plan.capacity_gib * (1 - MARGIN)
    assert plans[1].micro_batch < 32


def test_levers_that_change_the_result_come_last(plans):
    changing = [plan.changes_result for plan in plans if plan.fits]
    assert changing == sorted(changing)
    assert not plans[0].changes_result
    for plan in plans:
        assert plan.changes_result == any(
            word in lever for lever in plan.levers for word in ("top layers", "4-bit", "shorter")
        )


def test_less_memory_never_trains_larger_micro_batches_without_more_levers(plans):
    assert len(plans[0].levers) <= len(plans[1].levers) <= len(plans[2].levers)


def test_what_cannot_fit_says_by_how_much_and_what_would(plans):
    last = plans[-1]
    assert not last.fits
    assert last.micro_batch == 0
    assert last.time_s is last.cost_usd is None
    missing = last.predicted_peak_gib - last.capacity_gib * (1 - MARGIN)
    assert f"{missing:.2f} GiB more than there is" in last.why
    assert "would do" in last.why
    assert last.alternatives


def test_the_peak_is_explained(plans):
    first = plans[0]
    assert sum(first.composition.values()) == pytest.approx(first.predicted_peak_gib, rel=0.15)
    assert {"weights", "context and cuBLAS"} <= set(first.composition)
    assert "layer" in first.peak_place
    json.dumps(first.as_dict(), allow_nan=False)
    assert first.basis == "estimated"


def test_time_and_price_follow_from_tokens_and_rates(bert):
    config = make_config({"train": "", "model": bert, "price_per_hour_usd": 36.0})
    slow, fast = plan_devices(config, 5, [T4, find_device("a100-80")], lengths=LENGTHS)
    assert 0 < fast.time_s < slow.time_s
    assert slow.cost_usd == pytest.approx(slow.time_s / 100)
    (twice,) = plan_devices(config.model_copy(update={"num_train_epochs": 8}), 5, [T4], lengths=LENGTHS)
    assert twice.time_s == pytest.approx(2 * slow.time_s)
    (untold,) = plan_devices(config, 5, [T4])
    assert untold.time_s is untold.cost_usd is None


def test_full_training_needs_gradients_and_state(bert):
    lora, full = (
        plan_devices(make_config({"train": "", "model": bert, "method": method}), 5, [T4], lengths=LENGTHS)[0]
        for method in ("lora", "full")
    )
    parameters = 4 * (20_000 + 512) * 256
    assert full.composition["weights"] * 2**30 > parameters
    assert full.predicted_peak_gib > lora.predicted_peak_gib
    assert full.composition["optimiser state"] > 50 * lora.composition["optimiser state"]


def test_a_decoder_larger_than_the_card_gets_a_4_bit_plan(tmp_path):
    shape = {
        **SHAPE, "vocab_size": 2000, "hidden_size": 512, "num_hidden_layers": 2, "intermediate_size": 32768,
    }  # fmt: skip
    Qwen3Config(**shape, num_key_value_heads=2, head_dim=128, pad_token_id=0).save_pretrained(tmp_path)
    config = make_config({"train": "", "model": str(tmp_path), "max_length": 32})
    room = with_memory(T4, 0.485)
    (plan,) = plan_devices(config, 5, [room])
    assert plan.fits
    assert plan.levers[0] == "4-bit weights (NF4)"
    assert "changes the result" in plan.why
    assert any(not other.fits for other in plan.alternatives)


def test_weights_that_leave_no_room_to_give_way_get_a_4_bit_plan_and_the_other_beside_it(tmp_path):
    shape = {
        **SHAPE, "vocab_size": 2000, "hidden_size": 512, "num_hidden_layers": 2, "intermediate_size": 32768,
    }  # fmt: skip
    Qwen3Config(**shape, num_key_value_heads=2, head_dim=128, pad_token_id=0).save_pretrained(tmp_path)
    config = make_config({"train": "", "model": str(tmp_path), "max_length": 32})
    room = with_memory(T4, 0.56)
    (plan,) = plan_devices(config, 5, [room])
    assert plan.levers[0] == "4-bit weights (NF4)"
    assert [other.fits for other in plan.alternatives if "all layers" in " ".join(other.levers)] == [True]
    run = plan_run(config, 5, [32], room)
    assert run.fits
    assert not run.changes_result


def test_a_run_s_plan_is_for_this_machine_and_keeps_the_result(bert):
    plan = plan_run(make_config({"train": "", "model": bert}), 5, LENGTHS)
    assert plan.name == this_device().name
    assert plan.fits
    assert not plan.changes_result


def test_a_run_s_plan_never_changes_the_result(bert):
    plan = plan_run(make_config({"train": "", "model": bert}), 5, LENGTHS, with_memory(T4, 0.05))
    assert not plan.fits
    assert not plan.changes_result


def test_the_job_is_read_from_settings_and_lengths():
    config = make_config({"train": "", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3})
    job = make_job(config, 128, [5, 500])
    assert (job.step_examples, job.length, job.rows, job.tokens) == (12, 128, 2, 133)
    assert make_job(config, 128, None).tokens is None
