import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertConfig, Qwen3Config

from snugtune.config import make_config
from snugtune.cost.quote import START_S
from snugtune.errors import UserInputError
from snugtune.memory.allocator import replay
from snugtune.memory.devices import devices_named, find_device, this_device, with_memory
from snugtune.memory.epoch import cut_epoch
from snugtune.memory.limits import Limits
from snugtune.memory.plan import CHUNKED, CORRECTION, CRAMPED, MARGIN, OFFERS, _Choice, _pick
from snugtune.memory.residual import record_residual
from snugtune.memory.setup import Setup
from snugtune.model.parameters import meta_model
from snugtune.stages import agreeing
from snugtune.train import planning
from snugtune.train.group import ALONE
from snugtune.train.planning import (
    make_job,
    make_planner,
    own_prices,
    plan_devices,
    plan_run,
    record_run,
)
from snugtune.train.rehearsal import Rehearsal, model_shape

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


@pytest.mark.parametrize(("card", "memory_gib", "short"), [("t4", 0.55, 4), ("l4", 0.62, 8)])
def test_many_short_texts_that_share_a_micro_batch_have_room(bert, card, memory_gib, short):
    """Kernels keep room for each text, so hundreds of short ones take more than a few long ones."""
    device = with_memory(find_device(card), memory_gib)
    config = make_config({"train": "", "model": bert, "r": 8, "effective_batch_size": 4096})
    planner = make_planner(config, 5, [short] * 8192 + [512] * 4096)
    plan = planner.plan(device, may_change_result=False)
    packs = plan.setup.attention == "packed"
    assert packs == (card == "l4")
    rehearsal = Rehearsal(config, 5, plan.setup)
    tokens = plan.tokens_per_micro_batch

    def reserved(found):
        sizes = found.sized(found.sizes, device.library_bytes)
        return replay(found, sizes, expandable_segments=device.grows_segments).peak_reserved

    many = rehearsal.trace(tokens // short, 512 if packs else short, work=True, tokens=tokens)
    few = rehearsal.trace(plan.micro_batch, 512, work=True)
    assert reserved(many) > 1.05 * reserved(few)
    assert plan.predicted_peak_gib * 2**30 == pytest.approx(reserved(many) + device.context_bytes)


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
    assert sum(first.composition.values()) == pytest.approx(first.predicted_peak_gib)
    assert {"weights", "context and cuBLAS"} <= set(first.composition)
    assert re.search(r"layer\.\d.*modeling_bert\.py line \d+", first.peak_place)
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


def test_limits_name_levers_cards_and_epochs_that_keep_to_them(bert):
    config = make_config({"train": "", "model": bert, "lora_dropout": 0.1})
    (plain,) = plan_devices(config, 5, [T4], lengths=LENGTHS)
    assert plain.limits is None
    # A fit does more than to train.
    beside_s = plain.fit_time_s - plain.time_s
    assert beside_s > START_S
    assert plain.fit_cost_usd == pytest.approx(plain.cost_usd * plain.fit_time_s / plain.time_s)
    limits = Limits(max_hours=(beside_s + 0.9 * plain.time_s) / 3600, max_cost_usd=1.0)
    (plan,) = plan_devices(config, 5, [T4], lengths=LENGTHS, limits=limits)
    assert plan.limits.kept is False
    assert "of it training" in plan.limits.why
    changes = {way.change: way for way in plan.limits.ways}
    assert changes["3 of the 4 epochs"].time_s == pytest.approx(beside_s + 0.75 * plan.time_s)
    assert changes["adapters in the top layers only (1 of 3)"].price
    assert any(change.startswith("the ") and "USD an hour" in change for change in changes)
    assert all(limits.keeps(way.time_s, way.cost_usd) for way in plan.limits.ways)
    json.dumps(plan.as_dict(), allow_nan=False)
    (kept,) = plan_devices(config, 5, [T4], lengths=LENGTHS, limits=Limits(max_hours=plain.fit_time_s / 3000))
    assert kept.limits.kept is True
    assert kept.limits.ways == ()


@pytest.mark.parametrize(
    ("time_s", "cost", "kept"),
    [
        (3600, 2.0, True), (3601, 1.0, False), (60, 2.01, False), (None, 5.0, False), (60, None, None),
        (None, None, None),
    ],
)  # fmt: skip
def test_limits_are_kept_missed_or_unknown(time_s, cost, kept):
    limits = Limits(max_hours=1.0, max_cost_usd=2.0)
    assert limits.keeps(time_s, cost) is kept
    assert not Limits()


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
        **SHAPE, "vocab_size": 2000, "hidden_size": 512, "num_hidden_layers": 2, "intermediate_size": 98304,
    }  # fmt: skip
    Qwen3Config(**shape, num_key_value_heads=2, head_dim=128, pad_token_id=0).save_pretrained(tmp_path)
    config = make_config({"train": "", "model": str(tmp_path), "max_length": 32})
    room = with_memory(T4, 1.0)
    (plan,) = plan_devices(config, 5, [room])
    assert plan.levers[0] == "4-bit weights (NF4)"
    assert [other.fits for other in plan.alternatives if "all 2 layers" in " ".join(other.levers)] == [True]
    run = plan_run(config, 5, [32], room)
    assert run.fits
    assert not run.changes_result


