import json
from dataclasses import replace
from importlib.resources import files

import pytest

from snugtune.cost.prices import (
    blog_compute_units,
    compute_units_usd,
    cost_usd,
    prices,
    usd_per_hour,
)
from snugtune.errors import UserInputError
from snugtune.memory.devices import (
    card_like,
    devices_named,
    find_device,
    known_devices,
    parse_memory,
    this_device,
    with_measured_gain,
    with_memory,
)
from snugtune.memory.workspaces import cublas_bytes

ASKED = ("t4", "v100", "l4", "rtx3060", "rtx4090", "a10g", "a100-40", "a100-80", "h100", "h200")


@pytest.mark.parametrize("name", ASKED)
def test_cards_are_known_and_plausible(name):
    card = find_device(name)
    assert 8 < card.usable_gib < 150
    assert card.half_tflops >= card.float32_tflops
    assert card.has_bfloat16 == (card.compute_capability >= (8, 0))
    assert card.source.startswith("https://")


def test_a_16_gb_card_has_less():
    assert find_device("T4").usable_gib == 14.56
    assert find_device("v100") == find_device("v100-16")


def test_half_precision_by_generation():
    assert find_device("t4").half == "float16"
    assert find_device("l4").half == "bfloat16"


def test_a_workspace_of_cublas_is_as_large_as_the_card_or_the_user_says(monkeypatch):
    assert cublas_bytes((7, 5)) == 8_519_680
    assert cublas_bytes((9, 0)) == cublas_bytes((12, 0)) == 32 << 20
    assert cublas_bytes((9, 0), ":4096:2:16:8") == 8_519_680
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    assert find_device("t4").library_bytes == 8_519_680
    assert replace(find_device("t4"), driver="CUDA driver 13000").library_bytes == 32 << 20


def test_segments_grow_unless_the_user_has_set_the_allocator_of_this_machine_s_card_otherwise(monkeypatch):
    # A fit in this process may have set it up.
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    here = replace(find_device("t4"), driver="CUDA driver 13000")
    assert here.grows_segments
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    assert not here.grows_segments
    assert find_device("t4").grows_segments
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments: True,max_split_size_mb:128")
    assert here.grows_segments


def test_an_unknown_card_names_some_that_are_known():
    with pytest.raises(UserInputError, match=r"'a1000' is not known; use one of .*a100"):
        find_device("a1000")


def test_old_prices_stand_behind_recent_ones_and_are_not_confirmed():
    recent, *_, old = prices("t4")
    assert old.provider == "Colab"
    assert old.usd_per_hour < recent.usd_per_hour
    assert old.date < "2023" < recent.date
    assert not old.confirmed
    assert [price.usd_per_hour for price in prices("l4")] == sorted(p.usd_per_hour for p in prices("l4"))


def test_a_card_that_is_not_known_needs_its_memory():
    (card,) = devices_named("GTX 480", "1.5 GiB")
    assert (card.name, card.usable_gib, card.half, card.card) == ("GTX 480", 1.5, "float16", "")
    assert not card.knows_rates
    with pytest.raises(UserInputError, match="not known"):
        devices_named("GTX 480", None)


@pytest.mark.parametrize(
    ("text", "gib"),
    [
        ("1TiB", 1024),
        ("1.099511627776 tb", 1024),
        ("15GiB", 15),
        ("15 g", 15),
        ("15", 15),
        ("512MiB", 0.5),
        ("2.147483648 GB", 2),
    ],
)
def test_amounts_of_memory(text, gib):
    assert parse_memory(text) == pytest.approx(gib)


@pytest.mark.parametrize("text", ["", "much", "-3GiB", "0", "3 cows"])
def test_what_is_no_amount_of_memory(text):
    with pytest.raises(UserInputError, match="15GiB"):
        parse_memory(text)


def test_a_budget_on_a_card():
    assert with_memory(find_device("l4"), 5.0).usable_gib == 5.0


def test_a_plan_for_this_processor_asks_how_fast_it_is():
    assert devices_named("l4,t4", None) == [find_device("l4"), find_device("t4")]
    assert devices_named("l4, t4,L4", None) == [find_device("l4"), find_device("t4")]
    assert with_measured_gain(find_device("l4")) == find_device("l4")
    processor = replace(find_device("l4"), kind="cpu", has_bfloat16=False)
    rates = [replace(processor, half_tflops=tflops) for tflops in (1e-3, 1e3)]
    slower, faster = (with_measured_gain(device).gain for device in rates)
    # A million times what is assumed; clocks and neighbours do less.
    assert 0 < 100 * faster < slower


def test_this_machine_has_memory():
    device = this_device()
    assert device.usable_gib > 0.05
    assert device.kind in {"cpu", "cuda"}


def test_prices_have_dates_and_sources_and_known_cards():
    table = json.loads((files("snugtune.cost") / "prices.json").read_text())
    for row in table["prices"]:
        assert row["device"] in known_devices()
        assert row["usd_per_hour"] > 0
        assert row["date"].startswith("20")
        assert row["source"].startswith("https://")
    assert set(table["colab"]["units_per_hour"]) <= set(known_devices())


def test_the_user_s_own_price_wins_and_zero_is_a_price():
    assert usd_per_hour("t4", 7.0) == 7.0
    assert usd_per_hour("t4", 0.0) == 0.0
    assert usd_per_hour("t4") == prices("t4")[0].usd_per_hour
    assert usd_per_hour("rtx3060") is None
    assert cost_usd(1800, 2.0) == 1.0
    assert cost_usd(None, 2.0) is None


def test_the_recipe_s_arithmetic():
    units = blog_compute_units(9, 15)
    assert units == 135
    assert compute_units_usd(units) == pytest.approx(13.49, abs=0.005)


@pytest.mark.parametrize(
    ("name", "total_gib", "card"),
    [
        ("Tesla T4", 14.56, "t4"), ("Tesla V100-SXM2-16GB", 15.8, "v100-16"),
        ("Tesla V100-SXM2-32GB", 31.7, "v100-32"), ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40"),
        ("NVIDIA A100 80GB PCIe", 79.1, "a100-80"), ("NVIDIA L4", 22.0, "l4"), ("NVIDIA L40S", 44.4, "l40s"),
        ("NVIDIA GeForce RTX 4090", 23.6, "rtx4090"), ("NVIDIA H100 80GB HBM3", 79.1, "h100"),
        ("NVIDIA H200", 139.8, "h200"), ("NVIDIA A10G", 22.2, "a10g"),
    ],
)  # fmt: skip
def test_a_machine_s_own_card_is_found_in_the_table(name, total_gib, card):
    assert card_like(name, total_gib).card == card


@pytest.mark.parametrize("name", ["NVIDIA RTX A6000", "NVIDIA A10", "Quadro RTX 8000", "NVIDIA T400"])
def test_another_card_is_not_taken_for_a_known_one(name):
    assert card_like(name, 24) is None


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("Tesla T4", "t4"),
        ("tesla_t4", "t4"),
        ("A100 80GB", "a100-80"),
        ("4090", "rtx4090"),
        ("V100", "v100-16"),
    ],
)
def test_aliases(alias, name):
    assert find_device(alias).name == name