def test_a_run_s_plan_is_for_this_machine_and_keeps_the_result(bert):
    plan = plan_run(make_config({"train": "", "model": bert}), 5, LENGTHS)
    assert plan.name == this_device().name
    assert plan.fits
    assert not plan.changes_result


def test_a_faster_processor_is_planned_alike_and_done_sooner(bert):
    config = make_config({"train": "", "model": bert})
    plans = [plan_run(config, 5, LENGTHS, replace(T4, gain=gain)) for gain in (1.0, 4.0)]
    assert plans[0].time_s == pytest.approx(4 * plans[1].time_s)
    assert plans[0].micro_batch == plans[1].micro_batch


def test_a_run_s_plan_never_changes_the_result(bert):
    plan = plan_run(make_config({"train": "", "model": bert}), 5, LENGTHS, with_memory(T4, 0.05))
    assert not plan.fits
    assert not plan.changes_result


def test_a_real_step_calibrates_later_plans_and_shrinks_the_margin(bert, tmp_path, monkeypatch):
    monkeypatch.setenv("SNUGTUNE_CACHE", str(tmp_path))
    config = make_config({"train": "", "model": bert, "r": 8})
    here = replace(T4, name="Tesla T4", driver="CUDA driver 12040", context_gib=0.0)
    (before,) = plan_devices(config, 5, [here], lengths=LENGTHS)
    assert before.basis == "estimated"
    assert "4 % of the device is left free" in before.basis_why
    missed = 30 * 2**20
    record_residual(
        here, before.setup, before.subject, micro_batch=before.micro_batch, length=before.length,
        predicted_bytes=before.modelled_bytes, measured_bytes=before.modelled_bytes + missed,
    )  # fmt: skip
    (same,) = plan_devices(config, 5, [here], lengths=LENGTHS)
    assert same.basis == "measured"
    assert same.predicted_peak_gib == pytest.approx(before.predicted_peak_gib + missed / 2**30)
    other = plan_devices(config, 5, [here], lengths=[40] * 90 + [200])[0]
    assert other.basis == other.bases["predicted_peak_gib"] == "calibrated"
    assert "Corrected by +3" in other.basis_why
    assert "2 % of the device is left free instead of 4 %" in other.basis_why
    assert other.composition[CORRECTION] * 2**30 == pytest.approx(missed, rel=0.2)
    assert sum(other.composition.values()) == pytest.approx(other.predicted_peak_gib)
    # The card of the table is this one, with its context still to come.
    table = plan_devices(config, 5, [T4], lengths=LENGTHS)[0]
    assert table.basis == "measured"
    assert table.predicted_peak_gib == pytest.approx(same.predicted_peak_gib + T4.context_gib)
    assert plan_devices(config, 5, [find_device("l4")], lengths=LENGTHS)[0].basis == "estimated"
    tight = replace(here, usable_gib=same.predicted_peak_gib / 0.975)
    assert plan_devices(config, 5, [tight], lengths=LENGTHS)[0].micro_batch == before.micro_batch


def test_a_run_on_this_machine_is_kept_for_the_next(bert, tmp_path, monkeypatch):
    monkeypatch.setenv("SNUGTUNE_CACHE", str(tmp_path))
    config = make_config({"train": "", "model": bert})
    plan = plan_run(config, 5, LENGTHS)
    record_run(plan, plan.modelled_bytes + 2**20)
    again = plan_run(config, 5, LENGTHS)
    assert again.basis == "measured"
    assert again.predicted_peak_gib == pytest.approx(plan.predicted_peak_gib + 1 / 1024)


def test_no_dropout_and_a_smaller_model_are_offered_where_nothing_fits(bert, tmp_path, monkeypatch):
    BertConfig(
        **SHAPE | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    ).save_pretrained(tmp_path)
    monkeypatch.setattr(planning, "smaller_models", lambda model: [bert, str(tmp_path)])
    config = make_config({"train": "", "model": bert, "hidden_dropout": 0.1, "method": "full"})
    (plan,) = plan_devices(config, 5, [with_memory(T4, 0.44)], lengths=LENGTHS, limits=Limits(max_hours=1))
    assert not plan.fits
    assert plan.limits.kept is None
    assert plan.limits.why.endswith("cannot be told because it does not fit.")
    assert any("no dropout" in other.levers for other in (plan, *plan.alternatives))
    (adapted,) = (other for other in plan.alternatives if "LoRA" in " ".join(other.levers))
    assert adapted.fits
    assert adapted.predicted_peak_gib < plan.predicted_peak_gib
    assert "adapters and the head are trained" in adapted.price
    smaller = plan.alternatives[-1]
    assert smaller.levers[0] == f"a smaller model ({tmp_path})"
    assert smaller.fits
    assert smaller.price


def test_smaller_models_are_of_the_same_family_largest_first():
    assert planning.smaller_models("Qwen/Qwen3-4B") == ["Qwen/Qwen3-1.7B", "Qwen/Qwen3-0.6B"]
    assert planning.smaller_models("xlm-roberta-large") == ["xlm-roberta-base"]
    assert planning.smaller_models("bert-base-uncased") == planning.smaller_models("/no/such") == []


def test_weights_asked_for_in_4_bits_are_planned_so(bert):
    config = make_config({"train": "", "model": bert, "load_in_4bit": True})
    (plan,) = plan_devices(config, 5, [T4], lengths=LENGTHS)
    (plain,) = plan_devices(make_config({"train": "", "model": bert}), 5, [T4], lengths=LENGTHS)
    assert plan.setup.quantized
    assert plan.levers[0] == "4-bit weights (NF4)"
    assert not plan.changes_result
    assert plan.composition["weights"] < plain.composition["weights"]


def test_the_job_is_read_from_settings_and_lengths():
    config = make_config({"train": "", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3})
    job = make_job(config, 128, [5, 500])
    assert (job.step_examples, job.length, job.rows, job.tokens) == (12, 128, 2, 133)
    assert make_job(config, 128, None).tokens is None


def test_float16_without_bfloat16_is_planned_in_half_precision(bert):
    half = make_job(make_config({"train": "", "model": bert, "fp16": True, "bf16": False}), 64, LENGTHS)
    full = make_job(make_config({"train": "", "model": bert, "bf16": False}), 64, LENGTHS)
    assert (half.half_precision, half.mixed_precision) == (True, True)
    assert (full.half_precision, full.mixed_precision) == (False, False)


@pytest.mark.parametrize("given", [{}, {"tokens_per_micro_batch": 2048}])
def test_micro_batches_on_a_card_are_bounded_by_what_was_asked_for_alone(bert, given):
    config = make_config({"train": "", "model": bert, "max_length": 32, "effective_batch_size": 512, **given})
    again = make_config(config.model_dump(mode="json", exclude_unset=True))
    plans = [plan_run(one, 5, [32] * 600, find_device("h100")) for one in (config, again)]
    assert [plan.micro_batch for plan in plans] == ([64, 64] if given else [512, 512])
    assert ("the settings ask for no more" in plans[0].why) == bool(given)
    assert "largest micro-batch that fits" not in plans[0].why


def test_the_loaded_model_is_room_of_the_plan_that_counts_it(bert, monkeypatch):
    """It is on the device already when what is free is asked."""
    model = meta_model(model_shape(make_config({"train": "", "model": bert}), 5))
    job = SimpleNamespace(
        group=ALONE, backbone=SimpleNamespace(model=model), device=torch.device("cpu")
    )  # fmt: skip
    free = replace(T4, kind="cpu", usable_gib=2.0)
    monkeypatch.setattr(agreeing, "this_device", lambda: free)
    held = sum(parameter.nbytes for parameter in model.parameters())
    assert agreeing._device(job).usable_gib == pytest.approx(2.0 + held / 2**30)
    monkeypatch.setattr(agreeing, "this_device", lambda: replace(free, kind="cuda"))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 3 << 30)
    assert agreeing._device(job).usable_gib == pytest.approx(5.0)


def decoder(folder, **shape):
    """A wide model whose weights outweigh everything else."""
    wide = SHAPE | {"vocab_size": 2000, "hidden_size": 512, "num_hidden_layers": 2} | shape
    Qwen3Config(**wide, num_key_value_heads=2, head_dim=128, pad_token_id=0).save_pretrained(folder)
    return str(folder)


def test_no_offer_but_4_bit_weights_takes_the_place_of_a_plan_that_fits(tmp_path):
    model = decoder(tmp_path, intermediate_size=32768, num_hidden_layers=6)
    for method, changes_result in (("ia3", False), ("lora", True)):
        config = make_config({"train": "", "model": model, "max_length": 64, "method": method})
        planner = make_planner(config, 5)
        base = planner._base(T4)
        everything = replace(
            base, chunked_evaluation=True, embedding_on_host=True, activation_checkpointing=12
        )
        least = planner._modelled(T4, everything, 1, 64) / 2**30 / (1 - MARGIN)
        room = with_memory(T4, 1.01 * least)
        assert planner._weights_share(room, base) > CRAMPED
        plan = planner.plan(room)
        assert plan.fits
        assert plan.changes_result is changes_result
    assert plan.levers[:3] == ("4-bit weights (NF4)", "half-precision frozen weights", CHUNKED)


def test_what_does_not_fit_is_told_by_the_smallest_of_all_choices(tmp_path):
    config = make_config(
        {"train": "", "model": decoder(tmp_path, intermediate_size=98304), "max_length": 128}
    )
    (plan,) = plan_devices(config, 5, [with_memory(T4, 0.3)])
    assert not plan.fits
    everything = [plan.predicted_peak_gib, *(other.predicted_peak_gib for other in plan.alternatives)]
    assert plan.predicted_peak_gib == min(everything)
    assert {"4-bit weights (NF4)", "activation checkpointing of all 2 layers"} <= set(plan.levers)
    assert any("embedding on the CPU" in other.levers and not other.price for other in plan.alternatives)
    missing = plan.predicted_peak_gib - 0.3 * (1 - MARGIN)
    assert f"{missing:.2f} GiB more than there is; the whole t4 would do" in plan.why


def test_4_bit_weights_draw_the_levers_that_keep_the_result_too(tmp_path):
    model = decoder(tmp_path, vocab_size=200_000, intermediate_size=16384)
    config = make_config({"train": "", "model": model, "max_length": 256})
    planner = make_planner(config, 5)
    base = replace(planner._base(T4), quantized=True, chunked_evaluation=True)
    hosted = replace(base, embedding_on_host=True, activation_checkpointing=2)
    least, plain = (planner._modelled(T4, setup, 1, 256) for setup in (hosted, base))
    assert least < 0.8 * plain
    room = with_memory(T4, (least + 0.1 * (plain - least)) / 2**30 / (1 - MARGIN))
    (plan,) = plan_devices(config, 5, [room])
    assert plan.fits
    assert plan.setup.quantized
    assert plan.setup.embedding_on_host


def test_a_card_that_is_not_in_the_table_is_planned_for_and_no_time_told(bert):
    config = make_config({"train": "", "model": bert})
    (unknown,) = devices_named("RTX 9999", "10GiB")
    (plan,) = plan_devices(config, 5, [unknown], lengths=LENGTHS, limits=Limits(max_hours=1))
    assert plan.fits
    assert (plan.name, plan.asked, plan.capacity_gib) == ("RTX 9999", "RTX 9999", 10.0)
    assert (plan.setup.compute, plan.setup.attention) == ("float16", "fused")
    assert plan.time_s is plan.cost_usd is plan.fit_time_s is None
    assert "RTX 9999 is not in the table of cards: float16 and fused attention are assumed" in plan.basis_why
    assert plan.limits.why.endswith("because the card's speed is not known.")
    # An own card of an unknown kind has the rates of none.
    here = replace(T4, name="Quadro 1", card="", driver="CUDA driver 13000", knows_rates=False)
    (own,) = plan_devices(config, 5, [here], lengths=LENGTHS)
    assert own.time_s is None
    assert own.basis_why.endswith("Quadro 1 is not in the table of cards: no time is told.")


def test_memory_that_the_user_gives_is_not_measured(bert):
    config = make_config({"train": "", "model": bert})
    given, there = (plan_devices(config, 5, devices_named(None, memory))[0] for memory in ("500GiB", None))
    assert given.bases["capacity_gib"] == "estimated"
    assert there.bases["capacity_gib"] == "measured"


def test_bfloat16_needs_a_card_that_has_it(bert):
    config = make_config({"train": "", "model": bert, "bf16": True})
    with pytest.raises(UserInputError, match=r"capability 8.0 or later, and the t4 has 7.5; leave it out"):
        plan_devices(config, 5, [T4])


def test_more_tokens_than_the_model_reads_are_refused(bert):
    config = make_config({"train": "", "model": bert, "max_length": 513})
    with pytest.raises(UserInputError, match="max_length=513 is more than the 512 tokens"):
        plan_devices(config, 5, [T4])


def test_the_fastest_offer_is_taken_and_shorter_texts_last():
    def choice(name, seconds, *, micro_batch=1, **setup):
        epoch = cut_epoch(np.array([32]), step_examples=1, tokens_per_micro_batch=32)
        setup = Setup(**setup)
        return _Choice(setup, (name,), micro_batch, 2**30, 32, epoch, seconds, True, OFFERS.get(name, ""))

    safe = choice("none", math.inf, micro_batch=0)
    quantized, top, shorter = (
        choice("4-bit weights (NF4)", 9.0, quantized=True),
        choice("adapters in the top layers only", 5.0),
        choice("shorter texts", 1.0),
    )
    assert _pick([safe], [quantized, top, shorter]) is top
    assert _pick([safe], [shorter]) is shorter
    fits = replace(safe, micro_batch=1, epoch_s=2.0)
    assert _pick([fits], [quantized, top]) is quantized
    assert _pick([fits, replace(fits, epoch_s=1.0)], []).epoch_s == 1.0


def test_own_prices_are_of_one_device_or_named():
    cards = devices_named("Tesla T4,h100", None)
    assert own_prices(None, cards) == {}
    assert own_prices("0.35", cards[:1]) == own_prices(0.35, cards[:1]) == {"t4": 0.35}
    assert own_prices("t4=0.35, H100=2.5", cards) == {"t4": 0.35, "h100": 2.5}
    assert own_prices("tesla t4=0.35", cards) == {"t4": 0.35}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0.35", "is one price for 2 devices; give t4=0.35,h100=0.35"),
        ("l4=0.35", "'l4' is not among the devices"),
        ("", "not nothing"),
        ("t4=cheap", "not 'cheap'"), ("t4=-1", "not '-1'"), ("t4=nan", "not 'nan'"), ("0.35,1", "NAME=USD"),
    ],
)  # fmt: skip
def test_prices_that_cannot_be_used(given, message):
    with pytest.raises(UserInputError, match=message):
        own_prices(given, devices_named("t4,h100", None))


def test_each_device_has_its_own_price(bert):
    config = make_config({"train": "", "model": bert})
    cards = devices_named("t4,l4", None)
    t4, l4 = plan_devices(config, 5, cards, lengths=LENGTHS, prices={"t4": 36.0})
    assert t4.price.usd_per_hour == 36.0
    assert t4.other_prices == ()
    assert l4.price.usd_per_hour < 1
    assert l4.other_prices
